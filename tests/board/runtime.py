"""The arithmetic of the board's runtime (`axllm`), as small functions: a change that the board would not follow fails.

Written down from its source (https://github.com/AXERA-TECH/ax-llm, early to mid 2026; compiled on a host and
compared, no board): which frames it takes, how it infers the size, cuts patches, lays out the prompt, counts
positions. Nothing of the project is imported.
"""

import math
from pathlib import Path

import numpy as np

PAD, START, END = "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
BEFORE_MEDIA = ("Query: ", "Document: ")


def frame_files(directory: Path) -> list[Path]:
    """The frames of `video:DIR`: names sorted as strings, other files passed over."""
    known = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
    return sorted((path for path in directory.iterdir() if path.suffix.lower() in known), key=lambda path: path.name)


def infer_size(input_bytes: int, settings: dict) -> tuple[int, int]:
    """Height and width from the encoder's input: a square where the area is one, else the settings' height is kept."""
    area = input_bytes // (settings["vision_temporal_patch_size"] * 3)
    side = math.isqrt(area)
    if side * side == area:
        return side, side
    height = settings["vision_height"]
    assert area % height == 0 and (area // height) % settings["vision_patch_size"] == 0
    return height, area // height


def cut_patches(frames: list[np.ndarray], settings: dict) -> list[bytes]:
    """The encoder's input, one run for every two frames; the last one fills both slots of an odd clip.

    Args:
        frames: uint8 (H, W, 3), of the inferred size.
    """
    patch, merge = settings["vision_patch_size"], settings["vision_spatial_merge_size"]
    slots = settings["vision_temporal_patch_size"]
    height, width, _ = frames[0].shape
    runs = []
    for first in range(0, len(frames), slots):
        pair = [frames[min(first + slot, len(frames) - 1)] for slot in range(slots)]
        run = bytearray()
        for block_row in range(0, height, patch * merge):
            for block_column in range(0, width, patch * merge):
                for row in range(block_row, block_row + patch * merge, patch):
                    for column in range(block_column, block_column + patch * merge, patch):
                        for frame in pair:
                            run += frame[row : row + patch, column : column + patch].tobytes()
        runs.append(bytes(run))
    return runs


def prompt_text(question: str, num_tokens: int, settings: dict) -> str:
    """One user message about a clip, as the template "Qwen3VL" renders it, pads repeated."""
    media = START + PAD * num_tokens + END
    content = question + media if question.startswith(BEFORE_MEDIA) else media + question
    system = settings["system_prompt"]
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def time_of_step(step: int, settings: dict) -> int:
    """Position on the time axis, in double precision, cut to an integer."""
    return int(step * (2.0 / settings["vision_fps"]) * settings["vision_tokens_per_second"])


def positions(ids: list[int], pad: int, grid: tuple[int, int, int], settings: dict) -> list[list[int]]:
    """Time, row and column of every token of a prompt with one clip, one list per axis.

    Args:
        ids: the prompt.
        pad: the id that stands for the clip's tokens.
        grid: steps, rows and columns of patches.
    """
    merge = settings["vision_spatial_merge_size"]
    steps, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    start = ids.index(pad)
    text = list(range(start))
    axes = [list(text) for _ in range(3)]
    for step in range(steps):
        for row in range(rows):
            for column in range(columns):
                for axis, value in zip(axes, (time_of_step(step, settings), row, column), strict=True):
                    axis.append(start + value)
    following = max(map(max, axes)) + 1
    for axis in axes:
        axis += range(following, following + len(ids) - len(axis))
    return axes
