"""What calibration samples are taken from, and which of its frames."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from preprocess import TEMPORAL_PATCH_SIZE, Frame, check_aspect_ratio, unpatchify
from qwen_vl_axera.contract import CAPTURE, PIXELS
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.media import (
    DEFAULT_FPS,
    VIDEOS,
    check_input,
    is_picture,
    left_out,
    list_pictures,
    natural,
    picture_shape,
    read_picture,
)
from qwen_vl_axera.frames.video import VideoFile
from qwen_vl_axera.oracle.record import MADE_BY, Capture, read_capture, read_pixels

Pair = tuple[int, int]  # numbers of the two frames of a step; equal for a still


@dataclass(frozen=True)
class Source:
    """A clip or a picture.

    Attributes:
        count: its frames.
        fps: frames per second, or None where time has no meaning.
    """

    count: int
    fps: float | None

    @property
    def capacity(self) -> int:
        """How many samples without a common frame it gives."""
        return max(1, self.count // TEMPORAL_PATCH_SIZE)

    def files(self, pair: Pair) -> list[str]:
        """The files that two frames come from."""
        raise NotImplementedError

    def times(self, pair: Pair) -> list[float] | None:
        """When two frames are shown, in seconds; None where time has no meaning."""
        return None if self.fps is None else [index / self.fps for index in pair]

    def read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Frame, Frame]]:
        """Frames in pairs, rising; a still is the same object twice. Ends early where decoding does."""
        raise NotImplementedError


@dataclass(frozen=True)
class VideoSource(Source):
    """A video file; nothing of it is held open while it is not read."""

    video: VideoFile

    @classmethod
    def open(cls, path: Path) -> "VideoSource":
        video = VideoFile(path, check_end=False)  # samples that do not decode are left out
        _check_shape(path, video.shape)
        return cls(video.count, video.fps, video)

    def files(self, pair: Pair) -> list[str]:
        return [str(self.video.path)]

    def times(self, pair: Pair) -> list[float]:
        return [self.video.time(index) for index in pair]

    def read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Frame, Frame]]:
        frames = self.video.read([index for pair in pairs for index in sorted(set(pair))])
        for first, second in pairs:
            pair = [frame for _ in {first, second} if (frame := next(frames, None)) is not None]
            if len(pair) < len({first, second}):
                return
            yield pair[0], pair[-1]


@dataclass(frozen=True)
class PictureSource(Source):
    """Pictures that are the frames of one clip, or a single picture."""

    paths: tuple[Path, ...]

    @classmethod
    def open(cls, paths: Sequence[Path], fps: float | None = None) -> "PictureSource":
        for path in paths:
            _check_shape(path, picture_shape(path))
        return cls(len(paths), fps if len(paths) > 1 else None, tuple(paths))

    def files(self, pair: Pair) -> list[str]:
        return [str(self.paths[index]) for index in sorted(set(pair))]

    def read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Frame, Frame]]:
        for first, second in pairs:
            frame = read_picture(self.paths[first])
            yield frame, frame if first == second else read_picture(self.paths[second])


@dataclass(frozen=True)
class CaptureSource(Source):
    """The frames in `pixels.npy`, already at the graph's size."""

    path: Path
    pixels: np.ndarray  # uint8 (T, S, 392, 3), memory-mapped
    size: tuple[int, int]

    def files(self, pair: Pair) -> list[str]:
        return [str(self.path)]

    def read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Frame, Frame]]:
        def frame(index: int) -> np.ndarray:
            step, slot = divmod(index, TEMPORAL_PATCH_SIZE)
            return unpatchify(self.pixels[step : step + 1], *self.size)[slot]

        return ((frame(first), frame(second)) for first, second in pairs)


