"""Video files, decoded by PyAV: the frames that a player shows, a handful of them in memory at a time.

Of ordinary clips the pixels are bit for bit those that qwen-vl-utils reads with decord. Where decord shows something
else than a player does (it repeats frames that an edit list hides, refuses MPEG transport streams with B-frames, AV1
and animated GIF, and takes a cover picture for the clip), a player is right.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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
# Containers whose times do not rise with their frames, or have none: frames are counted from the start.
UNTIMED = {"avi", "h264", "hevc", "m4v", "mpegvideo"}
FRAME_BYTES = 6  # of a pixel: as it is decoded, and as RGB
FRAMES = 16  # that a decoder holds at a time: references, and one per thread
SEEK_FROM = 64  # frames: a key frame that lies closer is reached by decoding on
UNEVEN = 1.5  # a frame that is shown this many times longer than the usual one makes a clip uneven
HOLES = 64 << 20  # bytes without data: fewer are read through, more of them where they are half of the file refused
NO_VIDEO = "{}: does not decode as a video (truncated, or no video file); encode or download it again"


class VideoFile:
    """A video, its frames numbered from 0 in the order in which they are shown.

    Args:
        path: the file.
        check_end: whether the last frame is decoded, which can take as long as a clip of one key frame: without it,
            `count` may count frames at the end that do not decode.

    Attributes:
        path: the file.
        count: its frames that decode.
        dropped: those that the file claims and that do not.
        fps: frames per second on average.
        shape: height and width in pixels as it is shown, turned where the file says so.

    Raises:
        InputError: it is no file that decodes.
    """

    def __init__(self, path: Path, check_end: bool = True):
        self.path = Path(path)
        with ExitStack() as opened:
            container = opened.enter_context(self._open())
            self._stream = _best_stream(self.path, container)
            if len(container.streams.video) > 1:  # they were counted, and not every container can be wound back
                container = opened.enter_context(self._open())
            stream = container.streams[self._stream]
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in _packets(container, stream)
                if packet.size and not packet.is_discard  # an edit list hides it
            ]
            self._base = float(stream.time_base)
            self._timed = container.format.name not in UNTIMED and len({time for time, _ in packets}) == len(packets)
            rate = stream.average_rate or stream.guessed_rate
        self._times = sorted(time for time, _ in packets if time is not None)
        self._timed &= len(self._times) == len(packets)
        self._number = {time: index for index, time in enumerate(self._times)}
        self._keys = sorted(self._number[time] for time, is_key in packets if is_key and time is not None)
        self.count, self.dropped = len(packets), 0
        first = next(self.read([0]), None)
        if first is None or (check_end and next(self.read([self.count - 1]), None) is None):
            self._count_what_decodes()
            first = next(self.read([0]), None)
        if first is None:
            raise InputError(f"{path}: no frame of it decodes; check it in a player, or encode it again")
        self.shape = first.shape[:2]
        self.fps = _checked_fps(self.path, float(rate or 0))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes frames one at a time and ends early at the first one that does not decode.

        Args:
            indices: rising frame numbers.

        Yields:
            uint8 (H, W, 3), RGB, upright.
        """
        with ExitStack() as opened:
            container = opened.enter_context(self._open())
            frames, at, frame = self._decode(container), -1, None
            for wanted in indices:
                key = bisect_right(self._keys, wanted) - 1
                if key >= 0 and self._keys[key] - at > SEEK_FROM:
                    frames, at, frame = self._seek(container, key, wanted)
                    if frame is None:  # some files can't be sought in
                        container = opened.enter_context(self._open())
                        frames, at = self._decode(container), -1
                while at < wanted:
                    frame = next(frames, None)
                    if frame is None:
                        return
                    at = self._at(frame, at + 1)
                if at > wanted:  # it did not decode, and the next one came
                    return
                yield _upright(frame)

    def _seek(self, container, key: int, wanted: int) -> tuple[Iterator, int, Any]:
        """Goes to the key frame of number `key`, or to the one before: transport streams lead a few frames too far.

        Returns:
            The frames from there on without the first one, its number, and itself; None where there is no way.
        """
        for target in self._keys[max(0, key - 1) : key + 1][::-1]:
            container.seek(self._times[target], stream=container.streams[self._stream])
            frames = self._decode(container, from_key=True)
            frame = next(frames, None)
            if frame is not None and (at := self._number.get(frame.pts, wanted + 1)) <= wanted:
                return frames, at, frame
        return iter(()), -1, None

    def uneven(self) -> str | None:
        """Whether frames are shown for different times, in words; None where they are even or nothing says so."""
        steps = np.diff(self._times) * self._base if self._timed else np.empty(0)
        if len(steps) < 2 or steps.max() < UNEVEN * np.median(steps):
            return None
        return f"frames are {steps.min():.3g} to {steps.max():.3g} s apart"

    def time(self, index: int) -> float:
        """When a frame is shown, in seconds from the first one."""
        return (self._times[index] - self._times[0]) * self._base if self._timed else index / self.fps

    def _at(self, frame, counted: int) -> int:
        """A frame's number: by its time where that can be trusted, else counted."""
        return self._number.get(frame.pts, counted) if self._timed else counted

    def _decode(self, container, from_key: bool = False) -> Iterator:
        """The frames from here, or from the next key frame on.

        Damaged packets are passed over where times tell which frame is missing.
        """
        from av.error import FFmpegError

        for packet in _packets(container, container.streams[self._stream]):
            if from_key and not packet.is_keyframe:
                continue
            from_key = False
            try:
                yield from packet.decode()
            except FFmpegError:
                if not self._timed:
                    return

    def _count_what_decodes(self) -> None:
        """Renumbers the frames, those left out that do not decode."""
        claimed = self.count
        with self._open() as container:
            if self._timed:
                times = sorted({frame.pts for frame in self._decode(container)} & self._number.keys())
                keys = {self._times[key] for key in self._keys}
                self._times, self._number = times, {time: index for index, time in enumerate(times)}
                self._keys = [index for index, time in enumerate(times) if time in keys]
                self.count = len(times)
            else:
                self.count = sum(1 for _ in self._decode(container))
        self.dropped = claimed - self.count

    def _open(self):
        return _open_container(self.path)


