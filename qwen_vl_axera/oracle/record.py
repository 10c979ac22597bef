"""What step 1 saves: `capture.json`, the clip's pixels, transformers' answer, and the layout of one step."""

import io
import math
from collections.abc import Iterable
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from preprocess import MERGE_SIZE, TEMPORAL_PATCH_SIZE, check_size, num_tokens, patches_shape
from qwen_vl_axera.contract import CAPTURE, EXACT, ORACLE, PIXELS, STEP_PATCHES
from qwen_vl_axera.doors import check_output, open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, read_array, read_record, require, write_array, write_record
from qwen_vl_axera.made_from import made_from, stale
from qwen_vl_axera.memory import check_memory
from qwen_vl_axera.record import Count, Positive, Rate, Sha256, Text, record

MADE_BY = "run_video_by_sec.py"


def files(layout: Iterable[str]) -> list[str]:
    """The files of step 1 but for capture.json, for the layout tensors of a tower."""
    return [*(f"{name}.pth" for name in dict.fromkeys((STEP_PATCHES, *layout))), PIXELS, ORACLE, EXACT]


@record
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
        exact_steps: the temporal steps whose exact answer is in `vit_exact.npy`; earlier captures have none, and
            only the gate needs it.
        made_from: the files of this capture: each is read only while it is the one that was written with the others.

    Raises:
        ValueError: a field is of another type or out of range, or two contradict each other.
    """

    size: tuple[Positive, Positive]
    grid_thw: tuple[Positive, Positive, Positive]
    kind: Literal["video", "frames", "images"]
    source: Annotated[list[Text], Field(min_length=1)]
    indices: Annotated[list[Count], Field(min_length=1)]
    sample_fps: Rate
    second_per_grid_ts: Rate
    checkpoint: Text
    versions: dict[str, str]
    exact_steps: list[Count] = field(default_factory=list)
    made_from: dict[str, Sha256] = field(default_factory=dict)

    def __post_init__(self):
        steps, *grid = self.grid_thw
        if tuple(self.patch_size * count for count in grid) != self.size:
            raise ValueError(f"grid_thw {list(self.grid_thw)} is not of size {list(self.size)}")
        check_size(*self.size, self.factor)
        if math.ceil(len(self.indices) / TEMPORAL_PATCH_SIZE) != steps:
            raise ValueError(f"{len(self.indices)} indices do not make the {steps} steps of grid_thw")
        if not math.isclose(self.second_per_grid_ts * self.sample_fps, TEMPORAL_PATCH_SIZE, rel_tol=1e-6):
            raise ValueError(f"second_per_grid_ts {self.second_per_grid_ts} is not two frames at sample_fps")
        if sorted({step for step in self.exact_steps if step < steps}) != self.exact_steps:
            raise ValueError(f"exact_steps {self.exact_steps} are not steps of the clip in their order")

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""
        return self.size[0] // self.grid_thw[1]

    @property
    def factor(self) -> int:
        """Pixels per side of a token."""
        return self.patch_size * MERGE_SIZE

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Temporal steps, rows and columns of tokens."""
        steps, rows, columns = self.grid_thw
        return steps, rows // MERGE_SIZE, columns // MERGE_SIZE

    @property
    def num_tokens(self) -> int:
        """Tokens that the clip takes in the prompt."""
        return self.grid_thw[0] * num_tokens(*self.size, self.patch_size)


def read_capture(workdir: Path) -> Capture:
    """Reads `capture.json`.

    Raises:
        InputError: it is missing or not one; the message names the command that makes it.
    """
    return read_record(Path(workdir) / CAPTURE, Capture, f"{MADE_BY} CKPT --video PATH")


def read_pixels(workdir: Path, capture: Capture) -> np.ndarray:
    """The clip as the device sees it: uint8 (T, S, 392, 3), memory-mapped.

    Raises:
        InputError: missing, no array, not of the capture's shape, or of another capture.
    """
    shape = patches_shape(capture.grid_thw[0], capture.size, capture.patch_size)
    return _read(workdir, capture, PIXELS, np.uint8, shape)


def read_oracle(workdir: Path, capture: Capture) -> np.ndarray:
    """transformers' answer: float32 (T, S/4, out_hidden), memory-mapped.

    Raises:
        InputError: missing, no array, not of the capture's shape, of another capture, or not finite.
    """
    oracle = _read(workdir, capture, ORACLE, np.float32, (capture.num_tokens, None))
    return oracle.reshape(capture.grid_thw[0], -1, oracle.shape[1])


