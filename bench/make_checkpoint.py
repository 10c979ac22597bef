"""Make a seeded random checkpoint of the true shape of a Qwen2.5-VL or Qwen3-VL model, for measurements and tests.

    python bench/make_checkpoint.py DIR [--shape 3B|7B|32B|72B|Qwen3-VL-2B|-4B|-8B] [--lm-layers N] [--vision-only]
                                    [--outliers] [--seed S]

Writes: DIR/config.json, model-*.safetensors (bf16) and their index, as on the hub. Tensors are made and
written one at a time. Weights are drawn so that activations keep a sane range and attention is not uniform;
`--outliers` plants massive activations in front of block 31's down_proj, as the real 3B has. The result
computes, but understands nothing: there is no tokenizer, and every caption would be noise.
"""

import json
import math
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera import cli, progress
from qwen_vl_axera.checkpoint.config import load_config
from qwen_vl_axera.checkpoint.expected import expected_tensors, vision_tensors
from qwen_vl_axera.checkpoint.tensors import INDEX_FILE
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, write_json

SHARD_SIZE = 4 << 30  # bytes
OUTLIER_CHANNELS, OUTLIER_SCALE = 3, 40.0
PIECE = 1 << 22  # values drawn at a time

VISION = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "use_cache": True,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
}
# hidden, inner, layers, heads, key-value heads of the language model; vision MLP. The tower is shared.
SHAPES = {
    "3B": (2048, 11008, 36, 16, 2, 3420),
    "7B": (3584, 18944, 28, 28, 4, 3420),
    "32B": (5120, 27648, 64, 40, 8, 3456),
    "72B": (8192, 29568, 80, 64, 8, 3456),
}
# Qwen3-VL: hidden, inner, layers, heads, key-value heads of the language model; depth, hidden, inner of the tower, and
# the blocks that features are taken from.
QWEN3_SHAPES = {
    "Qwen3-VL-2B": ((2048, 6144, 28, 16, 8), (24, 1024, 4096), [5, 11, 17]),
    "Qwen3-VL-4B": ((2560, 9728, 36, 32, 8), (24, 1024, 4096), [5, 11, 17]),
    "Qwen3-VL-8B": ((4096, 12288, 36, 32, 8), (27, 1152, 4304), [8, 16, 24]),
}
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def hub_config(shape: str, lm_layers: int | None = None) -> dict:
    """`config.json` as the hub has it for one of SHAPES, optionally with fewer language-model layers."""
    *sizes, vision_inner = SHAPES[shape]
    text = text_fields(*sizes, 151936 if shape == "3B" else 152064, lm_layers)
    text["tie_word_embeddings"] = shape == "3B"
    vision = {"intermediate_size": vision_inner, "out_hidden_size": sizes[0]}
    return flat_config(text, vision, TOKENS)


def text_fields(
    hidden: int, inner: int, layers: int, heads: int, key_value_heads: int, vocabulary: int, lm_layers: int | None
) -> dict:
    """The language model's fields; `lm_layers`, where given, in the place of `layers`."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers if lm_layers is None else lm_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
    }


def flat_config(text: dict, vision: dict, tokens: dict) -> dict:
    """The hub's flat layout: the language model's fields at the top, the tower's in `vision_config`."""
    model = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return model | {"torch_dtype": "bfloat16"} | tokens | TEXT | text | {"vision_config": VISION | vision}


def qwen3_hub_config(shape: str, lm_layers: int | None = None) -> dict:
    """`config.json` of one of QWEN3_SHAPES."""
    sizes, (depth, width, vision_inner), taps = QWEN3_SHAPES[shape]
    text = text_fields(*sizes, 151936, lm_layers)
    vision = {"depth": depth, "hidden_size": width, "intermediate_size": vision_inner, "out_hidden_size": sizes[0]}
    vision |= {"deepstack_visual_indexes": taps}
    return qwen3_config(text, vision, TOKENS, tied=shape != "Qwen3-VL-8B")


