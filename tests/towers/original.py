"""transformers' own vision tower, as `from_pretrained` gives it: what the rooms' towers are held against."""

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from preprocess import flat_patches

# The same sums, batched or split over threads differently; relative to the largest value.
SAME_SUMS = 1e-5


def original_tower(directory: Path) -> torch.nn.Module:
    """The tower inside the full model, float32."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory).float().eval()
    return model.visual if hasattr(model, "visual") else model.model.visual


@torch.no_grad()
def run_original(tower: torch.nn.Module, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Tokens of uint8 patches (T, S, 392, 3): float32 (T·S/4, out_hidden)."""
    output = tower(torch.from_numpy(flat_patches(patches)), grid_thw=torch.tensor([[len(patches), *grid]]))
    return (output if isinstance(output, torch.Tensor) else output.pooler_output).numpy()


def random_patches(size: tuple[int, int], steps: int = 1) -> np.ndarray:
    random = np.random.default_rng(sum(size))
    return random.integers(0, 256, (steps, size[0] * size[1] // 196, 392, 3), dtype=np.uint8)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of the largest expected value."""
    return np.abs(actual - expected).max() / np.abs(expected).max()
