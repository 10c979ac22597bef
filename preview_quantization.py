"""The compiled tower simulated: what 8 and 16 bits cost on your weights and frames, and which layers tolerate 8.

    python preview_quantization.py CKPT [--config FILE]... [--evaluate PATH...] [--search] [--target-loss X]
                                   [--generate] [--unfused {norm,activation}...] [--json] [--workdir DIR]

Reads:  NAME_vision.onnx and its data, calib/hidden_states.tar; --evaluate's frames, or the captured clip's. Frames
that were calibrated on are refused. Writes: quantization.json; with --search config_video_mixed.json, for
`preflight.py --config` and `pulsar2 build`. No compiler is run: the assumptions are in quantization.json.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a build configuration; may be repeated",
    )
    parser.add_argument(
        "--evaluate", type=Path, nargs="+", default=[], metavar="PATH", help="clips to judge on (default: the captured)"
    )
    parser.add_argument("--search", action="store_true", help="find the largest share of 8 bits within --target-loss")
    parser.add_argument(
        "--target-loss", type=loss, default=0.005, metavar="X", help="cosine below the floor (default: 0.005)"
    )
    parser.add_argument(
        "--unfused",
        nargs="+",
        choices=("norm", "activation"),
        default=[],
        help="assume that the compiler leaves these apart",
    )
    parser.add_argument("--generate", action="store_true", help="also answer the questions under each configuration")
    cli.add_text(parser, prompts=2)
    parser.add_argument("--json", action="store_true", help="print quantization.json instead of the table")
    cli.add_workdir(parser)
    return parser


def loss(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.probe.measured import find_trace
    from qwen_vl_axera.quantization.preview import Request, preview
    from qwen_vl_axera.quantization.table import table

    checkpoint, workdir = Checkpoint(args.ckpt), cli.existing_workdir(args.workdir)
    request = Request(
        checkpoint,
        workdir,
        configs=args.config,
        evaluate=args.evaluate,
        unfused=args.unfused,
        search=args.search,
        target_loss=args.target_loss,
        trace=find_trace(checkpoint.name, workdir, args.unfused),
        prompts=args.prompt if args.generate else (),
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        device=cli.device(args) if args.generate else "cpu",
    )
    report = preview(request)
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else table(report))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
