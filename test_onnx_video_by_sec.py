"""Step 3: run the ONNX graphs in the vision tower's place, step by step, and compare with transformers.

    python test_onnx_video_by_sec.py CKPT [--video PATH...] [--onnx FILE...] [--report FILE]
                                     [--generate] [--prompt T...] [--max-new-tokens N] [--dtype D] [--device D]
                                     [--language CKPT] [--num-frames N] [--fps F] [--workdir DIR]

Reads:  CKPT, pixels.npy, vit_out.npy and vit_exact.npy of run_video_by_sec.py, NAME_vision.onnx and
        NAME_vision_uint8.onnx. With --video, another clip is run through transformers first (into WORKDIR/check).
Writes: fidelity.json, and the errors of each token for the report in fidelity_tokens.npz (FILE_tokens.npz beside
        FILE). Exit code 1 when an error is not what float32 rounding makes of it, when a graph is not what export.py
        makes of CKPT, or, with --generate, when a token differs.
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
    parser.add_argument(
        "--onnx", type=Path, nargs="+", metavar="FILE", help="the graphs (default: both of export.py video)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: fidelity.json in the work directory")
    parser.add_argument("--generate", action="store_true", help="also compare greedy text, token by token")
    cli.add_text(parser, prompts=2)
    parser.add_argument("--language", type=Path, metavar="CKPT", help="who answers: of a GPTQ checkpoint the original")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.checkpoint.expected import check_same_tower, check_vision
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.doors import check_output
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.fidelity.gate import capture_other_clip, find_graphs, verify
    from qwen_vl_axera.fidelity.record import Fidelity, is_fidelity
    from qwen_vl_axera.fidelity.tables import fidelity_table, text_table
    from qwen_vl_axera.fidelity.tokens import is_token_errors, token_errors_path
    from qwen_vl_axera.files import check_ours, check_report, write_record
    from qwen_vl_axera.graph.files import load_graph, read_spec
    from qwen_vl_axera.language.text import read_questions
    from qwen_vl_axera.oracle.record import read_capture

    if not args.video and (args.num_frames or args.fps):
        raise InputError("--num-frames and --fps say how --video is sampled: give --video, too")
    checkpoint = Checkpoint(args.ckpt)
    check_vision(checkpoint)
    workdir = cli.made_workdir(args.workdir, "export.py")
    report_file = args.report or workdir / FIDELITY
    tokens_file = token_errors_path(report_file)
    if args.report:
        check_report(args.ckpt, args.report, ".json", is_fidelity)
        check_ours(tokens_file, is_token_errors)
    for file in (report_file, tokens_file):
        check_output(file)
    device = cli.device(args) if args.video or args.generate else "cpu"
    graphs = args.onnx or find_graphs(checkpoint.name, workdir)
    for graph in graphs:
        read_spec(load_graph(graph), graph)  # a mistyped one costs no earlier verdict
    clip_dir = workdir
    if args.video:
        clip_dir = capture_other_clip(checkpoint, workdir, graphs[0], args.video, args.num_frames, args.fps, device)
    capture = read_capture(clip_dir)
    language = Checkpoint(args.language) if args.language else checkpoint
    check_same_tower(checkpoint, language)
    questions = read_questions(language, capture, args.prompt) if args.generate else None  # nor does this
    for file in (report_file, tokens_file):
        file.unlink(missing_ok=True)  # an earlier verdict must not outlive a run that ends badly
    report = verify(
        checkpoint,
        clip_dir,
        graphs,
        report_file,
        questions,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        device=device,
    )
    write_record(report_file, Fidelity, report)
    print(fidelity_table(report))
    if report.text:
        print(text_table(report.text))
    print("passed" if report.passed else "FAILED: the graph is not transformers' tower")
    return cli.EXIT_OK if report.passed else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
