"""Step 5: the token embeddings for the board, straight from the checkpoint's safetensors.

    python extract_embedding.py CKPT OUT_DIR [--format bfloat16|float32|npy]

Reads:  CKPT (config.json and one tensor, a piece at a time).
Writes: OUT_DIR/model.embed_tokens.weight.bfloat16.bin: what the runtime loads; little-endian, row-major, no header.
        float32: model.embed_tokens.weight.float32.bin, likewise; npy: model.embed_tokens.weight.npy, float32.

bf16 checkpoints are copied bit for bit. float16 and float32 ones are rounded to the nearest bfloat16, ties to even.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera import cli


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="made when missing")
    parser.add_argument("--format", choices=("bfloat16", "float32", "npy"), default="bfloat16")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.board.package import made_before
    from qwen_vl_axera.checkpoint.embedding import embedding_info, extract_embedding
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.files import check_out

    check_out(args.ckpt, args.out_dir)
    checkpoint = Checkpoint(args.ckpt)
    info = embedding_info(checkpoint)
    known = []
    with suppress(InputError):  # no manifest of ours there: nothing is known
        known = made_before(args.out_dir).values()
    path = extract_embedding(checkpoint, args.out_dir, args.format, known)
    exact = info.dtype == "BF16" or args.format != "bfloat16"
    how = "every value kept exactly" if exact else f"rounded to nearest even from {info.dtype}"
    rows, columns = info.shape
    print(f"{path}: {rows} x {columns}, {path.stat().st_size} bytes, {how}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