def _open_container(path: Path):
    """The file as PyAV opens it.

    Raises:
        InputError: it is no video, of a kind that is not read, or its frames don't fit the memory.
    """
    import av

    status = os.stat(check_file(path))
    holes = status.st_size - 512 * status.st_blocks
    if status.st_blocks and holes > max(HOLES, status.st_size // 2):
        raise InputError(f"{path}: {holes / 1e9:.1f} GB of it are holes without data; download or copy it whole")
    # PyAV's own log callback takes the interpreter's lock, for which a decoding thread and the thread that
    # closes the file wait for each other; FFmpeg's needs none. -8 is FFmpeg's "quiet".
    av.logging.restore_default_callback()
    av.logging.set_libav_level(-8)
    try:
        # An absolute path is never mistaken for a protocol.
        container = av.open(os.path.abspath(path), options=CONTAINERS)
    except (av.error.FFmpegError, ValueError, OSError):
        raise InputError(NO_VIDEO.format(path)) from None
    try:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.thread_type = "AUTO"
            height, width = stream.height or 0, stream.width or 0
            check_memory(FRAME_BYTES * FRAMES * height * width, f"{path}: a video of {height}x{width}")
            if stream.frames > status.st_size:
                raise InputError(f"{path}: {stream.frames} frames in {status.st_size} bytes; encode it again")
    except BaseException:
        container.close()
        raise
    return container


def _packets(container, *streams) -> Iterator:
    """The packets of streams, as far as the file can be read, and an empty one that ends the decoding."""
    import av

    try:
        yield from container.demux(*streams)
    except av.error.FFmpegError:
        end = av.Packet()
        end.stream = streams[0]
        yield end


def _best_stream(path: Path, container) -> int:
    """The number of the stream to read: of several the one with most frames, then the largest. Covers have one frame.

    Raises:
        InputError: there is no video in it, or its codec is none that is decoded here.
    """
    videos = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not videos:
        codecs = {stream.codec.name for stream in container.streams.video if stream.codec is not None}
        if container.streams.video:
            raise InputError(f"{path}: its codec {', '.join(codecs) or ''} is not decoded here: encode it as H.264")
        raise InputError(NO_VIDEO.format(path))
    if len(videos) == 1:
        return videos[0].index
    counts = dict.fromkeys((stream.index for stream in videos), 0)
    for packet in _packets(container, *videos):
        counts[packet.stream.index] += bool(packet.size)
    return max(videos, key=lambda stream: (counts[stream.index], (stream.height or 0) * (stream.width or 0))).index


def _upright(frame) -> np.ndarray:
    """A frame as a player shows it: uint8 (H, W, 3), turned and mirrored by the file's display matrix."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return picture
    # A point (x, y) is shown at (a·x + c·y, b·x + d·y); whatever is no quarter turn becomes the nearest one.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    picture = picture[:, ::-1] if a < 0 else picture
    return np.ascontiguousarray(picture[::-1] if d < 0 else picture)


def _checked_fps(path: Path, fps: float) -> float:
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{path}: its frame rate is {fps}: encode it again with a constant one")
    return float(fps)


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