def read_exact(workdir: Path, capture: Capture) -> np.ndarray:
    """transformers' answer in float64: (E, S/4, out_hidden) for the capture's `exact_steps`, memory-mapped.

    Raises:
        InputError: missing, no array, not of the capture's shape, of another capture, or not finite.
    """
    # A capture without exact steps is one of an earlier version: no array fits it.
    count = len(capture.exact_steps) or -1
    return _read(workdir, capture, EXACT, np.float64, (count, capture.num_tokens // capture.grid_thw[0], None))


def _read(workdir: Path, capture: Capture, name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of the capture: its shape is asked before its content, so that no large file is read for nothing."""
    path = Path(workdir) / name
    values = read_array(path, MADE_BY)
    fits = len(values.shape) == len(shape) and all(
        side in (None, found) for side, found in zip(shape, values.shape, strict=True)
    )
    if values.dtype != dtype or not fits:
        raise InputError(f"{path} does not fit {CAPTURE}: run {MADE_BY} again")
    check_memory(values.nbytes, str(path))
    finite(values, path)
    check_unchanged(workdir, capture, name)
    return values


def finite(values: np.ndarray, path: Path) -> None:
    """That every value is finite.

    Raises:
        InputError: one is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path} holds NaN or infinite values: run {MADE_BY} again")


def check_unchanged(workdir: Path, capture: Capture, *names: str) -> None:
    """That files of a capture are those that were written with it.

    Raises:
        InputError: one is another; the message names the command that makes all of them anew.
    """
    about = {name: value for name, value in capture.made_from.items() if name in names}
    if problem := stale(about, workdir):
        raise InputError(f"{Path(workdir) / CAPTURE} is about other files ({problem}): run {MADE_BY} again")


def read_layout(workdir: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The layout tensors of these names that transformers derived for one step.

    Raises:
        InputError: a file is missing, is not a plain tensor (no other pickled object is loaded), or not finite.
    """
    import torch

    tensors = {}
    for name in names:
        path = require(Path(workdir) / f"{name}.pth", MADE_BY)
        try:
            with open_file(path) as file:
                tensors[name] = torch.load(file, map_location="cpu", weights_only=True).numpy()
        except InputError:
            raise
        except Exception:  # torch raises pickle, zip and runtime errors here, with advice to allow pickles
            raise InputError(f"{path}: not a plain tensor, no other object is read; run {MADE_BY} again") from None
        finite(tensors[name], path)
    return tensors


def check_outputs(workdir: Path, layout: Iterable[str]) -> None:
    """That everything of step 1 can be written, layout tensors of these names too: asked before the work.

    Raises:
        InputError: something that is no regular file has a name of it.
    """
    for name in (*files(layout), CAPTURE):
        check_output(Path(workdir) / name)


def save_capture(
    workdir: Path, capture: Capture, pixels: np.ndarray, oracle: np.ndarray, exact: np.ndarray, layout: dict
) -> Capture:
    """Writes everything of step 1; `capture.json` comes last, so that it never describes other files.

    Args:
        workdir: an existing directory.
        capture: the clip and its size.
        pixels: uint8 (T, S, 392, 3).
        oracle: float32 (T·S/4, out_hidden).
        exact: float64 (E, S/4, out_hidden).
        layout: transformers' layout of one step and its normalised patches, by the names of their files.

    Returns:
        The capture as it was written, with the hashes of these files.
    """
    import torch

    workdir = Path(workdir)
    check_outputs(workdir, layout)
    (workdir / CAPTURE).unlink(missing_ok=True)
    for name, tensor in layout.items():
        buffer = io.BytesIO()
        # A view is saved with all the memory behind it, used or not: a copy holds its own values only.
        torch.save(tensor.clone(memory_format=torch.contiguous_format), buffer)
        with atomic_write(workdir / f"{name}.pth") as file:
            file.write(buffer.getbuffer())
    write_array(workdir / PIXELS, pixels)
    write_array(workdir / ORACLE, oracle)
    write_array(workdir / EXACT, exact)
    capture = replace(capture, made_from=made_from([workdir / name for name in files(layout)], workdir))
    write_record(workdir / CAPTURE, Capture, capture)
    return capture


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
