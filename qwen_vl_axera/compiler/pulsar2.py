"""The commands of Pulsar2, AXERA's NPU compiler, built in one place: `python -m qwen_vl_axera.compiler` runs them."""

import glob
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from qwen_vl_axera.compiler.tool import LAST_LINES, Command, Paths, Tool, ask, check_writable, execute, option, said
from qwen_vl_axera.contract import (
    BUILD_OUTPUT,
    CHIP,
    KV_CACHE_LEN,
    PARALLEL,
    PREFILL_LEN,
    layer_file,
    post_file,
)
from qwen_vl_axera.doors import check_output
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import made_directory
from qwen_vl_axera.swap import STAGING, temporary_directory

HARDWARE = ("AX650", "AX620E", "AX615", "AX637", "AX8860", "M76H", "M57")  # `pulsar2 build -h`, 7.0
LLM_CHIPS = ("AX650", "AX620E", "LAMBERT")  # `pulsar2 llm_build2 -h`, 6.0
SMALLEST = 0.5  # of the layers' median size: they hold the same weights, so a smaller one is cut off
# 2026-01-31 12:00:00.123+08:00, Sat Jan 31 12:00:00 UTC 2026, 12:00:00, 1769860800 (s to ns since 1970); a date without
# a time may be a release.
TIME = re.compile(
    r"(?:\d{4}[-/.]\d\d?[-/.]\d\d?[T ,]+|(?:[A-Z][a-z]{2},? )?[A-Z][a-z]{2} {1,2}\d{1,2} )?"
    r"(?<!\d)\d\d?:\d\d(?::\d\d(?:[.,]\d+)?)?(?!\d)(?: ?(?:Z|UTC|GMT|CST|[+-]\d\d:?\d\d)\b)?(?: \d{4}\b)?"
    r"|\b1\d{9}(?:\d{3}){0,3}\b"
)


def build_command(
    tool: Tool,
    model: Path,
    config: Path,
    workdir: Path = Path(),
    output_dir: Path | None = None,
    output_name: str | None = None,
    chip: str = CHIP,
    check: int = 0,
    extra: Sequence[str] = (),
) -> Command:
    """`pulsar2 build`: the vision graph to an axmodel.

    Args:
        tool: from `find_tool`; a missing one gives the command as it would be.
        model: the ONNX file.
        config: the build configuration; the files that it names count from `workdir`.
        workdir: where the tool runs.
        output_dir: default WORKDIR/build-output.
        output_name: default the model's name with .axmodel.
        chip: target hardware.
        check: compiler.check, 0 as documented.
        extra: words for the tool as they are.

    Raises:
        InputError: the chip is unknown.
    """
    _one_of("chip", chip, HARDWARE)
    output_dir = Path(output_dir or Path(workdir) / BUILD_OUTPUT)
    output_name = output_name or f"{Path(model).stem}.axmodel"
    paths = Paths(tool, workdir)
    if paths.mounts:
        for named in files_named_in(config):
            paths.mounts.named_in_config(named)
    argv = [
        *("pulsar2", "build"),
        *option("--input", paths.graph(model)),
        *option("--config", paths.file(config)),
        *option("--output_dir", paths.directory(output_dir, writable=True)),
        *option("--output_name", output_name),
        *option("--target_hardware", chip),
        *option("--compiler.check", check),
        *extra,
    ]
    return paths.command(argv, [output_dir], [(output_dir, glob.escape(output_name))])


def llm_build_command(
    tool: Tool,
    checkpoint: Path,
    output: Path,
    prefill_len: int = PREFILL_LEN,
    kv_cache_len: int = KV_CACHE_LEN,
    parallel: int = PARALLEL,
    chip: str = CHIP,
    last_kv_cache_len: Sequence[int] = (),
    build2: bool = False,
    prefill_step_size: int | None = None,
    weight_type: str | None = None,
    post_weight_type: str | None = None,
    num_layers: int = 0,
    prefix: str = "*",
    extra: Sequence[str] = (),
) -> Command:
    """`pulsar2 llm_build`, or llm_build2: the language model to one axmodel per layer.

    Args:
        tool: from `find_tool`.
        checkpoint: the original hub directory.
        output: where the axmodels go.
        prefill_len: tokens of one prefill run; with `last_kv_cache_len` of one chunk; with `build2` the total.
        kv_cache_len: tokens of the cache.
        parallel: layers built at a time.
        chip: target hardware.
        last_kv_cache_len: how much of the cache the prefill groups see; the largest bounds the prompt.
        build2: use llm_build2 (not in every release; see `has_llm_build2`).
        prefill_step_size: tokens of one chunk, llm_build2 only.
        weight_type, post_weight_type: of the layers and of the head; None: the tool's own choice, s8. A GPTQ
            checkpoint needs neither.
        num_layers: of the checkpoint: so many files must be there afterwards.
        prefix: of the files' names, from the tower.
        extra: words for the tool as they are.

    Raises:
        InputError: numbers that contradict each other, or an unknown chip.
    """
    _one_of("chip", chip, LLM_CHIPS)
    check_lengths(prefill_len, kv_cache_len, parallel, last_kv_cache_len, build2, prefill_step_size)
    paths = Paths(tool)
    argv = [
        *("pulsar2", "llm_build2" if build2 else "llm_build"),
        *option("--input_path", paths.directory(checkpoint)),
        *option("--output_path", paths.directory(output, writable=True)),
        # llm_build2 counts the token being decoded; the manual's --max_context 1024 gives kv_cache_len=1023.
        *(option("--max_context", kv_cache_len + 1) if build2 else option("--kv_cache_len", kv_cache_len)),
        *option("--hidden_state_type", "bf16"),
        *option("--prefill_len", prefill_len),
    ]
    for length in last_kv_cache_len:
        argv += option("--last_kv_cache_len", length)
    if prefill_step_size is not None:
        argv += option("--prefill_step_size", prefill_step_size)
    for flag, value in (("--weight_type", weight_type), ("--post_weight_type", post_weight_type)):
        argv += option(flag, value) if value else []
    argv += [*option("--parallel", parallel), *option("--chip", chip), *extra]
    # With chunks, the tool's name for the prefill is its own.
    names = [*(layer_file(prefix, "*", number) for number in range(num_layers)), post_file(prefix)]
    return paths.command(argv, [output], [(output, name) for name in names])


