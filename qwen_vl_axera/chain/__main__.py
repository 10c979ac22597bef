"""The chain of export_video.sh: its variables checked, its steps run or skipped, what is left written down.

    python -m qwen_vl_axera.chain check      CKPT [VIDEO...] --workdir DIR --out DIR --config FILE
    python -m qwen_vl_axera.chain step NAME  CKPT [VIDEO...] ... [--vision video|image] [--mode M] -- COMMAND...
    python -m qwen_vl_axera.chain flags      lengths|BUILD_FLAGS|LLM_BUILD_FLAGS
    python -m qwen_vl_axera.chain form       --workdir DIR
    python -m qwen_vl_axera.chain pictures   capture|calibration VIDEO...
    python -m qwen_vl_axera.chain left       --workdir DIR --form FORM [--print] -- COMMAND... [-- COMMAND...]...

Reads the variables that `export_video.sh --help` lists. `check` prints a line for the compiler's version, when there is
one to be asked; `flags` the flags that variables stand for, and `pictures` what the picture model is captured or
calibrated with, each word ended by a null character; `form` the form of window attention that a probe found to work, or
the default one; `left` the script of what is left to do. A step writes .steps/NAME.json and its line in steps.json, in
WORKDIR or, for the picture model, in WORKDIR/pictures; messages go to stderr. Exit code: the command's; 1 when it ended
well without making its outputs; 2 for bad input; 143 when it was ended.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.chain.pictures import capture_flags, remove_other_graphs, with_pictures
from qwen_vl_axera.chain.steps import NAMES, Place, declared
from qwen_vl_axera.chain.variables import (
    SAME_SIZE,
    check_config,
    check_directories,
    check_outputs,
    extra_flags,
    length_flags,
    make_directories,
    read_variables,
)
from qwen_vl_axera.contract import LEFT_TO_DO, MODES, PROBE, STAMPS, STEPS, WINDOW_MODES
from qwen_vl_axera.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{check,step,flags,form,pictures,left}")
    names = ("check", "step", "flags", "form", "pictures", "left")
    check, step, flags, form, pictures, left = (tasks.add_parser(name) for name in names)
    flags.add_argument("what", choices=("lengths", "BUILD_FLAGS", "LLM_BUILD_FLAGS"))
    pictures.add_argument("purpose", choices=("capture", "calibration"))
    pictures.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    step.add_argument("name", choices=NAMES)
    step.add_argument("--vision", default=MODES[0], choices=MODES, help="which vision model")
    step.add_argument("--mode", default="run", choices=("run", "resume", "force"))
    step.add_argument("--compiler", default="", metavar="VERSION", help="what `pulsar2 version` says")
    left.add_argument("--form", choices=WINDOW_MODES, required=True, help="that was exported")
    left.add_argument("--print", action="store_true", help="print the script instead of writing it")
    for task in (form, left, check, step):
        cli.add_workdir(task)
    for task in (check, step):
        cli.add_checkpoint(task)
        task.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
        task.add_argument("--out", type=Path, required=True, metavar="DIR")
        task.add_argument("--config", type=Path, required=True, metavar="FILE")
    check.add_argument("--make", action="store_true", help="the directories")
    check.add_argument("--ask", action="store_true", help="the compiler for its version")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args, command = build_parser().parse_args(given[:end]), given[end + 1 :]
    values = read_variables()
    if args.task == "flags":
        return print_words(length_flags(values) if args.what == "lengths" else extra_flags(values, args.what))
    if args.task == "pictures":
        return print_words(picture_words(args.purpose, args.videos))
    if args.task == "form":
        print(probed_form(args.workdir))
        return cli.EXIT_OK
    if args.task == "left":
        return leave(args.workdir, command, args.form, args.print)
    place = Place(args.ckpt, args.workdir, args.out, args.videos, args.config, values["PREFILL_LEN"])
    if args.task == "check":
        places = [place, *([replace(place, mode="image")] if values["IMAGE_SIZE"] else [])]
        for one in places:
            check_directories(one)
            check_outputs(one)
        check_config(args.config)
        if args.make:
            make_directories(*(one.here / STAMPS for one in places), args.out)
        if args.ask:
            print_compiler()
        return cli.EXIT_OK

    from qwen_vl_axera.chain.runner import run_step

    place = replace(place, mode=args.vision)
    if (args.name, args.vision) == ("export", "video") and values["IMAGE_SIZE"]:
        remove_other_graphs(replace(place, mode="image"), values["INPUT"])
    if (args.name, args.vision) == ("capture", "image"):
        check_image_size(values["IMAGE_SIZE"], args.workdir)
    step = declared(args.name, place, command)
    return run_step(step, place.here, place.here / STEPS, args.mode, args.compiler)


def print_words(words: Sequence[str]) -> int:
    """For a shell, which splits at NUL: a terminal would be shown escapes."""
    sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))
    return cli.EXIT_OK


def picture_words(purpose: str, inputs: list[Path]) -> list[str]:
    """What the picture model is captured with, as flags, or calibrated with; says where there are no pictures."""
    if purpose == "capture":
        return capture_flags(inputs)
    found = with_pictures(inputs)
    if not found:
        print("note: no picture among the inputs: the videos' frames calibrate the picture model", file=sys.stderr)
    return [str(path) for path in found or inputs]


def check_image_size(size: tuple[int, int], workdir: Path) -> None:
    """That the picture model is not the video's once more, whose size may only now be known.

    Raises:
        InputError: it is.
    """
    from qwen_vl_axera.oracle.record import read_capture

    if read_capture(workdir).size == size:
        raise InputError(f"IMAGE_SIZE={size[0]} {size[1]}: {SAME_SIZE}")


def print_compiler() -> None:
    from qwen_vl_axera.compiler.pulsar2 import version
    from qwen_vl_axera.compiler.tool import VARIABLE, find_tool

    if tool := find_tool(os.environ.get(VARIABLE)):
        print(version(tool))


def probed_form(workdir: Path) -> str:
    """The form that probe.json chose, so that a run which comes after it does not export twice."""
    if (workdir / PROBE).is_file():
        with suppress(InputError, ImportError):  # no environment yet: a dry run
            from qwen_vl_axera.probe.record import read_probe

            return read_probe(workdir).form or WINDOW_MODES[0]
    return WINDOW_MODES[0]


def leave(workdir: Path, words: list[str], form: str, only_print: bool) -> int:
    from qwen_vl_axera.chain.left_to_do import left_to_do, write_script

    steps = [list(step) for separates, step in groupby(words, "--".__eq__) if not separates]
    ask = [sys.executable, "-P", "-m", "qwen_vl_axera.chain", "form", "--workdir", str(workdir)]
    text = left_to_do(steps, ask, form)
    if not only_print:
        write_script(workdir / LEFT_TO_DO, text)
    sys.stdout.write(text)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
