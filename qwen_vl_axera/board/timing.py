"""`vision_fps` and `vision_tokens_per_second`: two whole numbers from which the runtime computes the time axis.

It puts step i at int(i · (2 / vision_fps) · vision_tokens_per_second), in double precision; transformers puts it at
int(i · second_per_grid_ts · tokens_per_second), in float32. Where the rounded rate and the checkpoint's own number
give other positions than transformers', another pair nearly always gives the same.
"""

import math
from dataclasses import dataclass

import numpy as np

from qwen_vl_axera.contract import CAPTURE
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.language.mrope import time_positions
from qwen_vl_axera.oracle.record import Capture

FRAMES = 2  # of one step, as the runtime has it
MAX_FPS = 128
DEFAULT_FPS = 1
TOKENS_PER_SECOND = 2  # where time stands in the prompt as text: not used
STEPS = 64  # for which a pair should hold if one can: the next clip of this rate may be longer
ANSWER = 128  # positions that should be left for an answer
MAX_STEPS, MAX_POSITION = 10**5, 2**31  # beyond them a capture is no capture


@dataclass(frozen=True)
class TimeSettings:
    """The two settings, and a warning where they don't give transformers' positions."""

    fps: int
    tokens_per_second: int
    warning: str | None = None


def runtime_positions(steps: int, fps: int, tokens_per_second: int) -> np.ndarray:
    """Where the runtime puts each step of a clip: int64 (steps,), from 0 on."""
    return (np.arange(steps) * (FRAMES / fps) * tokens_per_second).astype(np.int64)


def clip_positions(capture: Capture, tokens_per_second: int, least: int = 1) -> np.ndarray:
    """Where transformers puts each step of a captured clip, from 0 on.

    Args:
        capture: the clip.
        tokens_per_second: of the checkpoint.
        least: go on to so many steps, if the clip has fewer.

    Raises:
        InputError: the capture's rate or length can't be.
    """
    seconds, steps = capture.second_per_grid_ts, capture.grid_thw[0]
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise InputError(f"{CAPTURE}: {steps!r} temporal steps; run run_video_by_sec.py again")
    longest = MAX_POSITION / (max(steps, least) * tokens_per_second)
    if type(seconds) not in (int, float) or not 0 < seconds < longest:
        raise InputError(
            f"{CAPTURE}: second_per_grid_ts is {seconds!r}, expected seconds; run run_video_by_sec.py again"
        )
    return time_positions(max(steps, least), seconds, tokens_per_second)


def late_clip(capture: Capture, tokens_per_second: int, cache_len: int) -> str | None:
    """Whether a clip lasts so long that little is left to answer: positions count time, and the cache ends them.

    Args:
        capture: the clip.
        tokens_per_second: of the checkpoint.
        cache_len: positions that the language model's cache holds.
    """
    if not tokens_per_second:  # time stands in the prompt as text
        return None
    last = int(clip_positions(capture, tokens_per_second)[-1])
    if last + ANSWER <= cache_len:
        return None
    return (
        f"the clip's last step is at position {last}, and the runtime ends an answer at position {cache_len}, the "
        "cache's length"
    )


def time_settings(capture: Capture | None, tokens_per_second: int) -> TimeSettings:
    """The pair for a capture: the rounded rate with the checkpoint's own number if that is exact, else another.

    Args:
        capture: the clip; None: there is none.
        tokens_per_second: of the checkpoint.

    Returns:
        Of the pairs that place every step of the clip exactly, the one that does so best beyond the clip's end;
        where there is none, the nearest, with a warning that says how far off the last step is.

    Raises:
        InputError: the capture's rate or length can't be.
    """
    if not tokens_per_second:
        warning = "the runtime is not known to write this model's time stamps: its answers about videos are doubtful"
        return TimeSettings(DEFAULT_FPS, TOKENS_PER_SECOND, warning if capture else None)
    if capture is None:
        warning = f"no {CAPTURE} in the work directory: vision_fps is set to {DEFAULT_FPS}"
        return TimeSettings(DEFAULT_FPS, tokens_per_second, warning)
    steps = capture.grid_thw[0]
    beyond = clip_positions(capture, tokens_per_second, STEPS)
    wanted = beyond[:steps]
    seconds = capture.second_per_grid_ts
    natural = min(max(1, round(FRAMES / seconds)), MAX_FPS), tokens_per_second
    if _error(natural, wanted) == (0, 0):
        return TimeSettings(*natural)
    pairs = [natural, *_pairs(seconds * tokens_per_second)]
    best = min(pairs, key=lambda pair: (_error(pair, wanted), _error(pair, beyond)))
    furthest, _ = _error(best, wanted)
    if not furthest:
        return TimeSettings(*best)
    last = int(runtime_positions(steps, *best)[-1] - wanted[-1])
    return TimeSettings(
        *best,
        f"no vision_fps and vision_tokens_per_second give transformers' time axis for steps of {seconds:.6g} s: with "
        f"{best[0]} and {best[1]} a step is up to {furthest} positions off, the last one {last:+d}",
    )


def _pairs(step: float) -> list[tuple[int, int]]:
    """Pairs whose step is a little shorter or longer than the wanted one, in positions."""
    exact = [(fps, step * fps / FRAMES) for fps in range(1, MAX_FPS + 1)]
    pairs = [(fps, near) for fps, number in exact for near in (math.floor(number), math.ceil(number))]
    return [pair for pair in pairs if pair[1] >= 1]


def _error(pair: tuple[int, int], wanted: np.ndarray) -> tuple[int, int]:
    """The largest distance from the wanted positions, and in how many steps there is any."""
    off = np.abs(runtime_positions(len(wanted), *pair) - wanted)
    return int(off.max()), int(np.count_nonzero(off))
