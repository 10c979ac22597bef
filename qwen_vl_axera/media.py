"""A video file, a directory of frames, or pictures -> the frames that the model is to see.

Which frames is decided here once and handed on: transformers samples by `arange`, qwen-vl-utils by
`linspace`, and the two give different frames. Files follow qwen-vl-utils 0.0.14 (`smart_nframes` and the
rounded `linspace` of its decord reader); directories and pictures are taken whole, in name order.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocess import FACTOR, MAX_PIXELS, MIN_PIXELS, smart_resize, to_rgb
from qwen_vl_axera.errors import InputError

DEFAULT_FRAMES = 8
DEFAULT_FPS = 1.0  # of frames that come as pictures
DECODE_BATCH = 8  # frames decoded at a time
PICTURES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Clip:
    """Frames to be seen, decoded only when they are iterated over.

    Attributes:
        kind: "video", "frames" (a directory) or "images".
        source: the files or the directory, as given.
        indices: the frames taken, from 0, in order.
        sample_fps: frames per second after sampling.
        size: height and width of the first frame as it is stored.
        times: seconds of each frame from the clip's beginning.
    """

    kind: str
    source: list[Path]
    indices: list[int]
    sample_fps: float
    size: Size
    times: list[float]
    _files: list[Path] = field(default_factory=list, repr=False)

    @property
    def frames(self) -> Iterator[Image.Image]:
        """RGB pictures, in order; a new iterator each time.

        Raises:
            InputError: a frame does not decode.
        """
        if self.kind == "video":
            yield from decode(self.source[0], self.indices)
            return
        for path in self._files:
            yield read_picture(path)

    def take(self, numbers: Sequence[int]) -> "Clip":
        """The same clip with only some of its frames, counted within `indices`."""
        return Clip(
            self.kind,
            self.source,
            [self.indices[number] for number in numbers],
            self.sample_fps,
            self.size,
            [self.times[number] for number in numbers],
            [self._files[number] for number in numbers] if self._files else [],
        )


def load_clip(paths: Sequence[Path], num_frames: int | None = None, fps: float | None = None) -> Clip:
    """Decides which frames are taken; decodes only the first.

    Args:
        paths: one video file, one directory of frames, or several pictures.
        num_frames: of a video file: evenly spaced, odd numbers rounded down to even as qwen-vl-utils does
            for its own counts (default 8).
        fps: of a video file: sample at this rate; of pictures: the rate they were taken at (default 1).

    Raises:
        InputError: nothing there, nothing that decodes, or arguments that do not go together.
    """
    paths = [Path(path) for path in paths]
    if num_frames is not None and fps is not None:
        raise InputError("--num-frames and --fps exclude each other: give one of them")
    if num_frames is not None and num_frames < 1:
        raise InputError(f"--num-frames {num_frames}: expected at least 1")
    if fps is not None and not fps > 0:
        raise InputError(f"--fps {fps:g}: expected a rate above 0")
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]}: no such file or directory")
    if not paths:
        raise InputError("expected a video file, a directory of frames, or pictures; got nothing")
    if len(paths) == 1 and paths[0].is_dir():
        return _pictures("frames", paths, frame_files(paths[0]), fps)
    if all(path.suffix.lower() in PICTURES for path in paths):
        return _pictures("images", paths, paths, fps)
    if len(paths) > 1:
        other = next(path for path in paths if path.suffix.lower() not in PICTURES)
        raise InputError(f"{other}: several paths must all be pictures; give one video at a time")
    return _video(paths[0], num_frames, fps)


def frame_files(directory: Path) -> list[Path]:
    """The pictures of a directory in name order, as the board's runtime reads them: zero-pad the numbers.

    Raises:
        InputError: there are none.
    """
    files = sorted(path for path in directory.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not files:
        raise InputError(f"{directory}: no pictures in it (expected {', '.join(sorted(PICTURES))})")
    return files


def frame_size(clip: Clip, size: Size | None = None, max_pixels: int | None = None) -> Size:
    """The size at which the model sees a clip.

    Args:
        clip: its first frame's size decides.
        size: height and width to use instead, multiples of 28.
        max_pixels: largest area (default 308·308).

    Raises:
        InputError: the sides are no multiples of 28, the area is too small, or the ratio too extreme.
    """
    if size is not None:
        for side in size:
            if side < FACTOR or side % FACTOR:
                nearest = max(FACTOR, round(side / FACTOR) * FACTOR)
                raise InputError(
                    f"--size {size[0]} {size[1]}: sides must be multiples of {FACTOR}; nearest to {side}: {nearest}"
                )
        return size
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if limit < FACTOR * FACTOR:
        raise InputError(f"--max-pixels {limit}: one token alone needs {FACTOR * FACTOR}")
    try:
        return smart_resize(*clip.size, min_pixels=min(MIN_PIXELS, limit), max_pixels=limit)
    except ValueError as error:
        raise InputError(f"{clip.source[0]}: {error}") from None


def read_picture(path: Path) -> Image.Image:
    """A decoded picture, upright and RGB.

    Raises:
        InputError: the file is no picture or is damaged.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from None


