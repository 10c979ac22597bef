"""transformers' own exporter over the same vision tower, for comparison.

    python bench/peers.py CKPT OUT_DIR --size H W

Writes: OUT_DIR/model.onnx (and its data file) and OUT_DIR/inputs.npz: what that graph is to be fed, of which only
the pixels are not fixed by the size. Needs transformers 5.23 and onnxscript. Exit code 1 when the exporter fails;
the last line on stderr is then the error's first line, as it came.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera import cli


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("ckpt", metavar="CKPT", type=Path)
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    import numpy as np
    import torch
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.towers.qwen2_5_vl.reference import load_tower

    checkpoint = Checkpoint(args.ckpt)
    vision = checkpoint.config.vision
    rows, columns = vision.grid(tuple(args.size))
    patches = torch.rand(rows * columns, vision.in_channels * vision.patch_pixels)
    inputs = {"hidden_states": patches, "grid_thw": torch.tensor([[1, rows, columns]])}
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        exported = OnnxExporter().export(load_tower(checkpoint, checkpoint.config.vision), inputs, config=OnnxConfig())
        exported.save_pretrained(args.out)
    except Exception as error:  # whatever it raises is the result
        print(f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}", file=sys.stderr)
        return 1
    # The exporter has put in what it can't trace: positions, windows, segment bounds.
    tensors = {name: value.numpy() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    np.savez(args.out / "inputs.npz", **tensors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
