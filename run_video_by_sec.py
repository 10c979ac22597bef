"""Step 1: run transformers' own vision tower over a clip, one temporal step (two frames) at a time.

    python run_video_by_sec.py CKPT [--video PATH...] [--fps F] [--num-frames N]
                               [--max-pixels N | --size H W] [--generate] [--prompt T...] [--max-new-tokens N]
                               [--dtype D] [--device D] [--workdir DIR]

Reads:  CKPT (only the vision weights, unless --generate) and a video file, a directory of frames or pictures
        (default: the demo clip of assets/).
Writes: hidden_states.pth, rotary_pos_emb.pth, cu_seqlens.pth, cu_window_seqlens.pth, window_index.pth (one
        step's), pixels.npy, vit_out.npy (the whole clip's), vit_exact.npy (two steps', computed at once in
        float64), capture.json. It checks that a step's tokens do not depend on other steps, and that all steps
        share one layout.
"""

import sys
from collections.abc import Sequence

from qwen_vl_axera import cli
from qwen_vl_axera.contract import DEMO_CLIP


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    cli.add_video(parser, "the demo clip")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--max-pixels", type=int, metavar="N", help="largest area of a frame (default: 308·308)")
    size.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="exact size, multiples of 28 (Qwen3-VL: 32)"
    )
    parser.add_argument("--generate", action="store_true", help="also let the model describe the video")
    cli.add_text(parser, prompts=1)
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.board.sizes import misreading
    from qwen_vl_axera.checkpoint.expected import check_vision
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.frames.media import frame_size, load_clip
    from qwen_vl_axera.oracle.record import check_outputs, read_oracle
    from qwen_vl_axera.oracle.run import run_clip

    checkpoint = Checkpoint(args.ckpt)
    check_vision(checkpoint, args.size)
    workdir = cli.existing_workdir(args.workdir)
    check_outputs(workdir, checkpoint.tower.layout_tensors)
    clip = load_clip(args.video or [DEMO_CLIP], num_frames=args.num_frames, fps=args.fps)
    factor = checkpoint.config.vision.factor
    size = frame_size(clip, size=args.size and tuple(args.size), max_pixels=args.max_pixels, factor=factor)
    check_vision(checkpoint, size)
    if args.generate:
        from qwen_vl_axera.language.chat import load_tokenizer
        from qwen_vl_axera.language.model import check_language

        check_language(checkpoint)
        load_tokenizer(args.ckpt)  # missing files are said before the work, not after it
    if assumed := checkpoint.config.vision.assumed:
        print(f"note: config.json leaves out {assumed}: taken from transformers' class", file=sys.stderr)
    if not args.video:
        print(f"note: no --video: the demo clip, {DEMO_CLIP}", file=sys.stderr)
    cli.warn(misreading(size, factor))
    device = cli.device(args)
    capture = run_clip(checkpoint, workdir, clip, size, device)
    steps, rows, columns = capture.grid_thw
    print(
        f"{len(capture.indices)} frames of {size[0]}x{size[1]} at {capture.sample_fps:g} fps: {steps} steps of "
        f"{rows}x{columns} patches, {capture.num_tokens} tokens; a step's tokens do not depend on other steps"
    )
    if args.generate:
        from qwen_vl_axera.language.chat import LanguageModel, build_prompt

        model = LanguageModel(args.ckpt, args.dtype, device)
        features = read_oracle(workdir, capture)
        for text in args.prompt:
            prompt = build_prompt(model.tokenizer, model.config, text, capture.grid_thw, capture.second_per_grid_ts)
            answer = model.generate(prompt, features.reshape(-1, features.shape[-1]), args.max_new_tokens)
            print(f"{text}\n  {model.text(answer)}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
