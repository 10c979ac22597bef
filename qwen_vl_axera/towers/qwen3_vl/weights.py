"""From a checkpoint's tensors to the parameters of `module.VisionTower`: the table is the conversion."""

from collections.abc import Iterator

import numpy as np

from qwen_vl_axera.towers.qwen2_5_vl.weights import Make, Read, attention, copied, made, patch_kernel
from qwen_vl_axera.towers.qwen3_vl import QWEN3_VL
from qwen_vl_axera.towers.qwen3_vl.config import VisionConfig, stored_tensors
from qwen_vl_axera.towers.tower import Stored


def vision_weights(stored: Stored, config: VisionConfig, input: str = "pixels") -> Iterator[tuple[str, np.ndarray]]:
    """The tower's parameters, float32, one at a time in the order of the table; see `qwen2_5_vl.weights.made`."""
    return made(weight_table(config, input), stored, stored_tensors(config))


def weight_table(config: VisionConfig, input: str = "pixels") -> dict[str, Make]:
    """Parameter name -> how it is made, in the order in which they lie in the external data file.

    The learned positions are missing: interpolated to a size they are a constant of its graph (`layout`).
    """
    table = patch_embed(input)
    for number in range(config.depth):
        block = f"blocks.{number}"
        table |= copied(f"{block}.norm1")
        table |= attention(f"{block}.attn", config)
        table |= copied(f"{block}.norm2")
        table |= copied(f"{block}.mlp.linear_fc1")
        table |= copied(f"{block}.mlp.linear_fc2")
    for name in (*(f"deepstack_merger_list.{number}" for number in range(len(config.output_names) - 1)), "merger"):
        table |= copied(f"{name}.norm")
        table |= copied(f"{name}.linear_fc1")
        table |= copied(f"{name}.linear_fc2")
    return table


def witnesses(config: VisionConfig) -> list[str]:
    """Small parameters out of every block that are taken as they are stored: equal only for the same model."""
    blocks = [
        f"blocks.{number}.{name}"
        for number in range(config.depth)
        for name in ("norm1.weight", "norm2.weight", "mlp.linear_fc2.bias")
    ]
    return [*blocks, "merger.norm.weight", "merger.linear_fc2.bias"]


def patch_embed(input: str) -> dict[str, Make]:
    """As Qwen2.5-VL's, to whose new bias the stored one is added."""
    name = "patch_embed.proj"
    weight, shift = patch_kernel(name, input, QWEN3_VL)

    def bias(read: Read) -> np.ndarray:
        stored = read(f"{name}.bias")
        return stored + shift(read) if input == "pixels" else stored

    return {f"{name}.weight": weight, f"{name}.bias": bias}
