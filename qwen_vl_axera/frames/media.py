"""Video file | directory of frames | pictures -> frames.

A video file is sampled as qwen-vl-utils does it and decoded frame by frame while it is read; directories are taken
whole, in name order, pictures in the order given. Nothing is held that is not needed yet.
"""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image

from preprocess import (
    FACTOR,
    HEIF_REMEDY,
    MAX_PIXELS,
    MIN_PIXELS,
    TEMPORAL_PATCH_SIZE,
    automatic_size,
    check_aspect_ratio,
    check_depth,
    check_size,
    frame_shape,
    further_frames,
    is_heif,
    only_first,
    open_formats,
)
from qwen_vl_axera.contract import NUM_FRAMES
from qwen_vl_axera.doors import check_file, open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.video import VideoFile, sample_frames
from qwen_vl_axera.memory import check_memory

DEFAULT_FPS = 1.0  # of directories and pictures
PICTURES = {".bmp", ".jpeg", ".jpg", ".jpe", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}

# Pillow's own bound is a fixed number; `open_picture` asks how much memory there is.
Image.MAX_IMAGE_PIXELS = None
UNKNOWN = "no picture in a known format"
PIXEL_BYTES = 8  # of a picture while it becomes RGB: four as Pillow holds it, four of the copy
IN_WORK = TEMPORAL_PATCH_SIZE * ((os.cpu_count() or 1) + 1)  # pictures, in `iter_steps`


@dataclass(frozen=True)
class VideoFrames:
    """The sampled frames of a video: decoded anew, one at a time, whenever they are iterated over."""

    video: VideoFile
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Image.Image]:
        done = 0
        for array in self.video.read(self.indices):
            done += 1
            yield Image.fromarray(array)
        if done < len(self.indices):
            raise InputError(
                f"{self.video.path}: frame {self.indices[done]} does not decode, the file is damaged there: "
                "encode it again, or cut it before that frame"
            )


@dataclass(frozen=True)
class PictureFrames:
    """Pictures, opened one at a time whenever they are iterated over."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Image.Image]:
        return (read_picture(path) for path in self.paths)


@dataclass(frozen=True)
class Clip:
    """Frames and where they come from.

    Attributes:
        frames: pictures, readable several times; RGB when they come from a video, any mode otherwise.
        kind: "video", "frames" (a directory) or "images".
        source: the paths as they were given.
        indices: number of each frame in the video, or among the pictures, from 0.
        sample_fps: frames per second after sampling.
        shape: height and width of the first frame, EXIF rotation applied.
        notes: what was decided on the way and the user should know; already printed.
    """

    frames: VideoFrames | PictureFrames
    kind: str
    source: tuple[Path, ...]
    indices: tuple[int, ...]
    sample_fps: float
    shape: tuple[int, int]
    notes: tuple[str, ...] = field(default=())


def load_clip(paths: Sequence[Path] | Path | str, *, num_frames: int | None = None, fps: float | None = None) -> Clip:
    """Opens a clip.

    Args:
        paths: one video file, one directory of frames, or any number of pictures.
        num_frames: of a video file: how many, evenly spaced (default: 8, or all but the odd one of a shorter
            clip). qwen-vl-utils rounds it to an even number.
        fps: of a video file: sample at this rate instead; of frames and pictures: their rate (default: 1).

    Raises:
        InputError: there is nothing to read, it does not decode, or the numbers make no sense.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    _check_sampling(num_frames, fps)
    if not paths:
        raise InputError("no input: expected a video file, a directory of frames, or pictures")
    for path in paths:
        check_input(path)
    if len(paths) == 1 and not paths[0].is_dir() and not is_picture(paths[0]):
        clip = _load_video(paths[0], num_frames, fps)
    else:
        clip = _load_pictures(paths, num_frames, fps)
    try:
        check_aspect_ratio(*clip.shape)
    except ValueError as error:
        raise InputError(f"{paths[0]}: {error}") from None
    for note in clip.notes:
        print(f"note: {note}", file=sys.stderr)
    return clip


def frame_size(
    clip: Clip,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    factor: int = FACTOR,
) -> tuple[int, int]:
    """The size at which the model sees a clip.

    Args:
        clip: its first frame decides.
        size: height and width to use as they are.
        max_pixels, min_pixels: bounds of the area (default: 308·308 and 56·56) for Qwen's own rule; a size
            that the board would misread gives way to its neighbour.
        factor: pixels per side of a token.

    Raises:
        InputError: a side is no multiple of `factor` (the message names the nearest), or the bounds make no sense.
    """
    try:
        if size is not None:
            return check_size(*size, factor)
        most = MAX_PIXELS if max_pixels is None else max_pixels
        least = min(MIN_PIXELS, most) if min_pixels is None else min_pixels
        return automatic_size(*clip.shape, min_pixels=least, max_pixels=most, factor=factor)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_sampling(num_frames: int | None, fps: float | None) -> None:
    if num_frames is not None and fps is not None:
        raise InputError("--num-frames and --fps: give one of them")
    if num_frames is not None and num_frames < 1:
        raise InputError(f"--num-frames {num_frames}: expected at least 1")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"--fps {fps}: expected a number above 0")


def _load_video(path: Path, num_frames: int | None, fps: float | None) -> Clip:
    video = VideoFile(path)
    notes = []
    if video.dropped:
        notes.append(f"{path}: claims {video.count + video.dropped} frames, of which {video.count} decode")
    if uneven := video.uneven():
        notes.append(f"{path}: {uneven}; frames are taken by their number, as if they were even, as qwen-vl-utils does")
    indices, sample_fps = sample_frames(video.count, video.fps, num_frames, fps)
    wanted = num_frames if num_frames or fps else NUM_FRAMES
    if wanted and len(indices) != wanted:
        notes.append(f"{path}: {len(indices)} of {video.count} frames are taken (even counts only)")
    frames = VideoFrames(video, indices)
    return Clip(frames, "video", (path,), indices, sample_fps, video.shape, tuple(notes))


