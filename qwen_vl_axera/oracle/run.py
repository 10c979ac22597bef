"""Step 1: a clip through transformers' own tower, one temporal step at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from preprocess import frames_to_patches, normalize
from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.expected import check_vision
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import STEP_PATCHES
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.frames.media import Clip
from qwen_vl_axera.memory import check_memory
from qwen_vl_axera.oracle.record import Capture, save_capture, versions
from qwen_vl_axera.oracle.rounding import RUNS, unexplained


def run_clip(checkpoint: Checkpoint, workdir: Path, clip: Clip, size: tuple[int, int], device: str = "cpu") -> Capture:
    """Runs a clip through transformers' tower, step by step in float32 and two steps at once exactly, and saves it all.

    Args:
        checkpoint: the model.
        workdir: where the files go.
        clip: the frames.
        size: height and width in pixels.
        device: where the tower runs.

    Raises:
        CheckFailed: a step alone is not what it is beside another one, the steps' layouts differ, or an answer is
            not finite.
    """
    import torch

    check_vision(checkpoint, size)
    vision = checkpoint.config.vision
    grid = vision.grid(size)
    steps = -(-len(clip.frames) // vision.temporal_patch_size)
    check_memory(steps * math.prod(vision.input_shape(size)), f"the clip's {len(clip.frames)} frames")
    pixels = frames_to_patches(clip.frames, size, patch_size=vision.patch_size)
    tower = checkpoint.tower.reference(checkpoint, vision, device)
    oracle, layout = tower.run_steps(pixels, grid)
    oracle = oracle.reshape(len(pixels), -1, oracle.shape[-1])
    chosen = different_steps(pixels)
    with progress.stage("exact answer", len(chosen), unit="step") as stage:
        exact = tower.run_exact(pixels[chosen], grid).reshape(-1, *oracle.shape[1:])
        stage.advance(len(chosen))
    for name, answer in (("float32", oracle), ("float64", exact)):
        if not np.isfinite(answer).all():
            raise CheckFailed(f"transformers' answer in {name} holds NaN or infinite values")
    check_steps(tower, pixels[chosen], grid, oracle[chosen], exact)
    capture = Capture(
        size=size,
        grid_thw=(len(pixels), *grid),
        kind=clip.kind,
        source=[str(path) for path in clip.source],
        indices=[int(index) for index in clip.indices],
        sample_fps=float(clip.sample_fps),
        second_per_grid_ts=vision.temporal_patch_size / float(clip.sample_fps),
        checkpoint=checkpoint.name,
        versions=versions(),
        exact_steps=chosen,
    )
    patches = torch.from_numpy(normalize(pixels[0], checkpoint.tower.mean, checkpoint.tower.std))
    tensors = layout.tensors() | {STEP_PATCHES: patches}
    return save_capture(workdir, capture, pixels, oracle.reshape(-1, oracle.shape[-1]), exact, tensors)


def different_steps(pixels: np.ndarray) -> list[int]:
    """The steps to compute exactly: the flattest and the most varied one, between which rounding differs most.

    Args:
        pixels: uint8 (T, S, 392, 3).
    """
    order = np.argsort([step.std() for step in pixels], kind="stable")
    return sorted({int(order[0]), int(order[-1])})


def check_steps(tower: Any, pixels: np.ndarray, grid: tuple[int, int], alone: np.ndarray, exact: np.ndarray) -> None:
    """Steps alone in float32 must be what they are beside one another in float64, but for rounding.

    Args:
        tower: transformers'.
        pixels: uint8 (E, S, 392, 3).
        grid: rows and columns of patches.
        alone: float32 (E, N, C), each step by itself.
        exact: float64 (E, N, C), all at once.

    Raises:
        CheckFailed: they are not.
    """

    def moved() -> np.ndarray:
        runs = [tower.run_moved(step[None], grid, seed) for seed in range(1, 1 + RUNS) for step in pixels]
        return np.stack(runs).reshape(RUNS, *alone.shape)

    if found := unexplained(alone, exact, moved):
        raise CheckFailed(
            f"step by step differs from several steps at once by {found[0]:.1e} of the answer; rounding explains "
            f"{found[1]:.1e}"
        )
