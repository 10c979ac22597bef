"""Seconds for a number of frames, by preprocess.py or by what does the same elsewhere.

    python bench/frame_rate.py TASK [--frames N] [--rounds N]

Frames are 768x576 and become 336x252 (width x height), as a clip of that shape does by default. Ours is measured
twice: as the chain uses it (uint8, the input of the graph), and with every frame as a still and normalised, which is
to the bit what transformers' processors give; `same_bits` compares just that.
One task a process: what one leaves behind in the memory allocator makes another one faster or slower.
Prints: JSON: the seconds of each round after a first one, or the share of equal values.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from preprocess import MAX_PIXELS, MIN_PIXELS, TEMPORAL_PATCH_SIZE, flat_patches, frames_to_patches, resize
from qwen_vl_axera import cli

HEIGHT, WIDTH = 576, 768
SIZE = 252, 336


def normalized_stills(frames: list[Image.Image]) -> np.ndarray:
    """Each frame in both slots of a step of its own, float32 (N·S, 1176) in transformers' order."""
    return flat_patches(frames_to_patches([frame for frame in frames for _ in range(TEMPORAL_PATCH_SIZE)], SIZE))


def pillow_processor(frames: list[Image.Image]) -> np.ndarray:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return processor(images=frames, return_tensors="np")["pixel_values"]


def torchvision_processor(frames: list[Image.Image]) -> np.ndarray:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return processor(images=frames, return_tensors="np")["pixel_values"]


TASKS: dict[str, Callable[[list[Image.Image]], object]] = {
    "preprocess": lambda frames: frames_to_patches(frames, SIZE),
    "preprocess_normalized": normalized_stills,
    "resize_pillow": lambda frames: [resize(frame, SIZE) for frame in frames],
    "processor_pillow": pillow_processor,
    "processor_torchvision": torchvision_processor,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("task", choices=[*TASKS, "same_bits"])
    parser.add_argument("--frames", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    args = parser.parse_args(argv)

    random = np.random.default_rng(0)
    shape = HEIGHT, WIDTH, 3
    frames = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(args.frames)]
    if args.task == "same_bits":
        print(json.dumps({"equal": float(np.mean(pillow_processor(frames) == normalized_stills(frames)))}))
        return 0
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.monotonic()
        TASKS[args.task](frames)
        seconds.append(time.monotonic() - start)
    print(json.dumps({"seconds": seconds[1:]}))  # the first one imports and warms up
    return 0


if __name__ == "__main__":
    sys.exit(main())
