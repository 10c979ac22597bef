"""get_calib.py in this process, and what its manifest says is in a sample."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

import get_calib
from preprocess import patchify

SIZE = 56, 84

ARGUMENTS = ["--size", "56", "84", "--num-samples", "6"]


def calibrate(*inputs: Path, workdir: Path, more=()) -> tuple[dict, Path]:
    """Runs the script and returns its manifest and directory."""
    given_inputs = ["--inputs", *map(str, inputs)] if inputs else []
    assert get_calib.main([*given_inputs, *ARGUMENTS, "--workdir", str(workdir), *more]) == 0
    calib = workdir / "calib"
    return json.loads((calib / "manifest.json").read_text(encoding="utf-8")), calib


def expected_patches(sample: dict) -> np.ndarray:
    """What a manifest entry says is in its sample, decoded by Pillow or in one go from the start of the video."""
    first, second = sample["frames"]
    if Path(sample["source"][0]).suffix == ".mp4":
        with av.open(sample["source"][0]) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        pair = [frames[first], frames[second]]
    else:
        pair = [Image.open(path) for path in (sample["source"][0], sample["source"][-1])]
    resized = [image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC) for image in pair]
    return with_range(patchify(np.stack(resized))[0], sample)


def with_range(patches: np.ndarray, sample: dict) -> np.ndarray:
    """Patches with what the manifest says was changed in a sample."""
    patches = patches.copy()
    for change in sample.get("range", ()):
        place = tuple(change["index"])
        assert patches[place] == change["before"]
        patches[place] = change["after"]
    return patches
