"""The picture model: which inputs it is captured and calibrated with, and its graphs when `--input` changes."""

from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera.chain.steps import Place
from qwen_vl_axera.contract import INPUTS

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


def remove_other_graphs(place: Place, spec_input: str | None) -> None:
    """Removes the picture model's graphs of another `--input`: this run makes them anew.

    They would keep the video's export from replacing the weights that both share.

    Args:
        place: the run.
        spec_input: one of INPUTS; None: the default.
    """
    from qwen_vl_axera.graph.files import load_graph, read_metadata

    for path in place.graphs(f"{place.graph}.onnx", f"{place.graph}_uint8.onnx"):
        wanted = spec_input or INPUTS[0]
        if path.is_file() and read_metadata(load_graph(path)).get("input", wanted) != wanted:
            path.unlink()
