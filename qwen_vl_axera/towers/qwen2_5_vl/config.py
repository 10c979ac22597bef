"""The tower's shape as `vision_config` of config.json has it, and the tensors that follow from it.

Two spellings are in use: `in_chans` (the hub) and `in_channels` (transformers).
"""

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess import CHANNELS, MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_field
from qwen_vl_axera.towers.shape import VisionShape

ROPE_THETA = 10000.0  # a constant in every released model
# What transformers' class has: its save_pretrained leaves out what equals these (seen in 4.49).
DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 4,
}
# What preprocess.py makes, on the host and on the board: another patch is another program.
FIXED = {
    "patch_size": PATCH_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "in_channels": CHANNELS,
}


@dataclass(frozen=True)
class VisionConfig(VisionShape):
    """The vision tower's shape. Lengths in pixels or patches as named; `window_size` in pixels.

    `assumed` names the fields of DEFAULTS that config.json leaves out, with their values; the stored shapes must
    confirm them.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    patch_size: int = PATCH_SIZE
    temporal_patch_size: int = TEMPORAL_PATCH_SIZE
    spatial_merge_size: int = MERGE_SIZE
    window_size: int = 112
    in_channels: int = CHANNELS
    tokens_per_second: int = 2
    rms_norm_eps: float = 1e-6
    assumed: str = field(default="", compare=False)


def read_config(path: Path, raw: dict[str, Any]) -> VisionConfig:
    """Reads `vision_config`.

    Args:
        path: of config.json, for messages.
        raw: the object.

    Raises:
        InputError: a field is absent or of the wrong kind, or the shape is none that can be converted.
    """
    get = lambda name, kind=int, default=None: read_field(path, raw, name, kind, default, "vision_config.")  # noqa: E731
    stated = {name: get(name, type(default), default) for name, default in DEFAULTS.items()}
    blocks = stated["fullatt_block_indexes"]
    config = VisionConfig(
        **stated | {"fullatt_block_indexes": tuple(blocks)},
        patch_size=get("patch_size", default=PATCH_SIZE),
        temporal_patch_size=get("temporal_patch_size", default=TEMPORAL_PATCH_SIZE),
        spatial_merge_size=get("spatial_merge_size", default=MERGE_SIZE),
        window_size=get("window_size", default=112),
        in_channels=get("in_channels" if "in_channels" in raw else "in_chans", default=CHANNELS),
        assumed=", ".join(f"{name} {stated[name]}" for name in DEFAULTS if name not in raw),
    )
    config.check(path, raw.get("hidden_act", "silu"), "silu", FIXED, "Qwen2.5-VL")
    if config.window_size % config.factor:
        raise InputError(f"{path}: window_size {config.window_size} is no multiple of {config.factor} pixels")
    if any(type(block) is not int or not 0 <= block < config.depth for block in blocks):
        raise InputError(f"{path}: fullatt_block_indexes {reprlib.repr(blocks)} leave the {config.depth} blocks")
    return config


def stored_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of `visual.*`, in the order of the forward pass."""
    hidden, merged = config.hidden_size, config.hidden_size * config.merge_unit
    kernel = config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (hidden, *kernel)}
    for number in range(config.depth):
        block = f"visual.blocks.{number}"
        shapes[f"{block}.norm1.weight"] = (hidden,)
        shapes |= _linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        shapes |= _linear(f"{block}.attn.proj", hidden, hidden)
        shapes[f"{block}.norm2.weight"] = (hidden,)
        shapes |= _linear(f"{block}.mlp.gate_proj", config.intermediate_size, hidden)
        shapes |= _linear(f"{block}.mlp.up_proj", config.intermediate_size, hidden)
        shapes |= _linear(f"{block}.mlp.down_proj", hidden, config.intermediate_size)
    shapes["visual.merger.ln_q.weight"] = (hidden,)
    shapes |= _linear("visual.merger.mlp.0", merged, merged)
    shapes |= _linear("visual.merger.mlp.2", config.out_hidden_size, merged)
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
