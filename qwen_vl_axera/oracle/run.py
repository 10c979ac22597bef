"""Step 1: a clip through transformers' own tower, one temporal step at a time."""

import math
from pathlib import Path

import numpy as np

from preprocess import frames_to_patches
from qwen_vl_axera.checkpoint.expected import check_vision
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.doors import check_memory
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.frames.media import Clip
from qwen_vl_axera.oracle.record import Capture, save_capture, versions

# One step alone and the same step within its clip are the same sums, batched differently: the measured
# difference is 6e-8 of the largest output.
STEPWISE_TOLERANCE = 1e-5


def run_clip(checkpoint: Checkpoint, workdir: Path, clip: Clip, size: tuple[int, int], device: str = "cpu") -> Capture:
    """Runs a clip through transformers' tower, step by step and several at once, and saves what came out.

    Args:
        checkpoint: the model.
        workdir: where the files go.
        clip: the frames.
        size: height and width in pixels.
        device: where the tower runs.

    Raises:
        CheckFailed: a step alone is not what it is among others, or the steps' layouts differ.
    """
    check_vision(checkpoint, size)
    vision = checkpoint.config.vision
    grid = vision.grid(size)
    steps = -(-len(clip.frames) // vision.temporal_patch_size)
    check_memory(steps * math.prod(vision.input_shape(size)), f"the clip's {len(clip.frames)} frames")
    pixels = frames_to_patches(clip.frames, size)
    tower = checkpoint.tower.reference(checkpoint, vision, device)
    oracle, layout = tower.run_steps(pixels, grid)
    if len(pixels) > 1:
        together = tower.run_together(pixels, grid)
        error = float(np.abs(oracle - together).max() / np.abs(together).max())
        if not error <= STEPWISE_TOLERANCE:
            raise CheckFailed(
                f"step by step differs from several steps at once by {error:.1e} of the largest value "
                f"(at most {STEPWISE_TOLERANCE:.0e})"
            )
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
    )
    save_capture(workdir, capture, pixels, oracle, layout.tensors())
    return capture
