"""Frames per second of preprocess.py and of what does the same elsewhere, in turn within one process.

    python bench/frame_rate.py [--frames N] [--rounds N] [--processors]

Frames are 768x576 and become 336x252 (width x height), as a clip of that shape does by default. `--processors` adds
transformers' image processors, Pillow's and torchvision's. Ours is measured twice: as the chain uses it (uint8, the
input of the graph), and with every frame as a still and normalised, which is to the bit what transformers' gives.
Prints: JSON: the seconds of each round, and the share of equal values.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from preprocess import MAX_PIXELS, MIN_PIXELS, TEMPORAL_PATCH_SIZE, frames_to_patches, normalize, resize

HEIGHT, WIDTH = 576, 768
SIZE = 252, 336


def normalized_stills(frames: list[Image.Image]) -> np.ndarray:
    """Each frame in both slots of a step of its own, float32 (N·S, 1176) in transformers' order."""
    patches = frames_to_patches([frame for frame in frames for _ in range(TEMPORAL_PATCH_SIZE)], SIZE)
    values = normalize(patches)  # (N, 3, S, 392)
    return values.transpose(0, 2, 1, 3).reshape(values.shape[0] * values.shape[2], -1)


def processors() -> dict[str, Callable]:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl, image_processing_qwen2_vl

    bounds = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    pillow = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(**bounds)
    torchvision = image_processing_qwen2_vl.Qwen2VLImageProcessor(**bounds)
    return {
        "processor_pillow": lambda frames: pillow(images=frames, return_tensors="np")["pixel_values"],
        "processor_torchvision": lambda frames: torchvision(images=frames, return_tensors="np")["pixel_values"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--processors", action="store_true")
    args = parser.parse_args(argv)

    random = np.random.default_rng(0)
    shape = HEIGHT, WIDTH, 3
    frames = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(args.frames)]
    tasks: dict[str, Callable] = {
        "preprocess": lambda frames: frames_to_patches(frames, SIZE),
        "preprocess_normalized": normalized_stills,
        "resize_pillow": lambda frames: [resize(frame, SIZE) for frame in frames],
    }
    peers = processors() if args.processors else {}
    tasks |= peers
    result: dict = {"frames": args.frames, "seconds": {name: [] for name in tasks}}
    if peers:
        expected = normalized_stills(frames)
        result["same_bits"] = {name: float(np.mean(task(frames) == expected)) for name, task in peers.items()}
    for task in tasks.values():  # warms up
        task(frames[:4])
    for number in range(args.rounds):
        for name in list(tasks) if number % 2 == 0 else reversed(list(tasks)):
            start = time.monotonic()
            tasks[name](frames)
            result["seconds"][name].append(time.monotonic() - start)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
