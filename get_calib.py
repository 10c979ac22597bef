"""Step 4: the calibration set for the NPU compiler.

    python get_calib.py [--inputs PATH...] [--size H W] [--num-samples N] [--format numpy|image] [--seed S]
                        [--workdir DIR]

Reads:  any number of videos, pictures and directories; without --inputs the clip that run_video_by_sec.py ran
        (capture.json in the work directory).
Writes: calib/hidden_states.tar, the archive that config_video.json names; the samples in it as files beside it;
        calib/manifest.json, which says where each comes from. The same inputs give the same bytes.

numpy samples are float32 (1, 3, S, 392) holding 0..255, for the default graph; image samples are PNG files of
the patch image, 392 wide and S high, for a graph of `export.py --input normalized`. Two values of the first sample
are set to 0 and 255, so that the input's range is that of pixels; the manifest says which.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import CAPTURE, NUM_SAMPLES, VIDEO_SIZE


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--inputs", type=Path, nargs="+", metavar="PATH", help="videos, pictures, directories (default: the capture)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="the graph's (default: the capture's, or 308 308)"
    )
    parser.add_argument(
        "--num-samples", type=cli.positive, default=NUM_SAMPLES, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--format", choices=("numpy", "image"), default="numpy", help="default: numpy")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the choice of frames (default: 0)")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from preprocess import MERGE_SIZE, PATCH_SIZE, check_size
    from qwen_vl_axera.calibration.archive import make_calibration_set
    from qwen_vl_axera.calibration.sources import open_capture, open_inputs, pick_steps
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.oracle.record import read_capture

    workdir = cli.existing_workdir(args.workdir)
    capture = read_capture(workdir) if (workdir / CAPTURE).is_file() else None
    patch_size = capture.patch_size if capture else PATCH_SIZE
    try:
        size = check_size(*args.size, patch_size * MERGE_SIZE) if args.size else None
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if args.inputs:
        sources, notes = open_inputs(args.inputs)
        size = size or (capture.size if capture else VIDEO_SIZE)
    else:
        sources, size, notes = open_capture(workdir, size)

    picks = pick_steps(sources, args.num_samples, args.seed)
    if len(picks) < args.num_samples:
        notes.append(f"{args.num_samples} samples asked for, {len(picks)} distinct ones are in the inputs")
    result = make_calibration_set(workdir, sources, picks, size, args.format, patch_size)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    used = len({pick.source for pick in picks})
    print(
        f"{result.archive}: {result.manifest.num_samples} {args.format} samples at {size[0]}x{size[1]} from "
        f"{used} of {len(sources)} inputs, {result.manifest.archive.bytes / 1e6:.1f} MB"
    )
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
