"""The commands of Pulsar2, AXERA's NPU compiler: built in one place, printed or run.

    python -m qwen_vl_axera.pulsar2 build NAME_vision.onnx --config config_video.json [--workdir DIR] [--deliver FILE]
    python -m qwen_vl_axera.pulsar2 llm_build CKPT OUT [--prefill-len 512] [--kv-cache-len 1023]
    python -m qwen_vl_axera.pulsar2 run MODEL.axmodel INPUT_DIR OUTPUT_DIR
    python -m qwen_vl_axera.pulsar2 version

The variable PULSAR2 says where the tool is: a command, or docker:IMAGE; without it `pulsar2` is looked for on
PATH. With --print each of them writes its command as one line for a shell instead of running it, and needs no tool.
"""

import glob
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.config import load_config as load_checkpoint_config
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import move_file
from qwen_vl_axera.npu.tool import VARIABLE, Command, Paths, Tool, ask, execute, find_tool, option

HARDWARE = ("AX650", "AX620E", "AX615", "AX637", "AX8860", "M76H", "M57")  # `pulsar2 build -h`, 7.0
LLM_CHIPS = ("AX650", "AX620E", "LAMBERT")  # `pulsar2 llm_build2 -h`, 6.0


def build_command(
    tool: Tool,
    model: Path,
    config: Path,
    workdir: Path = Path(),
    output_dir: Path | None = None,
    output_name: str | None = None,
    chip: str = "AX650",
    check: int = 0,
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

    Raises:
        InputError: the chip is unknown.
    """
    _one_of("chip", chip, HARDWARE)
    output_dir = Path(output_dir or Path(workdir) / "build-output")
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
    ]
    return paths.command(argv, [output_dir], [(output_dir, glob.escape(output_name))])


def llm_build_command(
    tool: Tool,
    checkpoint: Path,
    output: Path,
    prefill_len: int = 512,
    kv_cache_len: int = 1023,
    parallel: int = 32,
    chip: str = "AX650",
    last_kv_cache_len: Sequence[int] = (),
    build2: bool = False,
    prefill_step_size: int | None = None,
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

    Raises:
        InputError: numbers that contradict each other, or an unknown chip.
    """
    _one_of("chip", chip, LLM_CHIPS)
    _check_lengths(prefill_len, kv_cache_len, parallel, last_kv_cache_len, build2, prefill_step_size)
    paths = Paths(tool, Path())
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
    argv += [*option("--parallel", parallel), *option("--chip", chip)]
    # A printed command may be for another machine, and come before the checkpoint.
    layers = load_checkpoint_config(checkpoint).text.num_hidden_layers if (checkpoint / "config.json").exists() else 0
    names = [*(f"*_l{number}_together.axmodel" for number in range(layers)), "*_post.axmodel"]
    # Whether the tool keeps the layers of an earlier run is not documented: older ones are accepted.
    return paths.command(argv, [output], [(output, name) for name in names], fresh=False)


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
    """The tool's version, on one line.

    Raises:
        CheckFailed: it does not answer.
    """
    answer = ask(version_command(tool))
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode or not lines:
        said = [line for line in answer.stderr.splitlines() if line.strip()][-1:] or ["it says nothing"]
        raise CheckFailed(f"{tool.name} does not tell its version (exit code {answer.returncode}): {said[0]}")
    return ", ".join(lines)


def version_command(tool: Tool) -> Command:
    """`pulsar2 version`."""
    return Paths(tool, Path()).command(["pulsar2", "version"])


def has_llm_build2(tool: Tool) -> bool:
    """Whether the tool knows llm_build2."""
    return ask(Paths(tool, Path()).command(["pulsar2", "llm_build2", "-h"])).returncode == 0


def files_named_in(config: Path) -> list[str]:
    """The files and directories that a build configuration names, as they stand there."""
    from qwen_vl_axera.npu.schema import load_config

    build = load_config(config)
    named = [entry.calibration_dataset for entry in build.quant.input_configs]
    named += [build.quant.input_sample_dir, build.compiler.input_sample_dir]
    named += [entry.data_path for entry in build.const_processors]
    return [name for name in named if name]


def _check_lengths(
    prefill_len: int,
    kv_cache_len: int,
    parallel: int,
    last_kv_cache_len: Sequence[int],
    build2: bool,
    prefill_step_size: int | None,
) -> None:
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


def build_parser():
    parser = cli.parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True, metavar="{build,llm_build,run,version}")

    build = steps.add_parser("build", help="the vision graph to an axmodel")
    build.add_argument("model", metavar="MODEL.onnx", type=Path)
    build.add_argument("--config", type=Path, required=True, metavar="FILE")
    build.add_argument("--output-dir", type=Path, metavar="DIR", help="default: WORKDIR/build-output")
    build.add_argument("--output-name", metavar="NAME", help="default: the model's, with .axmodel")
    build.add_argument("--deliver", metavar="FILE", type=Path, help="move the axmodel there when it is built")
    build.add_argument("--chip", default="AX650", help="target hardware (default: AX650)")
    cli.add_workdir(build)

    language = steps.add_parser("llm_build", help="the language model to one axmodel per layer")
    cli.add_checkpoint(language)
    language.add_argument("output", metavar="OUT", type=Path)
    cli.add_lengths(language)
    language.add_argument("--parallel", type=cli.positive, default=32, metavar="N", help="default: 32")
    language.add_argument("--chip", default="AX650", help="default: AX650")
    language.add_argument("--llm-build2", action="store_true", help="use llm_build2, where the tool has it")
    language.add_argument("--prefill-step-size", type=cli.positive, metavar="N", help="with --llm-build2")

    simulate = steps.add_parser("run", help="simulate an axmodel on the host")
    simulate.add_argument("model", metavar="MODEL.axmodel", type=Path)
    simulate.add_argument("input_dir", metavar="INPUT_DIR", type=Path)
    simulate.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path)
    simulate.add_argument("--list", type=Path, metavar="FILE", help="names of subdirectories, one a line")
    cli.add_workdir(simulate)

    ask_version = steps.add_parser("version", help="print the tool's version")
    for step in (build, language, simulate, ask_version):
        step.add_argument("--print", action="store_true", help="print the command, run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    tool = find_tool(os.environ.get(VARIABLE))
    if not tool and not args.print:
        raise InputError(f"{tool.name}: set {VARIABLE} to a command or docker:IMAGE, or use --print")
    if not args.print:
        _check_inputs(args, tool)
    command = _command(args, tool)
    if args.print:
        print(command.line())
    else:
        print(f"+ {command.line()}", file=sys.stderr)
        # An orphaned compiler would go on for hours, and write into the next run's files.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        execute(command)
        if args.step == "build" and args.deliver:
            directory, name = command.expects[0]
            move_file(next(directory.glob(name)), args.deliver)
    return cli.EXIT_OK


def _check_inputs(args, tool: Tool) -> None:
    if args.step == "build":
        _existing(args.model, "run export.py first")
        _existing(args.config, "give the build configuration")
    elif args.step == "llm_build":
        load_checkpoint_config(args.ckpt)
        if args.llm_build2 and not has_llm_build2(tool):
            raise InputError(f"{tool.name} has no llm_build2: leave --llm-build2 out, or use a newer release")
    elif args.step == "run":
        _existing(args.model, "build it first")
        if not args.input_dir.is_dir():
            raise InputError(f"{args.input_dir}: expected a directory of .bin files")


def _existing(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: {remedy}")


def _command(args, tool: Tool) -> Command:
    if args.step == "build":
        return build_command(tool, args.model, args.config, args.workdir, args.output_dir, args.output_name, args.chip)
    if args.step == "llm_build":
        return llm_build_command(
            tool,
            args.ckpt,
            args.output,
            prefill_len=args.prefill_len,
            kv_cache_len=args.kv_cache_len,
            parallel=args.parallel,
            chip=args.chip,
            last_kv_cache_len=args.last_kv_cache_len,
            build2=args.llm_build2,
            prefill_step_size=args.prefill_step_size,
        )
    if args.step == "run":
        return run_command(tool, args.model, args.input_dir, args.output_dir, args.list, args.workdir)
    return version_command(tool)


if __name__ == "__main__":
    sys.exit(cli.run(main))
