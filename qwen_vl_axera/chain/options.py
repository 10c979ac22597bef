"""The options of export_video.sh: its arguments and variables, read and checked before its first step.

Standard library only: it also runs before there is an environment.
"""

import argparse
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl_axera.checkpoint.config import model_name, no_checkpoint, package_place
from qwen_vl_axera.compiler.pulsar2 import check_lengths
from qwen_vl_axera.contract import (
    ANSWER,
    CHIP,
    CHIPS,
    CHUNK,
    DEMO_CLIP,
    DEMO_MODEL,
    INPUTS,
    KV_CACHE_LEN,
    MIXED_CONFIG,
    OPSETS,
    PARALLEL,
    PICTURES,
    POST_WEIGHT_TYPES,
    PREFILL_LEN,
    RECIPES,
    WEIGHT_TYPES,
    WINDOW_MODES,
)
from qwen_vl_axera.doors import check_file, check_place, printable
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.towers import TOWERS

ROOT = Path(__file__).resolve().parents[2]
CHUNKED = "chunked"  # a LAST_KV_CACHE_LEN: as many chunks as the cache holds
DEMO = {"SIZE": "168 168", "NUM_FRAMES": "8", "GENERATE": "1"}
SAME_SIZE = "the video's model is of this size and takes pictures, too: leave IMAGE_SIZE out, or set another"


def count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if value < 1:
        raise ValueError("a whole number above 0")
    return value


def rate(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value > 0:
            return value
    raise ValueError("a number above 0")


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def size(text: str) -> tuple[int, int]:
    sides = text.split()
    if len(sides) != 2:
        raise ValueError('height and width, such as "308 308"')
    height, width = map(count, sides)
    try:
        from preprocess import check_size
    except ImportError:  # no numpy yet
        return height, width
    for factor in sorted({tower.factor for tower in TOWERS.values()})[1:]:  # the capture asks the checkpoint's own
        if not (height % factor or width % factor):
            return check_size(height, width, factor)
    return check_size(height, width)


def one_of(choices: Sequence[Any], what: str = "") -> Callable[[str], str]:
    known = [str(choice) for choice in choices]

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(what + (", ".join(known) if what else f"{', '.join(known[:-1])} or {known[-1]}"))
        return text

    return read


def counts(text: str) -> list[int] | str:
    if text == CHUNKED:
        return text
    return [count(part) for part in text.replace(",", " ").split() or [text]]


def words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"words as a shell reads them ({error})") from None


@dataclass(frozen=True)
class Variable:
    """A variable of export_video.sh.

    Attributes:
        read: its text to its value; raises ValueError with what was expected.
        flag: of the steps' scripts that take it.
        default: when it is not set or empty.
    """

    read: Callable[[str], Any]
    flag: str = ""
    default: Any = None


VARIABLES = {
    "SIZE": Variable(size, "--size"),
    "IMAGE_SIZE": Variable(size, "--size"),
    "NUM_FRAMES": Variable(count, "--num-frames"),
    "FPS": Variable(rate, "--fps"),
    "NUM_SAMPLES": Variable(count, "--num-samples"),
    "GENERATE": Variable(switch, "--generate"),
    "WINDOW_MODE": Variable(one_of(WINDOW_MODES), "--window-mode"),
    "INPUT": Variable(one_of(INPUTS), "--input"),
    "OPSET": Variable(one_of(OPSETS), "--opset"),
    "CHIP": Variable(one_of(CHIPS, "a chip that `pulsar2 build` and `pulsar2 llm_build` both know: "), "--chip", CHIP),
    "PREFILL_LEN": Variable(count, "--prefill-len", PREFILL_LEN),
    "KV_CACHE_LEN": Variable(count, "--kv-cache-len", KV_CACHE_LEN),
    "LAST_KV_CACHE_LEN": Variable(counts, "--last-kv-cache-len", ()),
    "WEIGHT_TYPE": Variable(one_of(WEIGHT_TYPES), "--weight-type"),
    "POST_WEIGHT_TYPE": Variable(one_of(POST_WEIGHT_TYPES), "--post-weight-type"),
    "LLM_BUILD2": Variable(switch, "--llm-build2"),
    "PARALLEL": Variable(count, "--parallel", PARALLEL),
    "BUILD_FLAGS": Variable(words, "--extra="),
    "LLM_BUILD_FLAGS": Variable(words, "--extra="),
    "DOCKER_FLAGS": Variable(words),
    "QUANTIZE": Variable(one_of(RECIPES), default=RECIPES[0]),
    "PROBE": Variable(switch, default=True),
}


