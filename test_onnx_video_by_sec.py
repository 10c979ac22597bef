"""Step 3: run the ONNX graphs in the vision tower's place, step by step, and compare with transformers.

    python test_onnx_video_by_sec.py CKPT [--video PATH...] [--onnx FILE] [--report FILE]
                                     [--generate] [--prompt T] [--max-new-tokens N] [--workdir DIR]

Reads:  CKPT, pixels.npy and vit_out.npy of run_video_by_sec.py, NAME_vision.onnx and NAME_vision_uint8.onnx.
        With --video, another clip is run through transformers first (into WORKDIR/check).
Writes: fidelity.json. Exit code 1 when a threshold is missed, or, with --generate, when a token differs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import FIDELITY


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    cli.add_video(parser, "the captured clip")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="one graph (default: both of export.py video)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: fidelity.json in the work directory")
    parser.add_argument("--generate", action="store_true", help="also compare greedy text, token by token")
    cli.add_text(parser, prompts=2)
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.fidelity.gate import capture_other_clip, find_graphs, verify
    from qwen_vl_axera.fidelity.metrics import table, text_table
    from qwen_vl_axera.files import write_json

    if not args.video and (args.num_frames or args.fps):
        raise InputError("--num-frames and --fps say how --video is sampled: give --video, too")
    checkpoint = Checkpoint(args.ckpt)
    workdir = cli.made_workdir(args.workdir, "export.py")
    report_file = args.report or workdir / FIDELITY
    if not report_file.parent.is_dir():
        raise InputError(f"--report {report_file}: there is no directory {report_file.parent}")
    device = cli.device(args) if args.video or args.generate else "cpu"
    graphs = [args.onnx] if args.onnx else find_graphs(checkpoint.name, workdir)
    clip_dir = workdir
    if args.video:
        clip_dir = capture_other_clip(checkpoint, workdir, graphs[0], args.video, args.num_frames, args.fps, device)
    report_file.unlink(missing_ok=True)  # an earlier verdict must not outlive a run that ends badly
    report = verify(
        checkpoint,
        clip_dir,
        graphs,
        prompts=args.prompt if args.generate else (),
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        device=device,
    )
    write_json(report_file, report)
    print(table(report))
    if report["text"]:
        print(text_table(report["text"]))
    print("passed" if report["passed"] else "FAILED: the graph is not transformers' tower")
    return cli.EXIT_OK if report["passed"] else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
