"""A tiny random Qwen2.5-VL checkpoint: the full model class, hub layout, a few hundred kB, seeded."""

import json
from pathlib import Path

from bench.make_checkpoint import flat_config, make_checkpoint, qwen3_config
from bench.plan import QUICK_TEXT, QUICK_VISION
from demo.tokenizer import build_tokenizer
from qwen_vl_axera.files import write_json

VISION = QUICK_VISION
TEXT = QUICK_TEXT | {"num_hidden_layers": 2}


def make_tiny(directory: Path, vision: dict | None = None, text: dict | None = None, seed: int = 0) -> Path:
    """Writes the checkpoint, tokenizer included.

    Args:
        directory: where; made when missing.
        vision: fields of vision_config to set differently.
        text: fields of the language model to set differently.
        seed: of the weights.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ids = build_tokenizer(directory)
    tokens = {name: ids[name] for name in ids if name.endswith("_token_id")}
    config = flat_config(TEXT | (text or {}), VISION | (vision or {}), tokens)
    make_checkpoint(directory, config, seed)
    return directory


QWEN3_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 49,
    "deepstack_visual_indexes": [0, 2],
}
QWEN3_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
    "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}


def make_tiny_qwen3(directory: Path, vision: dict | None = None, text: dict | None = None, seed: int = 0) -> Path:
    """As `make_tiny`, a Qwen3-VL."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ids = build_tokenizer(directory)
    tokens = {name: ids[name] for name in ids if name.endswith("_token_id")}
    path = directory / "preprocessor_config.json"
    half = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(path, json.loads(path.read_text()) | half)
    config = qwen3_config(QWEN3_TEXT | (text or {}), QWEN3_VISION | (vision or {}), tokens)
    make_checkpoint(directory, config, seed)
    return directory
