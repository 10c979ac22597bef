"""Step 2: export the vision tower, one temporal step at a fixed size, to ONNX.

    python export.py CKPT {video,image} [--size H W]... [--opset 17]
                     [--window-mode grouped|folded|unrolled|dense] [--input pixels|normalized]
                     [--workdir DIR]

Reads:  CKPT (config.json and the vision weights, one tensor at a time), and what run_video_by_sec.py saved:
        rotary angles and windows are derived anew and compared with transformers'.
Writes: NAME_vision.onnx for Pulsar2, NAME_vision_uint8.onnx (the same network as the compiled model takes
        it), and NAME_vision.onnx.data with the weights of both. With several --size: NAME_vision_HxW.onnx.
        `image` writes NAME_vision_image.onnx (448x448 by default) over the same data file.
"""

import sys
from collections.abc import Sequence

from qwen_vl_axera import cli
from qwen_vl_axera.contract import INPUTS, MODES, OPSET, OPSETS, WINDOW_MODES


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("mode", choices=MODES, help="what one step holds: two frames, or a picture twice")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        action="append",
        default=[],
        metavar=("H", "W"),
        help="pixels, multiples of 28 (Qwen3-VL: 32); may be repeated (default: the captured size; image: 448 448)",
    )
    parser.add_argument("--opset", type=int, choices=OPSETS, default=OPSET)
    parser.add_argument(
        "--window-mode",
        choices=WINDOW_MODES,
        default=WINDOW_MODES[0],
        help="how windows are attended to: a batch of windows and heads (default), both on one axis, each window for "
        "itself, or one masked product over all patches",
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default=INPUTS[0],
        help="what the float input holds: 0..255, normalisation folded in (default), or normalised values",
    )
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.board.sizes import misreading
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.graph.export import export_vision

    checkpoint = Checkpoint(args.ckpt)
    workdir = cli.existing_workdir(args.workdir)
    sizes = [tuple(size) for size in args.size]
    form = {"opset": args.opset, "window_mode": args.window_mode, "input": args.input}
    graphs = export_vision(checkpoint, workdir, args.mode, sizes, **form)
    for graph in graphs:
        cli.warn(misreading(graph.spec.size, checkpoint.config.vision.factor) if not graph.spec.uint8 else None)
        (height, width), figures = graph.spec.size, graph.statistics
        print(
            f"{graph.path}: {height}x{width}, {figures['nodes']} nodes "
            f"({figures['reshapes']} reshapes), {figures['moved_bytes'] / 1e6:.1f} MB moved a step"
        )
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
