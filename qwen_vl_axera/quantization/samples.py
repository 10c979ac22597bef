"""What a simulation is calibrated on and what it is judged on, and that the two never share a frame."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess import TEMPORAL_PATCH_SIZE, frames_to_patches, normalize, to_graph_input
from qwen_vl_axera.calibration.archive import restore_range
from qwen_vl_axera.calibration.manifest import read_manifest
from qwen_vl_axera.compiler.schema import BuildConfig
from qwen_vl_axera.contract import CALIB_MANIFEST, CAPTURE
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.media import load_clip
from qwen_vl_axera.oracle.record import read_capture, read_pixels
from qwen_vl_axera.preflight.archive import as_pixels, iter_samples

MADE_BY = "get_calib.py"
FEWEST = 2  # samples; one shows the range of one picture only


@dataclass(frozen=True)
class CalibrationSamples:
    """The samples of an archive that a build would be calibrated on.

    Attributes:
        path: the archive.
        count: how many of them, from the first on.
        contract: what the graph's input holds, "pixels" or "normalized".
        shape: of the graph's input, (1, 3, S, 392).
    """

    path: Path
    count: int
    contract: str
    shape: tuple[int, ...]

    def __iter__(self) -> Iterator[np.ndarray]:
        """float32 (1, 3, S, 392) each, as the graph takes them."""
        for number, (values, _, kind) in enumerate(iter_samples(self.path)):
            if number == self.count:
                return
            pictures_to_normalise = kind == "image" and self.contract == "normalized"
            yield normalize(as_pixels(values)) if pictures_to_normalise else values

    def __len__(self) -> int:
        return self.count


def calibration_samples(
    config: BuildConfig, workdir: Path, contract: str, shape: tuple[int, ...]
) -> CalibrationSamples:
    """The samples that a configuration names.

    Args:
        config: the build configuration; its first input entry counts.
        workdir: where its paths begin.
        contract: what the graph's input holds.
        shape: of the graph's input.

    Raises:
        InputError: no archive, one of another size, or of a single sample.
    """
    if not config.quant.input_configs:
        raise InputError("the configuration calibrates no input: add quant.input_configs (see config_video.json)")
    entry = config.quant.input_configs[0]
    path = Path(workdir) / entry.calibration_dataset
    if not path.is_file():
        raise InputError(f"{path} is missing: run {MADE_BY} first")
    found = 0
    for values, name, _ in iter_samples(path):
        found += 1
        if values.shape != shape:
            raise InputError(
                f"{path}: {name} is of shape {list(values.shape)}, the graph takes {list(shape)}: run {MADE_BY} with "
                "the graph's --size"
            )
    size = entry.calibration_size
    count = found if size == -1 else min(size, found)
    if count < FEWEST:
        raise InputError(
            f"{path}: {count} sample to calibrate on; one picture's range fits no other: run {MADE_BY} again"
        )
    return CalibrationSamples(path, count, contract, shape)


@dataclass(frozen=True)
class EvaluationClip:
    """Frames that a simulation is judged on.

    Attributes:
        name: for people.
        pixels: uint8 (T, S, 392, 3).
        frames: (file, frame number) of each frame, where they are known.
        grid_thw: temporal steps, rows and columns of patches.
        second_per_grid_ts: seconds of one step.
    """

    name: str
    pixels: np.ndarray
    frames: tuple[tuple[str, int], ...]
    grid_thw: tuple[int, int, int]
    second_per_grid_ts: float

    def graph_inputs(self, contract: str) -> list[np.ndarray]:
        """float32 (1, 3, S, 392) for each step."""
        make = to_graph_input if contract == "pixels" else normalize
        return [make(np.ascontiguousarray(step)) for step in self.pixels]


def evaluation_clips(
    paths: Sequence[Path], workdir: Path, size: tuple[int, int], grid: tuple[int, int]
) -> list[EvaluationClip]:
    """The clips given, or the captured one.

    Args:
        paths: videos, directories of frames, pictures: one clip each.
        workdir: holds the capture, taken when no path is given.
        size: height and width of the graph.
        grid: rows and columns of patches.

    Raises:
        InputError: nothing is given and nothing captured, or a path does not decode.
    """
    if not paths:
        if not (Path(workdir) / CAPTURE).is_file():
            raise InputError(f"no --evaluate and no {Path(workdir) / CAPTURE}: say which frames to judge on")
        capture = read_capture(workdir)
        if capture.size != size:
            raise InputError(f"the capture is of {capture.size}, the graph of {size}: give --evaluate PATH...")
        frames = _frame_names(capture.kind, capture.source, capture.indices)
        pixels = read_pixels(workdir, capture)
        return [EvaluationClip("the captured clip", pixels, frames, capture.grid_thw, capture.second_per_grid_ts)]
    clips = []
    for path in paths:
        clip = load_clip([path])
        pixels = frames_to_patches(clip.frames, size, patch_size=size[0] // grid[0])
        frames = _frame_names(clip.kind, [str(path) for path in clip.source], clip.indices)
        clips.append(
            EvaluationClip(path.name, pixels, frames, (len(pixels), *grid), TEMPORAL_PATCH_SIZE / clip.sample_fps)
        )
    return clips


def _frame_names(kind: str, source: Sequence[str], indices: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """Where each frame of a video lies; pictures are told apart by their pixels alone."""
    return tuple((str(Path(source[0]).resolve()), int(index)) for index in indices) if kind == "video" else ()


def check_disjoint(samples: CalibrationSamples, clips: Sequence[EvaluationClip]) -> list[str]:
    """Makes sure that no evaluation frame is calibrated on: by file and frame number, and by its pixels.

    Returns:
        A note for each clip whose file the calibration set was taken from, too.

    Raises:
        InputError: a frame is in both.
    """
    manifest = samples.path.parent / CALIB_MANIFEST
    entries = read_manifest(manifest.parent).samples[: len(samples)] if manifest.is_file() else []
    known = {(str(Path(file).resolve()), frame) for entry in entries for file in entry.source for frame in entry.frames}
    changed = {entry.file: entry.range for entry in entries}
    seen: set[bytes] = set()
    for number, (values, name, _) in enumerate(iter_samples(samples.path)):
        if number < len(samples):
            seen |= set(frame_digests(restore_range(as_pixels(values), changed.get(name))))
    notes = []
    for clip in clips:
        common = sorted(frame for file, frame in clip.frames if (file, frame) in known)
        count = len(common) or sum(digest in seen for step in clip.pixels for digest in frame_digests(step))
        if count:
            which = f"frames {', '.join(map(str, common[:8]))}" if common else f"{count} frames"
            raise InputError(
                f"{clip.name}: {which} are in the calibration set {samples.path}: what was calibrated on flatters. "
                "Give other frames with --evaluate, or calibrate on others with get_calib.py --inputs"
            )
        if {file for file, _ in clip.frames} & {file for file, _ in known}:
            notes.append(f"{clip.name}: calibrated on other frames of the same file, which flatters")
    return notes


def check_apart(choosing: Sequence[EvaluationClip], judging: Sequence[EvaluationClip]) -> None:
    """Makes sure that no frame chooses a mix and judges it: by file, and by pixels.

    Raises:
        InputError: a frame is in both.
    """
    files = {file for clip in choosing for file, _ in clip.frames}
    seen = {digest for clip in choosing for step in clip.pixels for digest in frame_digests(step)}
    for clip in judging:
        same = {file for file, _ in clip.frames} & files
        if same or any(digest in seen for step in clip.pixels for digest in frame_digests(step)):
            raise InputError(f"{clip.name}: is given twice, and would judge what it has chosen; give another clip")


def frame_digests(patches: np.ndarray) -> list[bytes]:
    """A digest of each frame of a step, uint8 (S, 392, 3)."""
    slots = patches.reshape(len(patches), TEMPORAL_PATCH_SIZE, -1)
    return [hashlib.sha256(np.ascontiguousarray(slots[:, slot])).digest() for slot in range(TEMPORAL_PATCH_SIZE)]


def describe(clips: Sequence[EvaluationClip]) -> dict[str, Any]:
    """The clips' entry in `quantization.json`."""
    return {"clips": [clip.name for clip in clips], "steps": sum(len(clip.pixels) for clip in clips)}
