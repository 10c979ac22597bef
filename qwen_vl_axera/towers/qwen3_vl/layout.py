"""From a grid of patches to rotary angles and learned positions. Pure numpy.

The rules are those of `Qwen3VLVisionModel` in transformers 5.24. Patches stay in merge-block order: there are no
windows, so nothing is reordered.
"""

from dataclasses import dataclass

import numpy as np

from qwen_vl_axera.towers.qwen2_5_vl.layout import WindowGroup, rotary_angles
from qwen_vl_axera.towers.qwen3_vl.config import VisionConfig
from qwen_vl_axera.towers.tower import Stored


@dataclass(frozen=True)
class Layout:
    """Everything that a grid fixes in the graph. S patches in merge-block order.

    Attributes:
        grid: rows and columns of patches.
        rotary: float32 (S, head_dim/2), angles.
        positions: float32 (S, hidden), the learned positions at this size; None where no weights were given.
    """

    grid: tuple[int, int]
    rotary: np.ndarray
    positions: np.ndarray | None
    num_tokens: int

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def saved(self) -> dict[str, np.ndarray]:
        """What transformers derives for this size, under the names of the work directory's files."""
        return {"rotary_pos_emb": self.rotary, "cu_seqlens": np.array([0, self.num_patches], np.int32)}

    @property
    def groups(self) -> tuple[WindowGroup, ...]:
        """One window of all patches."""
        return (WindowGroup(1, self.num_patches),)

    @property
    def order(self) -> np.ndarray:
        """int64 (S/4,): the order of tokens in the graph is the reading order."""
        return np.arange(self.num_tokens)

    @property
    def reverse(self) -> np.ndarray:
        return self.order

    @property
    def cos_sin(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (S, head_dim/2) each."""
        angles = self.rotary.astype(np.float64)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def build_layout(config: VisionConfig, size: tuple[int, int], stored: Stored | None = None) -> Layout:
    """The layout of one temporal step.

    Args:
        config: the tower.
        size: height and width in pixels, multiples of `config.factor`.
        stored: where the learned positions are.

    Raises:
        InputError: the size does not fit, or the positions are not there.
    """
    grid = config.grid(size)
    positions = None
    if stored is not None:
        table = stored.read("visual.pos_embed.weight", (config.num_position_embeddings, config.hidden_size))
        positions = interpolated(table, config, grid)
    return Layout(grid, rotary_angles(config, grid), positions, grid[0] * grid[1] // config.merge_unit)


def interpolated(table: np.ndarray, config: VisionConfig, grid: tuple[int, int]) -> np.ndarray:
    """The learned positions at a grid's size: float32 (S, hidden) in merge-block order.

    Bilinear, corner on corner: the grid's first and last patch take the table's first and last entry.

    Args:
        table: float32 (side², hidden), row after row.
        config: the tower.
        grid: rows and columns of patches.
    """
    side = config.position_side
    rows, columns = (axis_weights(count, side) for count in grid)  # (rows, side), (columns, side)
    square = table.astype(np.float64).reshape(side, side, -1)
    values = np.einsum("rs,stc->rtc", rows, square)
    values = np.einsum("ut,rtc->ruc", columns, values)
    merge = config.spatial_merge_size
    blocks = values.reshape(grid[0] // merge, merge, grid[1] // merge, merge, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks.reshape(grid[0] * grid[1], -1), dtype=np.float32)


def axis_weights(count: int, side: int) -> np.ndarray:
    """What each of the table's rows counts in each of the grid's: float64 (count, side), two of them in a row."""
    places = np.linspace(0, side - 1, count)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    weights = np.zeros((count, side))
    np.add.at(weights, (np.arange(count), low), 1 - (places - low))
    np.add.at(weights, (np.arange(count), high), places - low)
    return weights
