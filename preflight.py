"""Before the NPU builds: is everything in place, and does it fit together?

    python preflight.py CKPT [--workdir DIR] [--config FILE] [--onnx FILE] [--prompt T]
                        [--prefill-len N] [--kv-cache-len N] [--last-kv-cache-len N]... [--weight-type TYPE]
                        [--chip CHIP] [--out DIR] [--json]

Reads:  CKPT (headers only), in the work directory the graph, calib/hidden_states.tar and capture.json, and the
        build configuration (default: config_video.json, or config_video_normalized.json, as the graph needs).
Writes: preflight.json in the work directory. With --json the same is printed instead of the tables: the checks, and
what the model will cost on the board (memory, seconds, bytes), each figure with how well it is known.

Exit code 1 when a check failed: the build would end badly, perhaps after hours.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import CHIP, CHIPS, PREFLIGHT, WEIGHT_TYPES


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="build configuration")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="the graph (default: what export.py wrote)")
    parser.add_argument("--prompt", default="", metavar="T", help="the question (default: the documented one)")
    cli.add_lengths(parser)
    parser.add_argument(
        "--weight-type", choices=WEIGHT_TYPES, help="of the language model's layers (default: the compiler's, s8)"
    )
    parser.add_argument("--chip", choices=CHIPS, default=CHIP, help="target hardware (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="what goes to the board (default: CKPT-AX650)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.board.costs import table as costs_table
    from qwen_vl_axera.doors import check_place
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.files import plain, write_record
    from qwen_vl_axera.preflight.checks import Outcome, table
    from qwen_vl_axera.preflight.plan import Preflight, plan_from_environment

    check_place(args.workdir)
    plan = plan_from_environment(
        checkpoint=args.ckpt,
        workdir=args.workdir,
        config=args.config,
        graph=args.onnx,
        prompt=args.prompt,
        prefill_len=args.prefill_len,
        kv_cache_len=args.kv_cache_len,
        last_kv_cache_len=args.last_kv_cache_len,
        weight_type=args.weight_type or WEIGHT_TYPES[0],
        chip=args.chip,
        out=args.out,
    )
    if plan.out and plan.out.exists() and not plan.out.is_dir():
        raise InputError(f"--out {plan.out}: expected a directory, found something else")
    preflight = Preflight(plan)
    checks = list(preflight.run())
    outcome = Outcome.of(checks, preflight.board)
    write_record(args.workdir / PREFLIGHT, Outcome, outcome)
    if args.json:
        print(json.dumps(plain(outcome), indent=2, ensure_ascii=False))
    else:
        print(table(outcome.checks))
        if outcome.board:
            print(f"\n{costs_table(outcome.board)}")
    return cli.EXIT_OK if outcome.passed else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