def build_language(output: Path, prefix: str, make: Callable[[Path], Command]) -> None:
    """Runs `llm_build` in a directory of its own, and moves the layers and the head when all are there.

    Args:
        output: where they go; made when missing. Nothing else in it changes, and nothing at all after a failure.
        prefix: of the files' names.
        make: gives the command that writes into a directory.

    Raises:
        CheckFailed: the command fails, or a file is cut off: by its own fields, or much smaller than the others.
        InputError: something that cannot be replaced has the name of a layer.
    """
    from qwen_vl_axera.graph.files import is_cut_off  # onnx: command lines are printed where it is not installed

    check_writable(made_directory(output))  # also what is left of a killed run
    directory, lock = temporary_directory(output, STAGING)
    try:
        command = make(directory)
        execute(command)
        expected = sorted({path for place, name in command.expects for path in place.glob(name)})
        sizes = {path.name: path.stat().st_size for path in expected if path.name != post_file(prefix)}
        for path in expected:
            if is_cut_off(path):
                raise CheckFailed(f"{command.name}: {path.name} is cut off after {path.stat().st_size} bytes")
        middle = median(sizes.values()) if sizes else 0
        for name, size in sizes.items():
            if size < middle * SMALLEST:
                raise CheckFailed(f"{command.name}: {name} has {size} bytes, the others about {middle:.0f}: cut off?")
        for path in expected:
            check_output(output / path.name)
        for path in sorted(expected, key=lambda path: path.name == post_file(prefix)):  # which comes last
            os.replace(path, output / path.name)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def run_command(
    tool: Tool, model: Path, input_dir: Path, output_dir: Path, list_file: Path | None = None, workdir: Path = Path()
) -> Command:
    """`pulsar2 run`: simulates an axmodel on the host.

    Args:
        tool: from `find_tool`.
        model: the axmodel.
        input_dir: one `TENSOR.bin` per input, or one directory of those per line of `list_file`.
        output_dir: receives the outputs in the same arrangement.
        list_file: names of the directories, one a line.
        workdir: where the tool runs.
    """
    paths = Paths(tool, workdir)
    argv = [
        *("pulsar2", "run"),
        *option("--model", paths.file(model)),
        *option("--input_dir", paths.directory(input_dir)),
        *option("--output_dir", paths.directory(output_dir, writable=True)),
    ]
    if list_file is not None:
        argv += option("--list", paths.file(list_file))
    return paths.command(argv, [output_dir])


def version(tool: Tool) -> str:
    """The tool's version, on one line; a time that it prints is left out, since it is no part of the version.

    Raises:
        CheckFailed: it does not answer.
    """
    return ", ".join(filter(None, (TIME.sub("", line).strip() for line in version_lines(tool))))


def version_lines(tool: Tool) -> list[str]:
    """What the tool says of its version; see `version`."""
    answer = ask(version_command(tool))
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode or not lines:
        reason = said(answer.stderr.splitlines()[-LAST_LINES:]) or "it says nothing"
        raise CheckFailed(f"{tool.name} does not tell its version (exit code {answer.returncode}): {reason}")
    return lines


def version_command(tool: Tool) -> Command:
    """`pulsar2 version`."""
    return Paths(tool).command(["pulsar2", "version"])


def has_llm_build2(tool: Tool) -> bool:
    """Whether the tool knows llm_build2."""
    return ask(Paths(tool).command(["pulsar2", "llm_build2", "-h"])).returncode == 0


def files_named_in(config: Path) -> list[str]:
    """The files and directories that a build configuration names, as they stand there."""
    from qwen_vl_axera.compiler.schema import load_config

    build = load_config(config)
    named = [entry.calibration_dataset for entry in build.quant.input_configs]
    named += [build.quant.input_sample_dir, build.compiler.input_sample_dir]
    named += [entry.data_path for entry in build.const_processors]
    return [name for name in named if name]


def check_lengths(
    prefill_len: int,
    kv_cache_len: int,
    parallel: int,
    last_kv_cache_len: Sequence[int] = (),
    build2: bool = False,
    prefill_step_size: int | None = None,
) -> None:
    """That the lengths of `llm_build_command` do not contradict each other.

    Raises:
        InputError: they do.
    """
    if min(prefill_len, kv_cache_len, parallel, *last_kv_cache_len, prefill_step_size or 1) < 1:
        raise InputError("prefill, kv cache and parallel: expected numbers above 0")
    longest = max(prefill_len, *last_kv_cache_len, 0)
    if longest > kv_cache_len:
        raise InputError(f"a prefill of {longest} tokens does not fit a kv cache of {kv_cache_len}: raise the latter")
    if build2 and last_kv_cache_len:
        raise InputError("llm_build2 knows no --last-kv-cache-len: give the total as --prefill-len")
    if prefill_step_size is not None and not build2:
        raise InputError("--prefill-step-size belongs to llm_build2: give --llm-build2 too")
    if list(last_kv_cache_len) != sorted(set(last_kv_cache_len)):
        raise InputError(f"--last-kv-cache-len {' '.join(map(str, last_kv_cache_len))}: expected rising numbers")


def _one_of(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{what} {value!r}: expected one of {', '.join(choices)}")