def qwen3_config(text: dict, vision: dict, tokens: dict, tied: bool = True) -> dict:
    """Qwen3-VL's layout: the language model's fields in `text_config`, the tower's in `vision_config`."""
    sections = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    language = {"model_type": "qwen3_vl_text", "head_dim": 128, "attention_bias": False, "hidden_act": "silu"}
    language |= {"max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "rope_theta": 5000000}
    language |= {"rope_scaling": sections}
    tower = {"model_type": "qwen3_vl", "num_heads": 16, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2}
    tower |= {"temporal_patch_size": 2, "num_position_embeddings": 2304, "hidden_act": "gelu_pytorch_tanh"}
    model = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    ends = {name: number for name, number in tokens.items() if name in ("bos_token_id", "eos_token_id")}
    model |= {"tie_word_embeddings": tied, "text_config": language | ends | text, "vision_config": tower | vision}
    return model | {name: number for name, number in tokens.items() if name not in ends}


def make_checkpoint(
    directory: Path, config: dict, seed: int = 0, outliers: bool = False, vision_only: bool = False
) -> None:
    """Writes a random checkpoint.

    Args:
        directory: made when missing; must not hold a checkpoint already.
        config: the content of config.json.
        seed: each tensor is drawn from this and its own name, so shapes can change one by one.
        outliers: scale a few channels in front of the last block's down_proj.
        vision_only: leave the language model out; enough for the steps that only read the vision tower.

    Raises:
        InputError: the directory already holds safetensors files.
    """
    directory = Path(directory)
    if directory.is_dir() and any(directory.glob("*.safetensors")):
        raise InputError(f"{directory}: already holds a checkpoint; give an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    model = load_config(directory)
    shards = list(split(vision_tensors(model) if vision_only else expected_tensors(model)))
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    total = sum(2 * math.prod(shape) for shard in shards for shape in shard.values())
    last_block = f"visual.blocks.{model.vision.depth - 1}.mlp" if outliers else None
    with progress.stage("checkpoint", total) as stage:
        for name, shard in zip(names, shards, strict=True):
            write_shard(directory / name, shard, seed, last_block, stage)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def split(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shards of at most SHARD_SIZE bytes, in order."""
    shard, size = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if shard and size + nbytes > SHARD_SIZE:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def write_shard(path: Path, shapes: dict, seed: int, outlier_mlp: str | None, stage: progress.Stage) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)  # data begins on a multiple of 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            scale_rows = outlier_mlp and name.startswith(outlier_mlp) and "down_proj" not in name
            for values in draw(name, shape, seed, OUTLIER_SCALE if scale_rows else 1.0):
                stage.advance(file.write(to_bfloat16(values).tobytes()))


def draw(name: str, shape: tuple[int, ...], seed: int, first_rows_scale: float = 1.0) -> Iterator[np.ndarray]:
    """One tensor's float32 values, in pieces; its first OUTLIER_CHANNELS rows scaled.

    Norms are near 1, biases small, and matrices keep the variance of their input; q and k are larger, since
    attention that is nearly uniform would hide wrong windows and wrong positions.
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    fan_in = math.prod(shape[1:])
    offset, deviation = 0.0, 1 / math.sqrt(fan_in)
    if len(shape) == 1:
        norm = ("norm" in name or "ln_q" in name) and not name.endswith(".bias")
        offset, deviation = (1.0, 0.1) if norm else (0.0, 0.1)
    elif "pos_embed" in name:
        deviation = 0.5
    elif "embed_tokens" in name:
        deviation = 0.02
    elif ".qkv." in name or ".q_proj." in name or ".k_proj." in name:
        deviation *= 1.5
    elif ".down_proj." in name or ".proj." in name or ".o_proj." in name:
        deviation *= 0.5
    rows, row = shape[0], fan_in
    step = max(1, PIECE // row)
    for start in range(0, rows, step):
        values = random.standard_normal((min(step, rows - start), row), np.float32) * np.float32(deviation)
        values += np.float32(offset)
        values[: max(0, OUTLIER_CHANNELS - start)] *= np.float32(first_rows_scale)
        yield values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded to nearest, ties to even; finite values only."""
    bits = values.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES | QWEN3_SHAPES), default="3B")
    parser.add_argument("--lm-layers", type=int, metavar="N", help="fewer language-model layers (default: all)")
    parser.add_argument("--vision-only", action="store_true", help="no language model, not even its embeddings")
    parser.add_argument("--outliers", action="store_true", help="massive activations in block 31's down_proj")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    make = qwen3_hub_config if args.shape in QWEN3_SHAPES else hub_config
    config = make(args.shape, args.lm_layers)
    make_checkpoint(args.directory, config, args.seed, args.outliers, args.vision_only)
    size = sum(path.stat().st_size for path in args.directory.glob("*.safetensors"))
    print(f"{args.directory}: random {args.shape} checkpoint, {size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