def flags(values: Mapping[str, Any], *names: str) -> list[str]:
    """The flags that variables stand for, those left out that are not set."""
    result = []
    for name in names:
        flag, value = VARIABLES[name].flag, values[name]
        if value is True:
            result.append(flag)
        elif flag.endswith("="):
            result += [f"{flag}{word}" for word in value or ()]
        elif value not in (None, False, ()):
            result += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return result


@dataclass(frozen=True)
class Run:
    """One run of the chain.

    Attributes:
        checkpoint, workdir, out: directories.
        videos: what the model is captured and calibrated with; only the first is captured.
        config: Pulsar2's build configuration; with QUANTIZE=mixed the searched one.
        fallback: with QUANTIZE=mixed the vendor's, else None.
        values: of VARIABLES.
        mode: "run", "resume" (what is up to date is skipped) or "force".
        dry_run, host_only: as asked for.
        trial: no video was given.
    """

    checkpoint: Path
    workdir: Path
    out: Path
    videos: Sequence[Path]
    config: Path
    values: Mapping[str, Any]
    fallback: Path | None = None
    mode: str = "run"
    dry_run: bool = False
    host_only: bool = False
    trial: bool = False

    @property
    def name(self) -> str:
        """The checkpoint's, which its graphs carry."""
        return model_name(self.checkpoint)


def build_parser() -> argparse.ArgumentParser:
    from qwen_vl_axera import cli

    parser = cli.parser(__doc__)
    parser.prog = "export_video.sh"
    parser.add_argument("paths", nargs="*", metavar="CKPT VIDEO")
    for flag in ("--demo", "--host-only", "--dry-run", "--resume", "--force", "--check"):
        parser.add_argument(flag, action="store_true")
    return parser


