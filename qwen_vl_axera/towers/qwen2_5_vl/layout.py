"""From a grid of patches to rotary angles, window groups and permutations. Pure numpy, no weights.

Patches arrive in merge-block order: the four patches of each merged token (a "quad") adjacent, quads in
reading order. transformers reorders the quads window by window; here windows of equal size are also made
adjacent, so that each size is one batch. Attention does not mind the order of its tokens and windows do not
see each other, so any order that keeps quads together is exact, provided that the rotary angles follow and
the merged output is put back.

The rules (positions, windows, frequencies) are those of Qwen2.5-VL's vision tower as in transformers 4.49,
`Qwen2_5_VisionTransformerPretrainedModel.rot_pos_emb` and `.get_window_index`.
"""

from dataclasses import dataclass

import numpy as np

from qwen_vl_axera.towers.qwen2_5_vl.config import ROPE_THETA, VisionConfig
from qwen_vl_axera.towers.tower import Stored


@dataclass(frozen=True)
class WindowGroup:
    """`count` windows of `size` patches each, adjacent in the order of `Layout.order`."""

    count: int
    size: int

    @property
    def patches(self) -> int:
        return self.count * self.size


@dataclass(frozen=True)
class Layout:
    """Everything that a grid fixes in the graph. S patches, S/4 quads, W windows.

    Attributes:
        grid: rows and columns of patches.
        window_index: int64 (S/4,), transformers' order: quad numbers window by window.
        cu_window_seqlens: int32 (W+1,), where transformers' windows begin, in patches.
        rotary: float32 (S, head_dim/2), angles in transformers' window order.
        order: int64 (S/4,), the order used in the graph: windows sorted by size, largest first.
        groups: the runs of equal windows in that order.
    """

    grid: tuple[int, int]
    window_index: np.ndarray
    cu_window_seqlens: np.ndarray
    rotary: np.ndarray
    order: np.ndarray
    groups: tuple[WindowGroup, ...]
    _rotary_merge_order: np.ndarray

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return len(self.window_index)

    @property
    def cu_seqlens(self) -> np.ndarray:
        """int32 (2,): one temporal step is one segment of full attention."""
        return np.array([0, self.num_patches], np.int32)

    @property
    def saved(self) -> dict[str, np.ndarray]:
        """What transformers derives for this size, under the names of the work directory's files."""
        return {
            "rotary_pos_emb": self.rotary,
            "cu_seqlens": self.cu_seqlens,
            "cu_window_seqlens": self.cu_window_seqlens,
            "window_index": self.window_index,
        }

    @property
    def reverse(self) -> np.ndarray:
        """int64 (S/4,): puts merged tokens from `order` back into reading order."""
        return np.argsort(self.order)

    @property
    def cos_sin(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (S, head_dim/2) each, rows in the graph's order."""
        unit = self.num_patches // self.num_tokens
        angles = self._rotary_merge_order.reshape(self.num_tokens, unit, -1)[self.order]
        angles = angles.reshape(self.num_patches, -1).astype(np.float64)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    @property
    def window_ids(self) -> np.ndarray:
        """int64 (S,): the number of the window that each patch of the graph's order is in."""
        sizes = [group.size for group in self.groups for _ in range(group.count)]
        return np.repeat(np.arange(len(sizes)), sizes)


def build_layout(config: VisionConfig, size: tuple[int, int], stored: Stored | None = None) -> Layout:
    """The layout of one temporal step.

    Args:
        config: the tower.
        size: height and width in pixels, multiples of `config.factor`.
        stored: not needed here: no weight depends on the size.

    Raises:
        InputError: the size does not fit.
    """
    grid = config.grid(size)
    windows = window_quads(config, grid)
    lengths = np.array([len(window) for window in windows]) * config.merge_unit
    by_size = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    angles = rotary_angles(config, grid)
    window_index = np.concatenate(windows)
    quads = angles.reshape(len(window_index), config.merge_unit, -1)
    return Layout(
        grid=grid,
        window_index=window_index,
        cu_window_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        rotary=quads[window_index].reshape(angles.shape),
        order=np.concatenate([windows[number] for number in by_size]),
        groups=tuple(WindowGroup(int(n), int(s)) for s, n in zip(sizes[::-1], counts[::-1], strict=True)),
        _rotary_merge_order=angles,
    )


def window_quads(config: VisionConfig, grid: tuple[int, int]) -> list[np.ndarray]:
    """The quad numbers (int64) of each window, windows and quads in reading order.

    Windows at the right and lower border are smaller where the grid is no multiple of the window.
    """
    merged = grid[0] // config.spatial_merge_size, grid[1] // config.spatial_merge_size
    side = config.window_size // config.factor
    quads = np.arange(merged[0] * merged[1]).reshape(merged)
    return [
        quads[row : row + side, column : column + side].reshape(-1)
        for row in range(0, merged[0], side)
        for column in range(0, merged[1], side)
    ]


def rotary_angles(config: VisionConfig, grid: tuple[int, int]) -> np.ndarray:
    """float32 (S, head_dim/2): row angles, then column angles, of each patch in merge-block order."""
    merge = config.spatial_merge_size
    blocks = grid[0] // merge, merge, grid[1] // merge, merge
    rows = np.broadcast_to(np.arange(grid[0])[:, None], grid)
    columns = np.broadcast_to(np.arange(grid[1])[None, :], grid)
    positions = np.stack([axis.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1) for axis in (rows, columns)], 1)
    dim = config.head_dim // 2
    frequencies = (1.0 / ROPE_THETA ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)
    angles = positions[:, :, None].astype(np.float32) * frequencies  # (S, 2, head_dim/4)
    return angles.reshape(len(positions), -1)
