"""Which steps are computed exactly, and that a step alone must be what it is beside another one."""

import numpy as np
import pytest

from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.frames.media import load_clip
from qwen_vl_axera.oracle.run import check_steps, different_steps, run_clip
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower

PIXELS = np.zeros((2, 4, 392, 3), np.uint8)
GRID = (2, 2)
EXACT = np.random.default_rng(0).standard_normal((2, 1, 48))


class Moved:
    """A tower whose float32 answers to a step alone scatter around it by `rounding` of their size."""

    def __init__(self, alone, rounding):
        self.alone, self.rounding = alone, rounding

    def run_moved(self, patches, grid, seed):
        return (self.alone * (1 + self.rounding * np.random.default_rng(seed).standard_normal())).astype(np.float32)


def test_the_flattest_and_the_most_varied_step():
    pixels = np.zeros((4, 16, 392, 3), np.uint8)
    pixels[0, ::2], pixels[1, ::2], pixels[2, ::2], pixels[3, ::2] = 90, 40, 200, 60
    assert different_steps(pixels) == [1, 2]
    assert different_steps(pixels[:1]) == [0]
    assert different_steps(np.zeros_like(pixels)) == [0, 3]


def test_rounding_is_no_difference():
    check_steps(None, PIXELS, GRID, (EXACT * (1 + 1e-6)).astype(np.float32), EXACT)


@pytest.mark.parametrize("rounding", [1e-3, 2e-4])
def test_a_difference_that_rounding_explains(rounding):
    """An ill-conditioned tower: its own float32 scatters as far."""
    alone = EXACT[0] * (1 + 1e-3)
    check_steps(Moved(alone, rounding), PIXELS, GRID, np.stack([alone, alone]), np.stack([EXACT[0], EXACT[0]]))


@pytest.mark.parametrize("rounding", [0.0, 1e-6, 3e-5])
def test_a_difference_that_rounding_does_not_explain(rounding):
    alone = EXACT[0] * (1 + 1e-3)
    with pytest.raises(CheckFailed, match=r"step by step differs from several steps at once by 1\.0e-03 of the answer"):
        check_steps(Moved(alone, rounding), PIXELS, GRID, np.stack([alone, alone]), np.stack([EXACT[0], EXACT[0]]))


def leaking(original):
    """A tower whose steps see each other: beside another one a step gives something else."""
    return lambda self, patches, grid: original(self, patches, grid) * (1 + (len(patches) > 1) * 1e-3)


def broken(original):
    return lambda self, patches, grid: original(self, patches, grid) * np.nan


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("run_exact", leaking, "step by step differs from several steps at once"),
        ("run_exact", broken, "transformers' answer in float64 holds NaN"),
        ("run", broken, "transformers' answer in float32 holds NaN"),
    ],
)
def test_a_wrong_tower_leaves_no_capture(tiny, frames_dir, tmp_path, monkeypatch, method, change, words):
    monkeypatch.setattr(ReferenceTower, method, change(getattr(ReferenceTower, method)))
    with pytest.raises(CheckFailed, match=words):
        run_clip(tiny, tmp_path, load_clip([frames_dir]), (56, 56))
    assert list(tmp_path.iterdir()) == []
