"""Rotary positions (M-RoPE) for a prompt with pictures and clips. Pure numpy.

Every token has three positions: time, row and column. Text counts up on all three together; the
tokens of a clip count steps in time and rows and columns of the merged grid. This is the rule that the
released models were trained with and that transformers 4.49 to 4.57 computes (`get_rope_index` of
https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py):
text after a clip starts one past the largest position on *any* axis. transformers 5 advances by the
larger side of the grid alone, so a clip that lasts longer than it is wide would overlap the text
behind it. Computing the positions here and passing them gives the same numbers on every version.
"""

from collections.abc import Sequence

import numpy as np

from qwen_vl_axera.errors import InputError


def mrope_position_ids(
    input_ids,
    *,
    image_grid_thw=None,
    video_grid_thw=None,
    second_per_grid_ts: Sequence[float] | None = None,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    spatial_merge_size: int,
    tokens_per_second: float,
) -> tuple[np.ndarray, int]:
    """Positions of one prompt and the position of the first token generated after it.

    Args:
        input_ids: int (L,) or (1, L), the pads already repeated: T·H·W / merge² per picture or clip.
        image_grid_thw: int (pictures, 3), patches per axis, in the order of the prompt; None for none.
        video_grid_thw: int (clips, 3), likewise.
        second_per_grid_ts: seconds from one temporal step to the next, one per clip
            (temporal_patch_size / sampling rate). None: one second each.
        image_token_id, video_token_id, vision_start_token_id: from config.json.
        spatial_merge_size: patches per merged token and axis.
        tokens_per_second: positions per second on the time axis.

    Returns:
        position_ids int64 (3, 1, L), axes in the order time, row, column; and the next position, the
        same on all three axes, one past the largest so far.

    Raises:
        InputError: more than one prompt, a grid that does not divide, or pads, starts and grids that
            do not match each other.
    """
    ids = np.asarray(input_ids)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or not len(ids):
        raise InputError(f"input_ids has the shape {np.shape(input_ids)}, expected one prompt: (L,) or (1, L)")

    images, videos = _grids(image_grid_thw, "image"), _grids(video_grid_thw, "video")
    seconds = [1.0] * len(videos) if second_per_grid_ts is None else list(second_per_grid_ts)
    if len(seconds) != len(videos):
        raise InputError(f"second_per_grid_ts has {len(seconds)} values, expected one per clip: {len(videos)}")
    # Steps along time: a picture has one, at time 0.
    waiting = {
        image_token_id: [(grid, 0.0) for grid in images],
        video_token_id: [(grid, float(second)) for grid, second in zip(videos, seconds, strict=True)],
    }

    parts: list[np.ndarray] = []
    at, position = 0, 0
    while at < len(ids):
        token = int(ids[at])
        if token not in waiting:
            part = np.full((3, 1), position)
        else:
            if at == 0 or ids[at - 1] != vision_start_token_id:
                raise InputError(f"token {at} is a pad that neither follows a vision start nor fits the grids before")
            if not waiting[token]:
                raise InputError(f"token {at} starts a picture or clip for which no grid was given")
            grid, second = waiting[token].pop(0)
            part = position + _grid_positions(grid, second, spatial_merge_size, tokens_per_second)
            pads = ids[at : at + part.shape[1]]
            if len(pads) < part.shape[1] or (pads != token).any():
                found = int(np.argmax(np.append(pads != token, True)))
                raise InputError(f"token {at}: grid {grid} needs {part.shape[1]} pads, the prompt has {found}")
        parts.append(part)
        at += part.shape[1]
        position = int(part.max()) + 1
    left = len(waiting[image_token_id]) + len(waiting[video_token_id])
    if left:
        raise InputError(f"{left} grids of {len(images) + len(videos)} have no pads in the prompt")
    return np.concatenate(parts, axis=1).astype(np.int64)[:, None], position


def _grids(grids, name: str) -> list[tuple[int, int, int]]:
    if grids is None:
        return []
    array = np.asarray(grids)
    if array.ndim != 2 or array.shape[1] != 3 or (array < 1).any():
        raise InputError(f"{name}_grid_thw has the shape {array.shape}, expected rows of three positive numbers")
    return [tuple(int(side) for side in row) for row in array]


def time_positions(steps: int, second_per_grid: float, tokens_per_second: float) -> np.ndarray:
    """Where the steps of a clip stand on the time axis: int64 (steps,), from 0 on."""
    # In float32 and in this order, as in the models' own code: the cut to an integer depends on it.
    times = np.arange(steps, dtype=np.float32) * np.float32(second_per_grid) * np.float32(tokens_per_second)
    return times.astype(np.int64)


def _grid_positions(
    grid: tuple[int, int, int], second_per_grid: float, spatial_merge_size: int, tokens_per_second: float
) -> np.ndarray:
    """Positions of a grid's merged tokens from 0 on: int64 (3, tokens), in reading order."""
    steps, height, width = grid
    if height % spatial_merge_size or width % spatial_merge_size:
        raise InputError(f"grid {grid}: rows and columns must be multiples of {spatial_merge_size}")
    axes = np.meshgrid(
        time_positions(steps, second_per_grid, tokens_per_second),
        np.arange(height // spatial_merge_size),
        np.arange(width // spatial_merge_size),
        indexing="ij",
    )
    return np.stack([axis.reshape(-1) for axis in axes])
