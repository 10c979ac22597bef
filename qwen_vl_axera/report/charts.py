"""The report's charts: curves through the depth of a tower. Geometry only; the page draws and colours it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen_vl_axera.report.pictures import FLOOR, Scale

WIDTH, HEIGHT = 980, 290  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36  # margins: labels of both axes
MOST_LABELS = 12  # along the depth


@dataclass(frozen=True)
class Chart:
    """Curves in the drawing's units.

    Attributes:
        lines: name -> points.
        rows: heights of the decades, and their exponents of ten.
        columns: places of the blocks that are labelled, and their numbers.
    """

    lines: dict[str, list[tuple[float, float]]]
    rows: list[tuple[float, int]]
    columns: list[tuple[float, int]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def depth_chart(losses: Mapping[str, Sequence[float]], blocks: Sequence[int]) -> Chart:
    """One curve for each name, over the blocks; losses on a logarithmic axis, the largest at the top.

    Args:
        losses: name -> a loss after each block; what is 0 or below lies on the axis's end.
        blocks: their numbers.
    """
    values = visible(np.array(list(losses.values()), np.float64))
    scale = Scale.of(values)
    span = max(len(blocks) - 1, 1)
    across = [LEFT + (WIDTH - RIGHT - LEFT) * (n / span if len(blocks) > 1 else 0.5) for n in range(len(blocks))]
    stride = -(-len(blocks) // MOST_LABELS)
    return Chart(
        {
            name: [(x, _height(scale.position(loss))) for x, loss in zip(across, row, strict=True)]
            for name, row in zip(losses, values.tolist(), strict=True)
        },
        [(_height(position), exponent) for position, exponent in scale.ticks()],
        [(x, block) for x, block in zip(across, blocks, strict=True)][::stride],
    )


def visible(losses: np.ndarray) -> np.ndarray:
    """Losses for a logarithmic scale: none is taken for the smallest that there is, not for sixteen decades less."""
    positive = losses[losses > FLOOR]
    return np.maximum(losses, positive.min() if positive.size else FLOOR)


def _height(position: float) -> float:
    return HEIGHT - BOTTOM - position * (HEIGHT - BOTTOM - TOP)