def _load_pictures(paths: list[Path], num_frames: int | None, fps: float | None) -> Clip:
    whole_directory = len(paths) == 1 and paths[0].is_dir()
    files = list_pictures(paths[0]) if whole_directory else paths
    others = [path for path in files if path.is_dir() or not is_picture(path)]
    if others:
        raise InputError(f"{others[0]}: expected one video, one directory, or only pictures, not a mixture")
    shapes = [picture_shape(path) for path in files]
    notes = [*left_out(files, paths[0] if whole_directory else None)]
    if num_frames is not None:
        notes.append(f"--num-frames is for video files: all {len(files)} pictures are taken")
    if len(set(shapes)) > 1:
        other = next(index for index, shape in enumerate(shapes) if shape != shapes[0])
        notes.append(
            f"pictures of {len(set(shapes))} sizes ({files[0].name} {shapes[0][0]}x{shapes[0][1]}, {files[other].name} "
            f"{shapes[other][0]}x{shapes[other][1]}): all are resized to the size that fits the first"
        )
    kind = "frames" if whole_directory else "images"
    rate = DEFAULT_FPS if fps is None else float(fps)
    indices = tuple(range(len(files)))
    return Clip(PictureFrames(tuple(files)), kind, tuple(paths), indices, rate, shapes[0], tuple(notes))


def check_input(path: Path) -> None:
    """That a path leads to a file or a directory.

    Raises:
        InputError: it does not.
    """
    try:
        is_directory = path.is_dir()
    except ValueError:  # NUL in the name
        is_directory = False
    if not is_directory and _is_heif(check_file(path)):
        raise InputError(f"{path}: {HEIF_REMEDY}")


def list_pictures(directory: Path) -> list[Path]:
    """The pictures in a directory, in name order; numbers in names count as numbers: frame2 comes before frame10.

    Raises:
        InputError: there are none.
    """
    files = sorted((path for path in _files(directory) if path.suffix.lower() in PICTURES), key=natural)
    if not files:
        heif = sum(map(_is_heif, _files(directory)))
        remedy = f"convert its {heif} HEIC files to JPEG or PNG" if heif else "a video is given by its file"
        raise InputError(f"{directory}: no pictures in it ({', '.join(sorted(PICTURES))}); {remedy}")
    return files


def natural(path: Path) -> list:
    """A key that sorts names as people do: texts as texts, numbers as numbers."""
    parts = re.split(r"([0-9]+)", path.name)
    return [[int(part) if number % 2 else part for number, part in enumerate(parts)], path.name]


def left_out(taken: Sequence[Path], directory: Path | None = None) -> Iterator[str]:
    """What is there and not taken, a line each: files of a directory, and further frames of pictures.

    Args:
        taken: pictures and videos.
        directory: that they were looked for in.
    """
    if directory is not None and (others := [path for path in _files(directory) if path not in set(taken)]):
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
        heif = "; convert HEIC to JPEG or PNG" if any(map(_is_heif, others)) else ""
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield f"{directory}: {len(others)} of {len(taken) + len(others)} files are not taken ({counted}){heif}"
    cut = {path: count for path in taken if is_picture(path) and (count := _further_frames(path))}
    if cut:
        yield only_first(cut)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]


def _is_heif(path: Path) -> bool:
    with open_file(path) as file:
        return is_heif(file.read(64))


def is_picture(path: Path) -> bool:
    """Whether a file is to be read as a picture: by its suffix, or by its content when that is unknown."""
    suffix = path.suffix.lower()
    if suffix in PICTURES | VIDEOS or not path.is_file():
        return suffix in PICTURES
    try:
        with open_picture(path):
            return True
    except InputError as error:  # a damaged picture is one
        return UNKNOWN not in str(error)


def _further_frames(path: Path) -> int:
    with open_picture(path) as image:
        return further_frames(image)


def picture_shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen, from its header.

    Raises:
        InputError: it is no picture that Pillow reads.
    """
    with open_picture(path) as image:
        return frame_shape(image)


def read_picture(path: Path) -> Image.Image:
    """A decoded picture, in the mode and orientation in which it is stored.

    Raises:
        InputError: it does not decode.
    """
    with open_picture(path) as image:
        image.getexif()  # of some formats it can't be read any more when the file is closed
        image.load()
        return image


@contextmanager
def open_picture(source: Path | IO[bytes], name: object = None) -> Iterator[Image.Image]:
    """A picture whose header was read, and whose pixels fit the memory.

    Args:
        source: the file.
        name: what messages call it (default: its path).

    Raises:
        InputError: it is no picture that Pillow reads, or it is too large; also for what fails in the block.
    """
    name = source if name is None else name
    try:
        file = open_file(source) if isinstance(source, Path) else source
        with file, Image.open(file, formats=open_formats()) as image:
            width, height = image.size
            check_memory(PIXEL_BYTES * IN_WORK * width * height, f"{name}: a picture of {height}x{width}")
            try:
                check_depth(image)
            except ValueError as error:
                raise InputError(f"{name}: {error}") from None
            if image.format == "TIFF":  # which Pillow turns upright when its pixels are read, or before
                image.load()
            yield image
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead to
        if isinstance(source, Path) and _is_heif(source):
            raise InputError(f"{name}: {HEIF_REMEDY}") from None
        reason = UNKNOWN if "cannot identify" in str(error) else str(error)
        raise InputError(f"{name}: does not decode as a picture ({reason}); replace or remove it") from None
