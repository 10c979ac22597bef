"""The picture model: which inputs it is captured and calibrated with, and its graphs when `--input` changes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from qwen_vl_axera.contract import INPUTS

FRAMES = 2  # of a video in a picture's place: a step's


def with_pictures(inputs: Sequence[Path]) -> list[Path]:
    """The pictures, and the directories that hold some; none before there is an environment, in a dry run."""
    try:
        from qwen_vl_axera.frames.media import is_picture
    except ImportError:
        return []
    return [path for path in inputs if is_picture(path) or (path.is_dir() and any(map(is_picture, path.iterdir())))]


def capture_source(inputs: Sequence[Path]) -> tuple[Path, int | None]:
    """What the picture model is captured with, and how many frames of it: one picture, which fills a step.

    Args:
        inputs: the run's, one at least.
    """
    first = next(iter(with_pictures(inputs)), None)
    if first is None:
        return inputs[0], FRAMES if inputs[0].is_file() else None
    if first.is_dir():
        from qwen_vl_axera.frames.media import list_pictures

        first = list_pictures(first)[0]
    return first, None


def remove_other_graphs(graphs: Iterable[Path], spec_input: str | None) -> None:
    """Removes graphs of another `--input`: this run makes them anew.

    They would keep the video's export from replacing the weights that both share.

    Args:
        graphs: the picture model's.
        spec_input: one of INPUTS; None: the default.
    """
    from qwen_vl_axera.graph.files import load_graph, read_metadata

    wanted = spec_input or INPUTS[0]
    for path in graphs:
        if path.is_file() and read_metadata(load_graph(path)).get("input", wanted) != wanted:
            path.unlink()