def open_inputs(inputs: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """Videos, pictures and directories as sources.

    A picture is a still. The pictures of a directory are the frames of one clip when they are all of one size,
    and stills otherwise; videos in it are one source each. Directories are not searched any deeper.

    Returns:
        The sources in the order given, and what was decided about directories.

    Raises:
        InputError: a path does not exist or decode, or a directory holds nothing usable.
    """
    sources: list[Source] = []
    notes: list[str] = []
    for path in inputs:
        check_input(path)
        if path.is_dir():
            found = _open_directory(path)
            stills = sum(source.count == 1 for source in found)
            notes.append(f"{path}: {len(found) - stills} clips, {stills} stills")
        else:
            found = [PictureSource.open([path]) if is_picture(path) else VideoSource.open(path)]
        sources += found
        notes += left_out([file for source in found for file in _paths(source)], path if path.is_dir() else None)
    return sources, notes


def _paths(source: Source) -> Sequence[Path]:
    return source.paths if isinstance(source, PictureSource) else [source.video.path]


def _open_directory(directory: Path) -> list[Source]:
    files = [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]
    files.sort(key=natural)
    videos: list[Source] = [VideoSource.open(path) for path in files if path.suffix.lower() in VIDEOS]
    if videos and not any(is_picture(path) for path in files):
        return videos
    pictures = list_pictures(directory)
    if len({picture_shape(path) for path in pictures}) == 1:
        return [*videos, PictureSource.open(pictures, DEFAULT_FPS)]
    return [*videos, *(PictureSource.open([path]) for path in pictures)]


def open_capture(workdir: Path, size: tuple[int, int] | None) -> tuple[list[Source], tuple[int, int], list[str]]:
    """The clip that `capture.json` records, whole; where it is gone, the frames in `pixels.npy`.

    Args:
        workdir: what run_video_by_sec.py left.
        size: height and width asked for; default: the capture's.

    Returns:
        The source, the size, and a note when the clip itself is gone.

    Raises:
        InputError: there is no capture, or its clip is gone and it is of another size.
    """
    if not (Path(workdir) / CAPTURE).is_file():
        raise InputError(f"no --inputs and no {Path(workdir) / CAPTURE}: give --inputs PATH..., or run {MADE_BY} first")
    capture = read_capture(workdir)
    size = size or capture.size
    paths = [Path(path) for path in capture.source]
    if paths and all(path.exists() for path in paths):
        return [_recorded_clip(capture, paths)], size, []
    if size != capture.size:
        raise InputError(
            f"{capture.source[0]} is gone and the capture is of {capture.size[0]}x{capture.size[1]}, not "
            f"{size[0]}x{size[1]}: give --inputs, or run {MADE_BY} again with --size {size[0]} {size[1]}"
        )
    pixels = read_pixels(workdir, capture)
    count = len(pixels) * TEMPORAL_PATCH_SIZE
    note = f"{capture.source[0]} is gone: the {count} frames in {PIXELS} are used"
    return [CaptureSource(count, capture.sample_fps, Path(workdir) / PIXELS, pixels, size)], size, [note]


def _recorded_clip(capture: Capture, paths: list[Path]) -> Source:
    if capture.kind == "video":
        return VideoSource.open(paths[0])
    if capture.kind == "frames":
        return PictureSource.open(list_pictures(paths[0]), capture.sample_fps)
    return PictureSource.open(paths, capture.sample_fps)


@dataclass(frozen=True)
class Pick:
    """One sample: which source, and its two frames."""

    source: int
    frames: Pair


def pick_steps(sources: Sequence[Source], num_samples: int, seed: int = 0) -> list[Pick]:
    """Spreads samples over all sources evenly, and within each over its whole length.

    A clip that gives k samples is cut into 2k stretches of equal length; the seed decides which frame is taken
    of each. No frame is taken twice, so short inputs may give fewer samples than asked for.

    Args:
        sources: where from.
        num_samples: how many.
        seed: of the choice within a stretch. The same seed gives the same frames.
    """
    shares = [0] * len(sources)
    if num_samples < len(sources):
        for index in _stretches(len(sources), num_samples, random.Random(seed)):
            shares[index] = 1
    else:
        left = min(num_samples, sum(source.capacity for source in sources))
        while left:
            for index, source in enumerate(sources):
                if left and shares[index] < source.capacity:
                    shares[index] += 1
                    left -= 1
    picks = []
    for index, (source, share) in enumerate(zip(sources, shares, strict=True)):
        if share and source.count == 1:
            picks.append(Pick(index, (0, 0)))
        elif share:
            chosen = _stretches(source.count, TEMPORAL_PATCH_SIZE * share, random.Random(f"{seed} {index}"))
            picks += [Pick(index, pair) for pair in zip(chosen[::2], chosen[1::2], strict=True)]
    return picks


def _stretches(count: int, parts: int, chance: random.Random) -> list[int]:
    """One number out of each of `parts` equal stretches of range(count), rising."""
    edges = [part * count // parts for part in range(parts + 1)]
    # random() is the one method whose sequence Python promises to keep.
    return [low + int(chance.random() * (high - low)) for low, high in pairwise(edges)]


def read_frames(sources: Sequence[Source], picks: Sequence[Pick], taken: deque[Pick]) -> Iterator[Frame]:
    """The frames of all picks, two per pick.

    Args:
        sources: where from.
        picks: rising by source and frame.
        taken: a pick is appended when its frames are read; those that don't decode are left out.
    """
    for index, source in enumerate(sources):
        of_source = [pick for pick in picks if pick.source == index]
        if of_source:
            pairs = source.read([pick.frames for pick in of_source])
            for pick, (first, second) in zip(of_source, pairs, strict=False):
                taken.append(pick)
                yield first
                yield second


def _check_shape(path: Path, shape: tuple[int, int]) -> None:
    try:
        check_aspect_ratio(*shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
