"""The chain of export_video.sh: its variables checked, its steps run or skipped, what is left written down.

    python -m qwen_vl_axera.chain check      CKPT [VIDEO...] --workdir DIR --out DIR --config FILE
    python -m qwen_vl_axera.chain step NAME  CKPT [VIDEO...] ... [--mode run|resume|force] -- COMMAND...
    python -m qwen_vl_axera.chain flags      lengths|BUILD_FLAGS|LLM_BUILD_FLAGS
    python -m qwen_vl_axera.chain form       --workdir DIR
    python -m qwen_vl_axera.chain left       CKPT [VIDEO...] ... [--print] -- BUILD... -- LLM_BUILD... -- PACKAGE...

Reads the variables that `export_video.sh --help` lists. `check` prints a line for the compiler's version, when there is
one to be asked; `flags` the flags that variables stand for, each ended by a null character; `form` the form of window
attention that a probe found to work, or the default one. A step writes WORKDIR/.steps/NAME.json and its line in
WORKDIR/steps.json; messages go to stderr. Exit code: the command's; 1 when it ended well without making its outputs; 2
for bad input; 143 when it was ended.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.chain.steps import NAMES, Place, declared
from qwen_vl_axera.chain.variables import (
    check_directories,
    extra_flags,
    length_flags,
    make_directories,
    read_variables,
)
from qwen_vl_axera.contract import LEFT_TO_DO, PROBE, STAMPS, STEPS, WINDOW_MODES
from qwen_vl_axera.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{check,step,flags,form,left}")
    names = ("check", "step", "flags", "form", "left")
    check, step, flags, form, left = (tasks.add_parser(name) for name in names)
    flags.add_argument("what", choices=("lengths", "BUILD_FLAGS", "LLM_BUILD_FLAGS"))
    cli.add_workdir(form)
    step.add_argument("name", choices=NAMES)
    step.add_argument("--mode", default="run", choices=("run", "resume", "force"))
    step.add_argument("--compiler", default="", metavar="VERSION", help="what `pulsar2 version` says")
    left.add_argument("--print", action="store_true", help="print the script instead of writing it")
    for task in (check, step, left):
        cli.add_checkpoint(task)
        task.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
        cli.add_workdir(task)
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
        found = length_flags(values) if args.what == "lengths" else extra_flags(values, args.what)
        # For a shell, which splits at NUL: a terminal would be shown escapes.
        sys.stdout.buffer.write(b"".join(word.encode() + b"\0" for word in found))
        return cli.EXIT_OK
    if args.task == "form":
        print(probed_form(args.workdir))
        return cli.EXIT_OK
    place = Place(args.ckpt, args.workdir, args.out, args.videos, args.config, values["PREFILL_LEN"])
    if args.task == "check":
        check_directories(place)
        if not args.config.is_file():
            raise InputError(f"CONFIG={args.config}: no such file")
        if args.make:
            make_directories(args.workdir / STAMPS, args.out)
        if args.ask:
            print_compiler()
        return cli.EXIT_OK
    if args.task == "left":
        return leave(place, command, args.print)

    from qwen_vl_axera.chain.runner import run_step

    step = declared(args.name, place, command)
    return run_step(step, args.workdir, args.workdir / STEPS, args.mode, args.compiler)


def print_compiler() -> None:
    from qwen_vl_axera.compiler.pulsar2 import version
    from qwen_vl_axera.compiler.tool import VARIABLE, find_tool

    if tool := find_tool(os.environ.get(VARIABLE)):
        print(version(tool))


def probed_form(workdir: Path) -> str:
    """The form that probe.json chose, so that a run which comes after it does not export twice."""
    if (workdir / PROBE).is_file():
        with suppress(InputError, ImportError):  # no environment yet: a dry run
            from qwen_vl_axera.compiler.record import read_probe

            return read_probe(workdir).form or WINDOW_MODES[0]
    return WINDOW_MODES[0]


def leave(place: Place, command: list[str], only_print: bool) -> int:
    from qwen_vl_axera.chain.left_to_do import left_to_do, write_script
    from qwen_vl_axera.compiler.__main__ import parse_command

    first = command.index("--")
    second = command.index("--", first + 1)
    build, language = parse_command(command[:first]), parse_command(command[first + 1 : second])
    text = left_to_do(place, build, language, command[second + 1 :])
    if not only_print:
        write_script(place.workdir / LEFT_TO_DO, text)
    sys.stdout.write(text)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
