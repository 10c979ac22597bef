"""The pair of settings for the time axis: the runtime's arithmetic against transformers' positions."""

import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from qwen_vl_axera.board import timing
from qwen_vl_axera.board.timing import TimeSettings, late_clip, runtime_positions, time_settings
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.language.mrope import mrope_position_ids
from qwen_vl_axera.oracle.record import Capture
from tests.board import runtime

RATES = [0.05, 0.1, 1 / 3, 0.4, 0.8, 0.9, 1, 1.5, 2, 2.5, 4, 4.7, 7.3, 24000 / 1001, 25, 29.97, 30, 60, 128, 240]


def capture(rate: float, steps: int = 8) -> Capture:
    grid, rate = (steps, 12, 12), float(rate)
    return Capture((168, 168), grid, "frames", ["clip"], list(range(2 * steps)), rate, 2 / rate, "tiny", {})


def transformers_positions(rate: float, steps: int) -> list[int]:
    """From the prompt's positions, which are tested against transformers."""
    ids = [7, *[6] * steps]
    rule = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "spatial_merge_size": 2}
    positions, _ = mrope_position_ids(
        ids, video_grid_thw=[(steps, 2, 2)], second_per_grid_ts=[2 / rate], tokens_per_second=2, **rule
    )
    return (positions[0, 0, 1:] - 1).tolist()


def board_positions(chosen: TimeSettings, steps: int) -> list[int]:
    settings = {"vision_fps": chosen.fps, "vision_tokens_per_second": chosen.tokens_per_second}
    return [runtime.time_of_step(step, settings) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 4, 64, 300])
@pytest.mark.parametrize("rate", RATES)
def test_the_pair_is_exact_or_the_warning_right(rate, steps):
    chosen = time_settings(capture(rate, steps), 2)
    assert type(chosen.fps) is int and 1 <= chosen.fps <= timing.MAX_FPS
    assert type(chosen.tokens_per_second) is int and chosen.tokens_per_second >= 1
    off = np.subtract(board_positions(chosen, steps), transformers_positions(rate, steps))
    if chosen.warning is None:
        assert not off.any()
    else:
        furthest, last = re.search(r"up to (\d+) positions off, the last one ([+-]\d+)", chosen.warning).groups()
        assert (int(furthest), int(last)) == (abs(off).max(), off[-1]) and abs(off).max()


def test_the_usual_rates_are_exact_for_every_clip():
    exact = [rate for rate in RATES if not time_settings(capture(rate, timing.STEPS), 2).warning]
    assert len(exact) >= len(RATES) - 1, set(RATES) - set(exact)


@pytest.mark.parametrize(("rate", "steps", "pair"), [(1, 4, (1, 2)), (4, 64, (4, 2)), (29.97, 4, (30, 2))])
def test_the_natural_pair_where_it_is_exact(rate, steps, pair):
    chosen = time_settings(capture(rate, steps), 2)
    assert (chosen.fps, chosen.tokens_per_second, chosen.warning) == (*pair, None)


def test_another_pair_where_rounding_is_not_exact():
    """8 frames in 10 seconds: steps of 5 positions, where 1 and 2 would give 4."""
    chosen = time_settings(capture(0.8, 4), 2)
    assert board_positions(chosen, 4) == [0, 5, 10, 15] != board_positions(TimeSettings(1, 2), 4)


def test_a_pair_holds_for_longer_clips_of_the_same_rate():
    for rate in (0.8, 2.5, 1 / 3):
        chosen = time_settings(capture(rate, 4), 2)
        if (chosen.fps, chosen.tokens_per_second) != (round(rate), 2):
            assert board_positions(chosen, timing.STEPS) == transformers_positions(rate, timing.STEPS)


def test_the_nearest_is_warned_of():
    """Faster than the settings can say: every step but the first comes too late, the last by most."""
    chosen = time_settings(capture(1000.0, 400), 2)
    assert chosen.warning and "+" in chosen.warning.rpartition("last one")[2]


def test_numpys_arithmetic_is_the_runtimes():
    for fps in (1, 3, 7, 30, 49, 127, 128):
        for number in (1, 2, 5, 29, 400):
            assert runtime_positions(200, fps, number).tolist() == board_positions(TimeSettings(fps, number), 200)


def test_a_clip_that_leaves_no_room_for_an_answer():
    """Four frames a minute: 8 frames in 4 steps of 30 s, 60 positions each."""
    clip = capture(1 / 15, 4)
    assert transformers_positions(1 / 15, 4)[-1] == 180
    assert late_clip(clip, 2, 308) is None
    assert "position 180" in late_clip(clip, 2, 307)


def test_without_a_capture():
    chosen = time_settings(None, 2)
    assert (chosen.fps, chosen.tokens_per_second) == (1, 2) and "capture.json" in chosen.warning


@pytest.mark.parametrize(
    "changes",
    [
        {"second_per_grid_ts": -2.0},
        {"second_per_grid_ts": 0},
        {"second_per_grid_ts": float("nan")},
        {"second_per_grid_ts": 1e30},
        {"second_per_grid_ts": "2"},
        {"second_per_grid_ts": True},
        {"grid_thw": (0, 12, 12)},
        {"grid_thw": (10**9, 12, 12)},
        {"grid_thw": ("4", 12, 12)},
    ],
)
def test_a_capture_that_is_none(changes):
    with pytest.raises(InputError, match=r"run run_video_by_sec\.py again"):
        time_settings(SimpleNamespace(**(asdict(capture(1.0)) | changes)), 2)
