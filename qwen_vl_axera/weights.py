"""From a checkpoint's tensors to the parameters of `vision.VisionTower`: the table is the conversion.

Each entry says of what shape a parameter is, which stored tensors it is made of, and how. Folding is done in
float64 where sums are formed and rounded once to float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from preprocess import MEAN, STD
from qwen_vl_axera.checkpoint import Checkpoint
from qwen_vl_axera.config import VisionConfig

Read = Callable[[str, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Weight:
    """A parameter of the tower: its shape, and how it is made of the stored tensors that it reads."""

    shape: tuple[int, ...]
    make: Callable[[Read], np.ndarray]


def vision_weights(checkpoint: Checkpoint, input: str = "pixels") -> Iterator[tuple[str, np.ndarray]]:
    """The tower's parameters, float32, one at a time in the order of the table.

    Args:
        checkpoint: where the tensors are.
        input: "pixels" folds (x / 255 - mean) / std into the patch embedding; "normalized" leaves it out.

    Yields:
        Parameter name and value.

    Raises:
        InputError: a tensor is missing, of another shape, or holds NaN or infinities.
    """

    # q, k and v come from one stored tensor, one after the other: the last one read is kept.
    @lru_cache(maxsize=1)
    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return checkpoint.read(f"visual.{name}", shape)

    for name, weight in weight_table(checkpoint.config.vision, input).items():
        yield name, np.ascontiguousarray(weight.make(read), dtype=np.float32)


def weight_table(config: VisionConfig, input: str = "pixels") -> dict[str, Weight]:
    """Parameter name -> weight, in the order in which they lie in the external data file."""
    hidden, inner = config.hidden_size, config.intermediate_size
    merged = hidden * config.merge_unit
    table: dict[str, Weight] = patch_embed(config, input)
    for number in range(config.depth):
        block = f"blocks.{number}"
        table |= copied(f"{block}.norm1", (hidden,), bias=False)
        table |= attention(f"{block}.attn", config)
        table |= copied(f"{block}.norm2", (hidden,), bias=False)
        table |= copied(f"{block}.mlp.gate_proj", (inner, hidden))
        table |= copied(f"{block}.mlp.up_proj", (inner, hidden))
        table |= copied(f"{block}.mlp.down_proj", (hidden, inner))
    table |= copied("merger.ln_q", (hidden,), bias=False)
    table |= copied("merger.mlp.0", (merged, merged))
    table |= copied("merger.mlp.2", (config.out_hidden_size, merged))
    return table


def copied(name: str, shape: tuple[int, ...], bias: bool = True) -> dict[str, Weight]:
    """A layer whose weight, and bias of `shape[0]` values, are taken as they are stored."""
    weights = {f"{name}.weight": Weight(shape, lambda read: read(f"{name}.weight", shape))}
    if bias:
        weights[f"{name}.bias"] = Weight(shape[:1], lambda read: read(f"{name}.bias", shape[:1]))
    return weights


def patch_embed(config: VisionConfig, input: str) -> dict[str, Weight]:
    """The Conv3d kernel (C, 3, 2, 14, 14) as a matrix over (2, 14, 14, 3), the byte order of the input.

    With "pixels", W·((x / 255 - mean) / std) is rewritten as (W / (255·std))·x - sum(W·mean / std).
    """
    name, hidden = "patch_embed.proj", config.hidden_size
    shape = hidden, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size
    matrix = hidden, config.patch_pixels * config.in_channels
    mean, std = (np.array(values, np.float64).reshape(1, -1, 1, 1, 1) for values in (MEAN, STD))

    def weight(read: Read) -> np.ndarray:
        kernel = read(f"{name}.weight", shape)
        if input == "pixels":
            kernel = kernel / (255 * std)
        return kernel.transpose(0, 2, 3, 4, 1).reshape(matrix)

    def bias(read: Read) -> np.ndarray:
        kernel = read(f"{name}.weight", shape)
        return -(kernel * (mean / std)).sum(axis=(1, 2, 3, 4))

    weights = {f"{name}.weight": Weight(matrix, weight)}
    if input == "pixels":
        weights[f"{name}.bias"] = Weight((hidden,), bias)
    return weights


def attention(name: str, config: VisionConfig) -> dict[str, Weight]:
    """q, k and v cut apart; the score's scale in q, the bias of v in the output projection's bias."""
    hidden = config.hidden_size
    square, scale = (hidden, hidden), np.float32(config.head_dim**-0.5)

    def part(read: Read, kind: str, third: int) -> np.ndarray:
        shape = (3 * hidden, hidden) if kind == "weight" else (3 * hidden,)
        return read(f"{name}.qkv.{kind}", shape)[third * hidden : (third + 1) * hidden]

    def proj_bias(read: Read) -> np.ndarray:
        projection = read(f"{name}.proj.weight", square)
        value_bias = part(read, "bias", 2)
        # Row by row in float64, without a float64 copy of the whole matrix.
        folded = np.einsum("ij,j->i", projection, value_bias, dtype=np.float64)
        return read(f"{name}.proj.bias", (hidden,)) + folded

    return {
        f"{name}.qkv.q.weight": Weight(square, lambda read: part(read, "weight", 0) * scale),
        f"{name}.qkv.k.weight": Weight(square, lambda read: part(read, "weight", 1)),
        f"{name}.qkv.v.weight": Weight(square, lambda read: part(read, "weight", 2)),
        f"{name}.qkv.q.bias": Weight((hidden,), lambda read: part(read, "bias", 0) * scale),
        f"{name}.qkv.k.bias": Weight((hidden,), lambda read: part(read, "bias", 1)),
        f"{name}.proj.weight": Weight(square, lambda read: read(f"{name}.proj.weight", square)),
        f"{name}.proj.bias": Weight((hidden,), proj_bias),
    }
