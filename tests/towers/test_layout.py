"""Rotary angles and windows against transformers' own functions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout
from qwen_vl_axera.towers.qwen2_5_vl.reference import load_tower, rotary_angles, window_layout
from tests.conftest import SIZES


@pytest.fixture(scope="module")
def tower(tiny: Checkpoint):
    return load_tower(tiny, tiny.config.vision)


@pytest.mark.parametrize("size", SIZES)
def test_windows_and_angles_are_transformers(tiny, tower, size):
    config = tiny.config.vision
    layout = build_layout(config, size)
    grid_thw = torch.tensor([[1, *layout.grid]])
    window_index, bounds = window_layout(tower, config, grid_thw)
    np.testing.assert_array_equal(layout.window_index, window_index.numpy())
    np.testing.assert_array_equal(layout.cu_window_seqlens, bounds.numpy())

    angles = rotary_angles(tower, grid_thw).reshape(len(window_index), 4, -1)[window_index]
    np.testing.assert_array_equal(layout.rotary, angles.reshape(layout.rotary.shape).numpy())
    assert layout.rotary.dtype == np.float32
    assert layout.window_index.dtype == np.int64
    assert layout.cu_window_seqlens.dtype == np.int32


@pytest.mark.parametrize("size", SIZES)
def test_groups_are_transformers_windows_sorted_by_size(tiny, size):
    layout = build_layout(tiny.config.vision, size)
    lengths = np.diff(layout.cu_window_seqlens)
    assert sorted(lengths, reverse=True) == [group.size for group in layout.groups for _ in range(group.count)]

    theirs = {frozenset(part) for part in np.split(layout.window_index, layout.cu_window_seqlens[1:-1] // 4)}
    bounds = np.cumsum([group.size // 4 for group in layout.groups for _ in range(group.count)])
    ours = {frozenset(part) for part in np.split(layout.order, bounds[:-1])}
    assert ours == theirs


def test_308_has_the_windows_that_the_arithmetic_gives(tiny):
    layout = build_layout(tiny.config.vision, (308, 308))
    assert [(group.count, group.size) for group in layout.groups] == [(4, 64), (4, 48), (1, 36)]
    assert (layout.num_patches, layout.num_tokens) == (484, 121)


@pytest.mark.parametrize("size", [(300, 308), (308, 0), (27, 28), (-28, 28)])
def test_sides_must_be_multiples(tiny, size):
    with pytest.raises(InputError, match="multiples of 28"):
        build_layout(tiny.config.vision, size)


VISION = VisionConfig(4, 64, 96, 4, 48, (1, 3))
sides = st.integers(1, 46).map(lambda number: 28 * number)


@given(sides, sides)
def test_every_layout_is_a_partition(height, width):
    layout = build_layout(VISION, (height, width))
    tokens = height * width // 28**2
    assert sorted(layout.order) == sorted(layout.window_index) == list(range(tokens))
    assert sum(group.patches for group in layout.groups) == layout.num_patches == layout.cu_window_seqlens[-1]
    assert len({group.size for group in layout.groups}) == len(layout.groups) <= 4
    # Patches of one window lie within one 112-pixel square.
    rows, columns = np.divmod(layout.order, width // 28)
    squares = rows // 4 * 10_000 + columns // 4
    windows = layout.window_ids[::4]
    assert len(set(zip(squares, windows, strict=True))) == len(set(windows))
