"""Video files: a few frames exactly as qwen-vl-utils reads them, or many with little memory.

`VideoFile` takes decord, whose pixels are those that qwen-vl-utils hands to the model. decord 0.6 decodes ahead
without bound on a busy machine, up to the whole file, so `VideoStream`, for reading most of a file, takes PyAV.
"""

import math
import os
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from preprocess import TEMPORAL_PATCH_SIZE
from qwen_vl_axera.contract import NUM_FRAMES
from qwen_vl_axera.doors import check_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.memory import check_memory

# FFmpeg's names of what is read. Playlists are not: they name other files, and addresses.
CONTAINERS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,mpeg,mpegts,mpegvideo,h264,hevc,asf,ogg,m4v",
    "protocol_whitelist": "file",
}
FRAME_BYTES = 6  # of a pixel: as it is decoded, and as RGB
ENTRY_BYTES = 64  # of a frame in a decoder's table
FRAMES = 16  # that a decoder holds at a time: references, and one per thread

SEEK_FROM = 64  # frames: a key frame that lies closer is reached by decoding on


class VideoFile:
    """A video for a few frames, spread over it.

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
        with _open_container(self.path):  # decord would take any playlist, and follow it
            pass
        reader = _open_reader(self.path)
        self.count, self.fps = len(reader), _checked_fps(self.path, reader.get_avg_fps())
        self.shape = _shape(self.path, self.read([0]))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes frames one at a time and ends early at the first one that does not decode.

        Args:
            indices: rising frame numbers, counted from 0.

        Yields:
            uint8 (H, W, 3), RGB.
        """
        from decord import DECORDError

        # A new reader: where a file's index is poor, what a seek finds depends on what was read before.
        reader = _open_reader(self.path)
        try:
            for index in indices:
                yield reader[int(index)].asnumpy()
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
        self.count = sum(1 for _ in self.read(range(claimed)))
        return claimed - self.count


class VideoStream:
    """A video for many frames: a handful of them in memory at a time.

    Attributes: as those of `VideoFile`.

    Raises:
        InputError: it is no file that decodes.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with self._open() as container:
            stream = container.streams.video[0]
            packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
            self.fps = _checked_fps(self.path, float(stream.average_rate or 0))
        self.count = len(packets)
        # Containers such as AVI know no presentation times: frames are then counted from the start.
        timed = all(time is not None for time, _ in packets)
        self._times = sorted(time for time, _ in packets) if timed else []
        self._number = {time: index for index, time in enumerate(self._times)}
        self._keys = sorted(self._number[time] for time, is_key in packets if is_key) if timed else []
        self.shape = _shape(self.path, self.read([0] if self.count else []))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """See `VideoFile.read`."""
        from av.error import FFmpegError

        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames, at, sought = container.decode(stream), -1, False
            try:
                for wanted in indices:
                    key = self._keys[bisect_right(self._keys, wanted) - 1] if self._keys else 0
                    if key - at > SEEK_FROM:
                        container.seek(self._times[key], stream=stream)
                        frames, at, sought = container.decode(stream), key - 1, True
                    while at < wanted:
                        frame = next(frames, None)
                        if frame is None:
                            return
                        # Times tell where a seek has led; from there on counting is safer: some files write
                        # times that do not rise with the frames.
                        at, sought = self._number.get(frame.pts, at + 1) if sought else at + 1, False
                    yield frame.to_ndarray(format="rgb24")
            except FFmpegError:
                return

    def _open(self):
        return _open_container(self.path)


def _open_container(path: Path):
    """The file as PyAV opens it.

    Raises:
        InputError: it is no video, of a kind that is not read, or its frames don't fit the memory.
    """
    import av

    check_file(path)
    # PyAV's own log callback takes the interpreter's lock, for which a decoding thread and the thread that
    # closes the file wait for each other; FFmpeg's needs none. -8 is FFmpeg's "quiet".
    av.logging.restore_default_callback()
    av.logging.set_libav_level(-8)
    try:
        # An absolute path is never mistaken for a protocol.
        container = av.open(os.path.abspath(path), options=CONTAINERS)
    except (av.error.FFmpegError, ValueError, OSError):
        raise InputError(_NO_VIDEO.format(path)) from None
    try:
        if not container.streams.video:
            raise InputError(_NO_VIDEO.format(path))
        stream = container.streams.video[0]
        height, width = stream.height or 0, stream.width or 0
        check_memory(FRAME_BYTES * FRAMES * height * width, f"{path}: a video of {height}x{width}")
        # decord makes a table of as many entries as the header says, and ends the process where it can't.
        if stream.frames > os.path.getsize(path):
            raise InputError(f"{path}: {stream.frames} frames in {os.path.getsize(path)} bytes; encode it again")
        check_memory(ENTRY_BYTES * stream.frames, f"{path}: a table of {stream.frames} frames")
    except BaseException:
        container.close()
        raise
    return container


def _shape(path: Path, frames: Iterator[np.ndarray]) -> tuple[int, int]:
    """Height and width of the first frame."""
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: no frame of it decodes; check it in a player, or encode it again")
    return first.shape[:2]


def _checked_fps(path: Path, fps: float) -> float:
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{path}: its frame rate is {fps}: encode it again with a constant one")
    return float(fps)


_NO_VIDEO = "{}: does not decode as a video (truncated, or no video file); encode or download it again"


def _open_reader(path: Path):
    try:
        import decord
    except ImportError:
        raise InputError("decord, which decodes video files, is missing: pip install -r requirements.txt") from None
    decord.logging.set_level(decord.logging.QUIET)
    # FFmpeg takes what stands before a colon for a protocol; an absolute path is never mistaken.
    with _quiet_stderr():
        try:
            return decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0))
        except (RuntimeError, decord.DECORDError):
            pass
    raise InputError(_NO_VIDEO.format(path))


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
        rule = {"nframes": min(NUM_FRAMES, even) if num_frames is None else max(2, num_frames)}
    else:
        rule = {"fps": fps, "min_frames": min(4, even)}  # 4 is qwen-vl-utils' own minimum
    try:
        count = smart_nframes(rule, total_frames=total, video_fps=video_fps)
    except ValueError:
        raise InputError(f"--num-frames {num_frames}: the video has {total} frames, ask for at most {even}") from None
    # torch's rounding, not numpy's: halves come out differently in float32.
    indices = torch.linspace(0, total - 1, count).round().long().tolist()
    return tuple(indices), count / total * video_fps
