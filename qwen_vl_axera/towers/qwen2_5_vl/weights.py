"""From a checkpoint's tensors to the parameters of `module.VisionTower`: the table is the conversion.

Each entry says which stored tensors a parameter is made of, and how; the stored tensors' shapes are those of
`config.stored_tensors`, the parameter's is the module's. Folding is done in float64 where sums are formed and
rounded once to float32.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from qwen_vl_axera.towers.qwen2_5_vl import QWEN2_5_VL
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig, stored_tensors
from qwen_vl_axera.towers.tower import Shape, Stored, Tower

Read = Callable[[str], np.ndarray]  # a stored tensor, float32, by its name below `visual.`
Make = Callable[[Read], np.ndarray]


def vision_weights(stored: Stored, config: VisionConfig, input: str = "pixels") -> Iterator[tuple[str, np.ndarray]]:
    """The tower's parameters, float32, one at a time in the order of the table.

    Args:
        stored: where the tensors are.
        config: the tower's shape.
        input: "pixels" folds (x / 255 - mean) / std into the patch embedding; "normalized" leaves it out.

    Yields:
        Parameter name and value.

    Raises:
        InputError: a tensor is missing, of another shape, or holds NaN or infinities.
    """
    return made(weight_table(config, input), stored, stored_tensors(config))


def made(table: dict[str, Make], stored: Stored, shapes: dict[str, Shape]) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters of a table, one at a time; see `vision_weights`. `shapes`: of the stored tensors."""

    # q, k and v come from one stored tensor, one after the other: the last one read is kept.
    @lru_cache(maxsize=1)
    def read(name: str) -> np.ndarray:
        return stored.read(f"visual.{name}", shapes[f"visual.{name}"])

    for name, make in table.items():
        yield name, np.ascontiguousarray(make(read), dtype=np.float32)


def weight_table(config: VisionConfig, input: str = "pixels") -> dict[str, Make]:
    """Parameter name -> how it is made, in the order in which they lie in the external data file."""
    table = patch_embed(input)
    for number in range(config.depth):
        block = f"blocks.{number}"
        table |= copied(f"{block}.norm1", bias=False)
        table |= attention(f"{block}.attn", config)
        table |= copied(f"{block}.norm2", bias=False)
        table |= copied(f"{block}.mlp.gate_proj")
        table |= copied(f"{block}.mlp.up_proj")
        table |= copied(f"{block}.mlp.down_proj")
    table |= copied("merger.ln_q", bias=False)
    table |= copied("merger.mlp.0")
    table |= copied("merger.mlp.2")
    return table


def witnesses(config: VisionConfig) -> list[str]:
    """Small parameters out of every block that are taken as they are stored: equal only for the same model."""
    blocks = [
        f"blocks.{number}.{name}"
        for number in range(config.depth)
        for name in ("norm1.weight", "norm2.weight", "mlp.down_proj.bias")
    ]
    return [*blocks, "merger.ln_q.weight", "merger.mlp.2.bias"]


def copied(name: str, bias: bool = True) -> dict[str, Make]:
    """A layer whose weight and bias are taken as they are stored."""
    names = [f"{name}.weight", *([f"{name}.bias"] if bias else [])]
    return {name: lambda read, name=name: read(name) for name in names}


def patch_embed(input: str) -> dict[str, Make]:
    """The Conv3d kernel (C, 3, 2, 14, 14) as a matrix over (2, 14, 14, 3), the byte order of the input.

    With "pixels", W·((x / 255 - mean) / std) is rewritten as (W / (255·std))·x - sum(W·mean / std).
    """
    name = "patch_embed.proj"
    weight, bias = patch_kernel(name, input, QWEN2_5_VL)
    return {f"{name}.weight": weight, **({f"{name}.bias": bias} if input == "pixels" else {})}


def patch_kernel(name: str, input: str, tower: Tower) -> tuple[Make, Make]:
    """The matrix, and what normalised pixels add to the bias; see `patch_embed`."""
    mean, std = (np.array(values, np.float64).reshape(1, -1, 1, 1, 1) for values in (tower.mean, tower.std))

    def weight(read: Read) -> np.ndarray:
        kernel = read(f"{name}.weight")
        if input == "pixels":
            kernel = kernel / (255 * std)
        return kernel.transpose(0, 2, 3, 4, 1).reshape(len(kernel), -1)

    def bias(read: Read) -> np.ndarray:
        return -(read(f"{name}.weight") * (mean / std)).sum(axis=(1, 2, 3, 4))

    return weight, bias


def attention(name: str, config: VisionConfig) -> dict[str, Make]:
    """q, k and v cut apart; the score's scale in q, the bias of v in the output projection's bias."""
    hidden, scale = config.hidden_size, np.float32(config.head_dim**-0.5)

    def part(read: Read, kind: str, third: int) -> np.ndarray:
        return read(f"{name}.qkv.{kind}")[third * hidden : (third + 1) * hidden]

    def proj_bias(read: Read) -> np.ndarray:
        projection, value_bias = read(f"{name}.proj.weight"), part(read, "bias", 2)
        # Row by row in float64, without a float64 copy of the whole matrix.
        folded = np.einsum("ij,j->i", projection, value_bias, dtype=np.float64)
        return read(f"{name}.proj.bias") + folded

    return {
        f"{name}.qkv.q.weight": lambda read: part(read, "weight", 0) * scale,
        f"{name}.qkv.k.weight": lambda read: part(read, "weight", 1),
        f"{name}.qkv.v.weight": lambda read: part(read, "weight", 2),
        f"{name}.qkv.q.bias": lambda read: part(read, "bias", 0) * scale,
        f"{name}.qkv.k.bias": lambda read: part(read, "bias", 1),
        f"{name}.proj.weight": lambda read: read(f"{name}.proj.weight"),
        f"{name}.proj.bias": proj_bias,
    }
