"""Step 2: a checkpoint's vision tower as ONNX graphs over one data file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess import MEAN, STD
from qwen_vl_axera import progress
from qwen_vl_axera.capture import CAPTURE, read_capture, read_layout, versions
from qwen_vl_axera.checkpoint import Checkpoint
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.layout import Layout, build_layout

IMAGE_SIZE = (448, 448)
# Rotary angles are products of a position and a frequency, both derived twice: float32 rounding only.
ROTARY_TOLERANCE = 1e-5

Size = tuple[int, int]


@dataclass(frozen=True)
class ExportedGraph:
    """A written graph: its file, its size in pixels, and `operators.statistics` of it."""

    path: Path
    size: Size
    statistics: dict[str, int]


def export_vision(
    checkpoint: Checkpoint,
    workdir: Path,
    mode: str = "video",
    sizes: Sequence[Size] = (),
    opset: int = 17,
    window_mode: str = "grouped",
    input: str = "pixels",
) -> list[ExportedGraph]:
    """Writes `NAME_vision*.onnx`, their uint8 twins and `NAME_vision.onnx.data`.

    Args:
        checkpoint: the model.
        workdir: where the files go and where step 1 left its capture.
        mode: "video" (two frames a step) or "image" (one picture fills both slots; same network).
        sizes: heights and widths in pixels; none: the captured size, or 448x448 for images.
        opset: 16, 17 or 18.
        window_mode: "grouped" or "dense".
        input: "pixels" or "normalized".

    Returns:
        The graphs, float32 input before uint8 input for each size.

    Raises:
        InputError: no size is known, the capture has another size, or a tensor of the checkpoint is unusable.
        CheckFailed: transformers derived other windows or angles than `layout`.
    """
    from qwen_vl_axera import graph
    from qwen_vl_axera.operators import statistics
    from qwen_vl_axera.weights import vision_weights, weight_table

    config = checkpoint.config.vision
    sizes = list(dict.fromkeys(sizes)) or [default_size(mode, workdir)]
    layouts = {size: build_layout(config, size) for size in sizes}
    if mode == "video":
        check_capture(workdir, layouts)

    names = {
        (size, uint8): f"{graph_stem(checkpoint.name, mode, size if len(sizes) > 1 else None)}{suffix}.onnx"
        for size in sizes
        for uint8, suffix in ((False, ""), (True, "_uint8"))
    }
    check_shared_data(Path(workdir), checkpoint.name, set(names.values()), input)

    shapes = {name: weight.shape for name, weight in weight_table(config, input).items()}
    data = graph.DataFile(f"{graph_stem(checkpoint.name, 'video')}.onnx.data", shapes)
    models = {}
    for (size, uint8), name in names.items():
        metadata = {
            "checkpoint": checkpoint.name,
            "input": input,
            "uint8": uint8,
            "mode": mode,
            "size": list(size),
            "window_mode": window_mode,
            "mean": list(MEAN),
            "std": list(STD),
            "patch_order": "window-block row, column, merge row, column; temporal, patch row, column, RGB",
            "versions": versions(),
        }
        with progress.stage(f"trace {name}", unit="node") as stage:
            tower = graph.meta_tower(config, layouts[size], input, window_mode, uint8, MEAN, STD)
            models[name] = graph.export_graph(tower, data, opset, metadata)
            stage.advance(len(models[name].graph.node))

    # Weights first: a graph file never refers to data that is not there yet.
    data.write(Path(workdir), vision_weights(checkpoint, input))
    for name, model in models.items():
        graph.write_graph(model, Path(workdir) / name)
    return [ExportedGraph(Path(workdir) / name, size, statistics(models[name])) for (size, _), name in names.items()]


def graph_stem(name: str, mode: str, size: Size | None = None) -> str:
    """The graph's file name without its ending: NAME_vision[_image][_HxW]."""
    parts = [
        name,
        "vision",
        *(["image"] if mode == "image" else []),
        *([f"{size[0]}x{size[1]}"] if size else []),
    ]
    return "_".join(parts)


def video_stems(name: str, workdir: Path) -> list[str]:
    """The stems under which the graph for the captured clip may be: exported alone, or as one size among several."""
    sizes = [None, read_capture(workdir).size] if (Path(workdir) / CAPTURE).is_file() else [None]
    return [graph_stem(name, "video", size) for size in sizes]


def check_shared_data(workdir: Path, name: str, written: set[str], input: str) -> None:
    """Keeps graphs of an earlier export that use the data file about to be replaced.

    Raises:
        InputError: one of them was exported with another `--input`, whose weights are different ones.
    """
    from qwen_vl_axera.graph import load_graph, read_metadata

    for path in sorted(workdir.iterdir()):
        ours = path.name.startswith(f"{name}_vision") and path.suffix == ".onnx" and path.name not in written
        if ours and read_metadata(load_graph(path)).get("input", input) != input:
            raise InputError(
                f"{path} was exported with another --input and shares {name}_vision.onnx.data: use the same "
                "--input, another --workdir, or delete it"
            )


def default_size(mode: str, workdir: Path) -> Size:
    """The captured size for videos, 448x448 for pictures."""
    if mode == "image":
        return IMAGE_SIZE
    try:
        return read_capture(workdir).size
    except InputError as error:
        raise InputError(f"{error}; or give --size H W") from None


def check_capture(workdir: Path, layouts: dict[Size, Layout]) -> None:
    """Holds our layout against transformers', where step 1 has saved it.

    Raises:
        InputError: one size is exported and the capture has another one.
        CheckFailed: a tensor differs.
    """
    if not (Path(workdir) / CAPTURE).is_file():
        return
    capture = read_capture(workdir)
    layout = layouts.get(capture.size)
    if layout is None and len(layouts) > 1:
        return
    if layout is None:
        height, width = next(iter(layouts))
        raise InputError(
            f"{Path(workdir) / CAPTURE} is of size {capture.size[0]}x{capture.size[1]}, asked for {height}x{width}: "
            f"run run_video_by_sec.py with --size {height} {width}, or use another --workdir"
        )
    theirs = read_layout(workdir)
    ours = {
        "rotary_pos_emb": layout.rotary,
        "cu_seqlens": layout.cu_seqlens,
        "cu_window_seqlens": layout.cu_window_seqlens,
        "window_index": layout.window_index,
    }
    for name, expected in ours.items():
        tolerance = ROTARY_TOLERANCE if expected.dtype == np.float32 else 0
        same = theirs[name].shape == expected.shape
        if not same or np.abs(theirs[name].astype(np.float64) - expected).max() > tolerance:
            raise CheckFailed(
                f"{name}.pth in {workdir} is not what this size gives: transformers {theirs[name].shape}, "
                f"derived {expected.shape}; run run_video_by_sec.py again, and report it if that does not help"
            )
