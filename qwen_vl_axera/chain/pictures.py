"""Which inputs the picture model is captured and calibrated with: the pictures among them, else the videos' frames."""

from collections.abc import Sequence
from pathlib import Path

FRAMES = 2  # of a video in a picture's place: a step's


def with_pictures(inputs: Sequence[Path]) -> list[Path]:
    """The pictures, and the directories that hold some; none before there is an environment, in a dry run."""
    try:
        from qwen_vl_axera.frames.media import is_picture
    except ImportError:
        return []
    return [path for path in inputs if is_picture(path) or (path.is_dir() and any(map(is_picture, path.iterdir())))]


def capture_flags(inputs: Sequence[Path]) -> list[str]:
    """What run_video_by_sec.py takes for the picture model: one picture, which fills both slots of a step.

    Args:
        inputs: the run's, one at least.
    """
    first = next(iter(with_pictures(inputs)), None)
    if first is None:
        return ["--video", str(inputs[0]), *(["--num-frames", str(FRAMES)] if inputs[0].is_file() else [])]
    if first.is_dir():
        from qwen_vl_axera.frames.media import list_pictures

        first = list_pictures(first)[0]
    return ["--video", str(first)]