def open_video(path: Path) -> Any:
    """A decord reader.

    Raises:
        InputError: the file is no video that decodes.
    """
    import decord

    decord.logging.set_level(decord.logging.FATAL)  # ffmpeg's own complaints; the error below says it once
    if not path.is_file() or not path.stat().st_size:
        raise InputError(f"{path}: not a video file (it is empty)")
    try:
        reader = decord.VideoReader(os.fspath(path.absolute()), num_threads=0)
        frames = len(reader)
    except Exception as error:  # decord raises its own errors, RuntimeError and IndexError
        raise InputError(f"{path}: does not decode as a video ({_reason(error)})") from None
    if not frames:
        raise InputError(f"{path}: a video without frames")
    return reader


def decode(path: Path, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Frames of a video file, RGB, a few at a time.

    Raises:
        InputError: one of them does not decode.
    """
    reader = open_video(path)
    for start in range(0, len(indices), DECODE_BATCH):
        batch = list(indices[start : start + DECODE_BATCH])
        try:
            frames = reader.get_batch(batch).asnumpy()
        except Exception as error:
            raise InputError(
                f"{path}: frames {batch[0]} to {batch[-1]} do not decode ({_reason(error)}); "
                "is the file complete? ffmpeg -i IN -c:v libx264 OUT.mp4 repairs many"
            ) from None
        yield from map(Image.fromarray, frames)


def sample_indices(total: int, count: int) -> list[int]:
    """`count` of `total` frames, evenly spaced, both ends included, as qwen-vl-utils takes them."""
    import torch

    # The very call of qwen-vl-utils: numpy's linspace rounds some half-way values the other way.
    return torch.linspace(0, total - 1, count).round().long().tolist()


def frame_count(total: int, video_fps: float, num_frames: int | None, fps: float | None) -> int:
    """How many frames of a file are taken; even, and at most as many as there are."""
    if fps is None:
        count = min(num_frames or DEFAULT_FRAMES, total)
        return max(2, count // 2 * 2) if total > 1 else 1
    from qwen_vl_utils.vision_process import smart_nframes

    try:
        return smart_nframes({"fps": fps}, total_frames=total, video_fps=video_fps)
    except ValueError as error:
        raise InputError(f"--fps {fps:g}: {error}") from None


def _video(path: Path, num_frames: int | None, fps: float | None) -> Clip:
    reader = open_video(path)
    total, rate = len(reader), float(reader.get_avg_fps())
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(
            f"{path}: its frame rate is unknown ({rate}): give the frames as a directory with --fps"
        )
    count = frame_count(total, rate, num_frames, fps)
    indices = sample_indices(total, count)
    try:
        height, width = reader[indices[0]].shape[:2]
    except Exception as error:
        raise InputError(f"{path}: does not decode as a video ({_reason(error)})") from None
    return Clip("video", [path], indices, count / total * rate, (height, width), [n / rate for n in indices])


def _pictures(kind: str, source: list[Path], files: list[Path], fps: float | None) -> Clip:
    rate = fps or DEFAULT_FPS
    width, height = read_picture(files[0]).size
    times = [number / rate for number in range(len(files))]
    return Clip(kind, source, list(range(len(files))), rate, (height, width), times, files)


def _reason(error: Exception) -> str:
    lines = []
    with suppress(Exception):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-120:] if lines else type(error).__name__
