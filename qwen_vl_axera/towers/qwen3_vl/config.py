"""The tower's shape as `vision_config` of config.json has it, and the tensors that follow from it."""

import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess import CHANNELS, MERGE_SIZE, TEMPORAL_PATCH_SIZE
from qwen_vl_axera.contract import OUTPUT_NAME
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_field
from qwen_vl_axera.towers.qwen3_vl import QWEN3_VL
from qwen_vl_axera.towers.shape import VisionShape

FIXED = {
    "patch_size": QWEN3_VL.patch_size,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "in_channels": CHANNELS,
}
# What transformers' class has: a save_pretrained that stores differences leaves these out.
DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}


@dataclass(frozen=True)
class VisionConfig(VisionShape):
    """The vision tower's shape. `num_position_embeddings` is the square of the learned table's side.

    `assumed` names the fields of DEFAULTS that config.json leaves out, with their values; the stored shapes must
    confirm them.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    patch_size: int = QWEN3_VL.patch_size
    temporal_patch_size: int = TEMPORAL_PATCH_SIZE
    spatial_merge_size: int = MERGE_SIZE
    in_channels: int = CHANNELS
    layer_norm_eps: float = 1e-6
    assumed: str = field(default="", compare=False)

    # Time stands in the prompt as text; a step's positions along the time axis do not count.
    tokens_per_second = 0

    @property
    def position_side(self) -> int:
        """Rows and columns of the learned positions."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The merged tokens, then the features of the inner blocks in their order."""
        return OUTPUT_NAME, *(f"deepstack_feature_{number}" for number in range(len(self.deepstack_visual_indexes)))


def read_config(path: Path, raw: dict[str, Any]) -> VisionConfig:
    """Reads `vision_config`.

    Args:
        path: of config.json, for messages.
        raw: the object.

    Raises:
        InputError: a field is of the wrong kind, or the shape is none that can be converted.
    """
    get = lambda name, default: read_field(path, raw, name, type(default), default, "vision_config.")  # noqa: E731
    fields = {name: get(name, default) for name, default in (DEFAULTS | FIXED).items()}
    taps = fields["deepstack_visual_indexes"]
    assumed = ", ".join(f"{name} {fields[name]}" for name in DEFAULTS if name not in raw)
    config = VisionConfig(**fields | {"deepstack_visual_indexes": tuple(taps)}, assumed=assumed)
    config.check(path, raw.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh", FIXED, QWEN3_VL.name)
    if config.position_side**2 != config.num_position_embeddings:
        raise InputError(f"{path}: num_position_embeddings {config.num_position_embeddings} is no square of a side")
    if any(type(tap) is not int or not 0 <= tap < config.depth for tap in taps) or sorted(set(taps)) != taps:
        raise InputError(
            f"{path}: deepstack_visual_indexes {reprlib.repr(taps)}: expected ascending numbers of the "
            f"{config.depth} blocks"
        )
    return config


def stored_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of `visual.*`, in the order of the forward pass."""
    hidden, merged, inner = config.hidden_size, config.hidden_size * config.merge_unit, config.intermediate_size
    kernel = config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size
    shapes = {"visual.patch_embed.proj.weight": (hidden, *kernel), "visual.patch_embed.proj.bias": (hidden,)}
    shapes["visual.pos_embed.weight"] = (config.num_position_embeddings, hidden)
    for number in range(config.depth):
        block = f"visual.blocks.{number}"
        shapes |= _norm(f"{block}.norm1", hidden)
        shapes |= _linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        shapes |= _linear(f"{block}.attn.proj", hidden, hidden)
        shapes |= _norm(f"{block}.norm2", hidden)
        shapes |= _linear(f"{block}.mlp.linear_fc1", inner, hidden)
        shapes |= _linear(f"{block}.mlp.linear_fc2", hidden, inner)
    mergers = {f"visual.deepstack_merger_list.{number}": merged for number in range(len(config.output_names) - 1)}
    for name, normed in (mergers | {"visual.merger": hidden}).items():
        shapes |= _norm(f"{name}.norm", normed)
        shapes |= _linear(f"{name}.linear_fc1", merged, merged)
        shapes |= _linear(f"{name}.linear_fc2", config.out_hidden_size, merged)
    return shapes


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