def read_run(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Run:
    """Reads the arguments and variables of a run.

    Raises:
        InputError: an argument or a variable is malformed, or two contradict each other.
    """
    given = list(argv)
    end = given.index("--") if "--" in given else len(given)
    args = build_parser().parse_args(given[:end])
    paths = [*args.paths, *given[end + 1 :]]
    if args.resume and args.force:
        raise InputError("--resume and --force exclude each other")
    if args.demo and paths:
        raise InputError(f"--demo brings its own checkpoint and clip; leave out {paths[0]}")
    if args.demo:
        paths, environment = [str(DEMO_MODEL)], DEMO | {name: text for name, text in environment.items() if text}
    if not paths:
        raise InputError("expected a checkpoint directory, or --demo (--help explains)")
    if not paths[0]:
        raise InputError("the checkpoint's path is empty")
    checkpoint = Path(paths[0])
    if not (checkpoint / "config.json").is_file():
        raise InputError(no_checkpoint(checkpoint))
    workdir = Path(environment.get("WORKDIR") or Path.cwd())
    out = workdir / f"{DEMO_MODEL.name}-AX650" if args.demo else package_place(checkpoint, workdir)
    values = read_variables(environment)
    config = ROOT / ("config_video_normalized.json" if values["INPUT"] == "normalized" else "config_video.json")
    fallback = None
    if values["QUANTIZE"] == "mixed":
        fallback, config = config, workdir / MIXED_CONFIG
        if not config.is_file():
            raise InputError(
                f"QUANTIZE=mixed: {config} is missing: run this once with --host-only, then preview_quantization.py "
                f"{checkpoint} --workdir {workdir} --search --evaluate CLIP (one that is not calibrated on)"
            )
    return Run(
        checkpoint=checkpoint,
        workdir=workdir,
        out=Path(environment.get("OUT") or out),
        videos=[Path(path) for path in paths[1:]] or [DEMO_CLIP],
        config=Path(environment.get("CONFIG") or config),
        values=values,
        fallback=fallback,
        mode="resume" if args.resume else "force" if args.force else "run",
        dry_run=args.dry_run,
        host_only=args.host_only,
        trial=len(paths) == 1 and not args.demo,
    )


def read_variables(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The variables' values. An empty one counts as not set.

    Raises:
        InputError: one is malformed, or two contradict each other.
    """
    values = {}
    for name, variable in VARIABLES.items():
        text = environment.get(name, "")
        try:
            values[name] = variable.read(text) if text else variable.default
        except ValueError as error:
            raise InputError(f"{name}={text}: expected {str(error).rpartition('expected ')[2]}") from None
    for name in ("SIZE", "IMAGE_SIZE"):
        if problem := values[name] and misread(values[name]):
            raise InputError(f"{name}: {problem}")
    if values["IMAGE_SIZE"] and values["IMAGE_SIZE"] == values["SIZE"]:
        raise InputError(f"IMAGE_SIZE={environment['IMAGE_SIZE']}: {SAME_SIZE}")
    if values["NUM_FRAMES"] and values["FPS"]:
        raise InputError("NUM_FRAMES and FPS: set one of them")
    if values["QUANTIZE"] == "mixed" and environment.get("CONFIG"):
        raise InputError("CONFIG and QUANTIZE=mixed: set one of them")
    if values["LAST_KV_CACHE_LEN"] == CHUNKED:
        if not environment.get("PREFILL_LEN"):
            values["PREFILL_LEN"] = CHUNK
        end = values["KV_CACHE_LEN"] + 1 - ANSWER
        values["LAST_KV_CACHE_LEN"] = list(range(CHUNK, end + 1, CHUNK))
        if not values["LAST_KV_CACHE_LEN"]:
            raise InputError(f"LAST_KV_CACHE_LEN=chunked: a KV_CACHE_LEN of {CHUNK + ANSWER - 1} is the least")
    lengths = values["PREFILL_LEN"], values["KV_CACHE_LEN"], values["PARALLEL"], values["LAST_KV_CACHE_LEN"]
    check_lengths(*lengths, bool(values["LLM_BUILD2"]))
    return values


def misread(size: tuple[int, int]) -> str | None:
    """Why the board can't have a model of this size; None when it can."""
    try:
        from qwen_vl_axera.board.sizes import misreading
    except ImportError:  # no numpy yet
        return None
    return misreading(size)


def check_places(run: Run) -> None:
    """That what is read is there, and that nothing is written into it.

    Raises:
        InputError: it is not so.
    """
    pictures = [run.workdir / PICTURES] if run.values["IMAGE_SIZE"] else []
    for name, path in (("OUT", run.out), *(("WORKDIR", path) for path in (run.workdir, *pictures))):
        if printable(path, keep="") != str(path):
            raise InputError(f"{name}={path}: expected a name without control characters, in UTF-8")
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(f"{name}={path}: expected a directory, found something else")
        try:
            check_place(path, run.checkpoint)
        except InputError as error:
            raise InputError(f"{name}={error}") from None
        for video in run.videos:
            if video.is_dir() and path.resolve().is_relative_to(video.resolve()):
                raise InputError(f"{name}={path} lies in the input {video}: give it a place of its own")
    for video in run.videos:
        if not video.exists():
            raise InputError(f"{video}: no such file or directory")
    try:
        check_file(run.config)
    except InputError as error:
        raise InputError(f"CONFIG={error}") from None


def make_directories(*paths: Path) -> None:
    """Makes the directories that are missing.

    Raises:
        InputError: one can't be made or written to.
    """
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
            writable = os.access(path, os.W_OK | os.X_OK)
        except OSError as error:
            raise InputError(f"{path} cannot be made ({error.strerror}): use another place") from None
        if not writable:
            raise InputError(f"{path} cannot be written: use another place")
