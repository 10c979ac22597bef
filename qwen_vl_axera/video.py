"""Video files: decoded frame by frame with decord, sampled as qwen-vl-utils does it."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from preprocess import TEMPORAL_PATCH_SIZE
from qwen_vl_axera.errors import InputError

DEFAULT_NUM_FRAMES = 8


class VideoFile:
    """A video, decoded with decord.

    Attributes:
        path: the file.
        count: its frames; decord counts what is in the file, not what the header claims.
        fps: frames per second on average.
        shape: height and width in pixels.

    Raises:
        InputError: it is no file that decodes.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._reader = _open_reader(self.path)
        self.count = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())
        first = next(self.read([0]), None) if self.count else None
        if first is None:
            raise InputError(f"{path}: no frame of it decodes; check it in a player, or encode it again")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"{path}: its frame rate is {self.fps}: encode it again with a constant one")
        self.shape = first.shape[:2]

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes frames one at a time and ends early at the first one that does not decode.

        Args:
            indices: rising frame numbers, counted from 0.

        Yields:
            uint8 (H, W, 3), RGB.
        """
        from decord import DECORDError

        try:
            for index in indices:
                yield self._reader[int(index)].asnumpy()
        except (DECORDError, IndexError, StopIteration):
            return

    def drop_undecodable(self) -> int:
        """Looks whether the end decodes; when it does not, sets `count` to what does.

        Returns:
            How many frames were dropped.
        """
        if next(self.read([self.count - 1]), None) is not None:
            return 0
        claimed = self.count
        self._reader = _open_reader(self.path)
        self.count = sum(1 for _ in self.read(range(claimed)))
        self._reader = _open_reader(self.path)
        return claimed - self.count


def _open_reader(path: Path):
    try:
        import decord
    except ImportError:
        raise InputError("decord, which decodes video files, is missing: pip install -r requirements.txt") from None
    decord.logging.set_level(decord.logging.QUIET)
    # FFmpeg takes what stands before a colon for a protocol; an absolute path is never mistaken.
    with _quiet_stderr():
        try:
            return decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0))  # noqa: PTH100 - keeps links
        except (RuntimeError, decord.DECORDError):
            pass
    raise InputError(f"{path}: does not decode as a video (truncated, or no video file); encode or download it again")


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """decord's C++ side writes lines of its own about files that it can't open."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def sample_frames(
    total: int, video_fps: float, num_frames: int | None = None, fps: float | None = None
) -> tuple[tuple[int, ...], float]:
    """Which frames of a video are taken: qwen-vl-utils' count, evenly spaced from the first to the last.

    Args:
        total: frames in the video.
        video_fps: its frame rate.
        num_frames, fps: see `load_clip`.

    Returns:
        Frame numbers, and the frame rate after sampling.

    Raises:
        InputError: the video is too short for what was asked.
    """
    import torch
    from qwen_vl_utils.vision_process import smart_nframes

    if total == 1:  # a still, which fills both slots of its step
        return (0,), video_fps
    even = total - total % TEMPORAL_PATCH_SIZE
    if fps is None:
        rule = {"nframes": min(DEFAULT_NUM_FRAMES, even) if num_frames is None else max(2, num_frames)}
    else:
        rule = {"fps": fps, "min_frames": min(4, even)}  # 4 is qwen-vl-utils' own minimum
    try:
        count = smart_nframes(rule, total_frames=total, video_fps=video_fps)
    except ValueError:
        raise InputError(f"--num-frames {num_frames}: the video has {total} frames, ask for at most {even}") from None
    # torch's rounding, not numpy's: halves come out differently in float32.
    indices = torch.linspace(0, total - 1, count).round().long().tolist()
    return tuple(indices), count / total * video_fps
