"""The commands of Pulsar2, AXERA's NPU compiler: printed or run.

    python -m qwen_vl_axera.compiler build NAME_vision.onnx --config config_video.json [--workdir DIR] [--deliver FILE]
    python -m qwen_vl_axera.compiler llm_build CKPT OUT [--prefill-len 512] [--kv-cache-len 1023]
    python -m qwen_vl_axera.compiler run MODEL.axmodel INPUT_DIR OUTPUT_DIR
    python -m qwen_vl_axera.compiler version

The variable PULSAR2 says where the tool is: a command, or docker:IMAGE; without it `pulsar2` is looked for on
PATH. With --print each of them writes its command as one line for a shell instead of running it, and needs no tool.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.compiler.pulsar2 import (
    build_command,
    build_language,
    has_llm_build2,
    llm_build_command,
    run_command,
    version_command,
    version_lines,
)
from qwen_vl_axera.compiler.tool import VARIABLE, Command, Tool, execute, find_tool
from qwen_vl_axera.contract import CHIP, PARALLEL, POST_WEIGHT_TYPES, WEIGHT_TYPES, GraphSpec
from qwen_vl_axera.doors import check_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import move_file


def build_parser():
    parser = cli.parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True, metavar="{build,llm_build,run,version}")

    build = steps.add_parser("build", help="the vision graph to an axmodel")
    build.add_argument("model", metavar="MODEL.onnx", type=Path)
    build.add_argument("--config", type=Path, required=True, metavar="FILE")
    build.add_argument("--output-dir", type=Path, metavar="DIR", help="default: WORKDIR/build-output")
    build.add_argument("--output-name", metavar="NAME", help="default: the model's, with .axmodel")
    build.add_argument("--deliver", metavar="FILE", type=Path, help="move the axmodel there when it is built")
    build.add_argument("--chip", default=CHIP, help="target hardware (default: %(default)s)")
    cli.add_workdir(build)

    language = steps.add_parser("llm_build", help="the language model to one axmodel per layer")
    cli.add_checkpoint(language)
    language.add_argument("output", metavar="OUT", type=Path)
    cli.add_lengths(language)
    language.add_argument("--parallel", type=cli.positive, default=PARALLEL, metavar="N", help="default: %(default)s")
    language.add_argument("--chip", default=CHIP, help="default: %(default)s")
    language.add_argument("--weight-type", choices=WEIGHT_TYPES, help="of the layers (default: the tool's, s8)")
    language.add_argument("--post-weight-type", choices=POST_WEIGHT_TYPES, help="of the head (default: the tool's, s8)")
    language.add_argument("--llm-build2", action="store_true", help="use llm_build2, where the tool has it")
    language.add_argument("--prefill-step-size", type=cli.positive, metavar="N", help="with --llm-build2")

    simulate = steps.add_parser("run", help="simulate an axmodel on the host")
    simulate.add_argument("model", metavar="MODEL.axmodel", type=Path)
    simulate.add_argument("input_dir", metavar="INPUT_DIR", type=Path)
    simulate.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path)
    simulate.add_argument("--list", type=Path, metavar="FILE", help="names of subdirectories, one a line")
    cli.add_workdir(simulate)

    for step in (build, language):
        step.add_argument(
            "--extra", action="append", default=[], metavar="WORD", help="for the tool as it is (--extra=--flag=value)"
        )
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
        if args.step == "version":  # a question: its answer is bounded
            print("\n".join(version_lines(tool)))
            return cli.EXIT_OK
        if args.step == "llm_build":
            build_language(
                args.output,
                args.prefix,
                lambda place: _command(argparse.Namespace(**vars(args) | {"output": place}), tool),
            )
            return cli.EXIT_OK
        if args.step != "build":
            execute(command)
            return cli.EXIT_OK
        from qwen_vl_axera.compiled.log import kept_log

        directory, name = command.expects[0]
        with kept_log(directory) as lines:
            execute(command, lines.append, expected_seconds(args))
        if args.deliver:
            move_file(next(directory.glob(name)), args.deliver)
    return cli.EXIT_OK


def expected_seconds(args: argparse.Namespace) -> float | None:
    """How long a probe lets a build of its size expect to take; None where there was none."""
    from qwen_vl_axera.graph.files import load_graph, read_spec
    from qwen_vl_axera.probe.record import read_probe

    with suppress(InputError):
        probe, spec = read_probe(args.workdir), read_spec(load_graph(args.model), args.model)
        if probe.whole and GraphSpec.from_metadata(probe.spec).size == spec.size:
            return probe.whole.seconds
    return None


def parse_command(argv: Sequence[str]) -> Command:
    """The command that these arguments stand for, as --print shows it."""
    args = build_parser().parse_args([*argv, "--print"])
    return _command(args, find_tool(os.environ.get(VARIABLE)))


def _check_inputs(args, tool: Tool) -> None:
    from qwen_vl_axera.checkpoint.tensors import Checkpoint  # not for --print, which needs no environment

    if args.step == "build":
        _existing(args.model, "run export.py first")
        _existing(args.config, "give the build configuration")
    elif args.step == "llm_build":
        checkpoint = Checkpoint(args.ckpt)
        checkpoint.check_counts()
        args.num_layers = checkpoint.config.text.num_hidden_layers
        args.prefix = checkpoint.tower.board.layers
        if args.llm_build2 and not has_llm_build2(tool):
            raise InputError(f"{tool.name} has no llm_build2: leave --llm-build2 out, or use a newer release")
    elif args.step == "run":
        _existing(args.model, "build it first")
        if not args.input_dir.is_dir():
            raise InputError(f"{args.input_dir}: expected a directory of .bin files")


def _existing(path: Path, remedy: str) -> None:
    if not path.exists():
        raise InputError(f"{path} is missing: {remedy}")
    check_file(path)


def _command(args, tool: Tool) -> Command:
    if args.step == "build":
        return build_command(
            tool, args.model, args.config, args.workdir, args.output_dir, args.output_name, args.chip, extra=args.extra
        )
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
            weight_type=args.weight_type,
            post_weight_type=args.post_weight_type,
            num_layers=0 if args.print else args.num_layers,
            prefix="*" if args.print else args.prefix,
            extra=args.extra,
        )
    if args.step == "run":
        return run_command(tool, args.model, args.input_dir, args.output_dir, args.list, args.workdir)
    return version_command(tool)


if __name__ == "__main__":
    sys.exit(cli.run(main))
