"""What step 1 saves: `capture.json`, the clip's pixels, transformers' answer, and the layout of one step."""

import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from preprocess import num_tokens
from qwen_vl_axera.contract import CAPTURE, LAYOUT_TENSORS, ORACLE, PIXELS, STEP_PATCHES
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, read_array, read_json, require, write_array, write_json

MADE_BY = "run_video_by_sec.py"


@dataclass(frozen=True)
class Capture:
    """`capture.json`.

    Attributes:
        size: height and width in pixels.
        grid_thw: temporal steps, rows and columns of patches.
        kind: "video", "frames" or "images".
        source: the files or the directory that the frames came from.
        indices: the frames taken, counted from 0.
        sample_fps: frames per second after sampling.
        second_per_grid_ts: seconds of one temporal step.
        checkpoint: the checkpoint directory's name.
        versions: of the packages that computed it.
    """

    size: tuple[int, int]
    grid_thw: tuple[int, int, int]
    kind: str
    source: list[str]
    indices: list[int]
    sample_fps: float
    second_per_grid_ts: float
    checkpoint: str
    versions: dict[str, str]

    @property
    def num_tokens(self) -> int:
        """Tokens that the clip takes in the prompt."""
        return self.grid_thw[0] * num_tokens(*self.size)


def read_capture(workdir: Path) -> Capture:
    """Reads `capture.json`.

    Raises:
        InputError: it is missing (the message names the command that makes it) or not complete.
    """
    path = Path(workdir) / CAPTURE
    if not os.path.lexists(path):
        raise InputError(f"{path} is missing: run {MADE_BY} CKPT --video PATH first (same --workdir)")
    raw = read_json(path)
    try:
        fields = {name: raw[name] for name in Capture.__dataclass_fields__}
        fields |= {"size": tuple(raw["size"]), "grid_thw": tuple(raw["grid_thw"])}
        return Capture(**fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: incomplete ({error}); run {MADE_BY} again") from None


def read_pixels(workdir: Path, capture: Capture) -> np.ndarray:
    """The clip as the device sees it: uint8 (T, S, 392, 3), memory-mapped.

    Raises:
        InputError: missing, no array, or not of the capture's shape.
    """
    pixels = read_array(Path(workdir) / PIXELS, MADE_BY)
    steps, rows, columns = capture.grid_thw
    if pixels.dtype != np.uint8 or pixels.shape[:2] != (steps, rows * columns):
        raise InputError(f"{workdir}/{PIXELS} does not fit {CAPTURE}: run {MADE_BY} again")
    return pixels


def read_oracle(workdir: Path, capture: Capture) -> np.ndarray:
    """transformers' answer: float32 (T, S/4, out_hidden), memory-mapped.

    Raises:
        InputError: missing, no array, or not of the capture's shape.
    """
    oracle = read_array(Path(workdir) / ORACLE, MADE_BY)
    if oracle.ndim != 2 or len(oracle) != capture.num_tokens:
        raise InputError(f"{workdir}/{ORACLE} does not fit {CAPTURE}: run {MADE_BY} again")
    return oracle.reshape(capture.grid_thw[0], -1, oracle.shape[1])


def read_layout(workdir: Path) -> dict[str, np.ndarray]:
    """The four layout tensors that transformers derived for one step.

    Raises:
        InputError: a file is missing, or is not a plain tensor (no other pickled object is loaded).
    """
    import torch

    tensors = {}
    for name in LAYOUT_TENSORS:
        path = require(Path(workdir) / f"{name}.pth", MADE_BY)
        try:
            with open_file(path) as file:
                tensors[name] = torch.load(file, map_location="cpu", weights_only=True).numpy()
        except InputError:
            raise
        except Exception:  # torch raises pickle, zip and runtime errors here, with advice to allow pickles
            raise InputError(f"{path}: not a plain tensor, no other object is read; run {MADE_BY} again") from None
    return tensors


def save_capture(workdir: Path, capture: Capture, pixels: np.ndarray, oracle: np.ndarray, layout: dict) -> None:
    """Writes everything of step 1; `capture.json` comes last, so that it never describes other files.

    Args:
        workdir: an existing directory.
        capture: the clip and its size.
        pixels: uint8 (T, S, 392, 3).
        oracle: float32 (T·S/4, out_hidden).
        layout: transformers' layout of one step, by the names of its files.
    """
    import torch

    from preprocess import normalize

    workdir = Path(workdir)
    (workdir / CAPTURE).unlink(missing_ok=True)
    tensors = layout | {STEP_PATCHES: torch.from_numpy(normalize(pixels[0]))}
    for name, tensor in tensors.items():
        buffer = io.BytesIO()
        # A view is saved with all the memory behind it, used or not: a copy holds its own values only.
        torch.save(tensor.clone(memory_format=torch.contiguous_format), buffer)
        with atomic_write(workdir / f"{name}.pth") as file:
            file.write(buffer.getbuffer())
    write_array(workdir / PIXELS, pixels)
    write_array(workdir / ORACLE, oracle)
    write_json(workdir / CAPTURE, asdict(capture))


def versions() -> dict[str, str]:
    """The installed versions of the packages that the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "onnx", "onnxruntime", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
