"""Step 2: a checkpoint's vision tower as ONNX graphs over one data file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocess import check_size
from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.expected import check_vision
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import CAPTURE, IMAGE_SIZE, PICTURES, GraphSpec, data_file
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.oracle.record import check_unchanged, read_capture, read_layout, versions

if TYPE_CHECKING:
    import onnx

    from qwen_vl_axera.graph.external_data import DataFile

# Rotary angles are products of a position and a frequency, both derived twice: float32 rounding only.
ROTARY_TOLERANCE = 1e-5
PATCH_ORDER = "window-block row, column, merge row, column; temporal, patch row, column, RGB"

Size = tuple[int, int]


@dataclass(frozen=True)
class ExportedGraph:
    """A written graph: its file, what it was made for, and `operators.statistics` of it."""

    path: Path
    spec: GraphSpec
    statistics: dict[str, int]


def export_vision(
    checkpoint: Checkpoint,
    workdir: Path,
    mode: str = "video",
    sizes: Sequence[Size] = (),
    **form: Any,
) -> list[ExportedGraph]:
    """Writes `NAME_vision*.onnx`, their uint8 twins and `NAME_vision.onnx.data`.

    Args:
        checkpoint: the model.
        workdir: where the files go and where step 1 left its capture.
        mode: "video" (two frames a step) or "image" (one picture fills both slots; same network).
        sizes: heights and widths in pixels; none: the captured size, or 448x448 for images.
        form: `input`, `window_mode` and `opset` of the `GraphSpec`s.

    Returns:
        The graphs, float32 input before uint8 input for each size.

    Raises:
        InputError: no size is known, the capture has another size, or a tensor of the checkpoint is unusable.
        CheckFailed: transformers derived another layout than the tower's.
    """
    from qwen_vl_axera.graph.files import write_graph
    from qwen_vl_axera.graph.operators import statistics

    workdir, tower, config = Path(workdir), checkpoint.tower, checkpoint.config.vision
    sizes = [checked_size(size, config.factor) for size in dict.fromkeys(sizes)] or [default_size(mode, workdir)]
    for size in sizes:
        check_vision(checkpoint, size)
    layouts = {size: tower.layout(config, size, checkpoint) for size in sizes}
    floats = [GraphSpec(tower.model_type, size, mode, **form) for size in sizes]
    specs = [spec for one in floats for spec in (one, replace(one, uint8=True))]
    check_capture(workdir / PICTURES if mode == "image" else workdir, layouts)
    names = {spec: f"{spec.stem(checkpoint.name, sized=len(sizes) > 1)}.onnx" for spec in specs}
    check_shared_data(workdir, checkpoint.name, set(names.values()), floats[0].input)

    models = {}
    for spec, name in names.items():
        with progress.stage(f"trace {name}", unit="node") as stage:
            models[spec], data = trace_graph(checkpoint, spec)
            stage.advance(len(models[spec].graph.node))

    # Weights first: a graph file never refers to data that is not there yet.
    data.write(workdir, lambda: tower.weights(checkpoint, config, floats[0].input))
    for spec, model in models.items():
        write_graph(model, workdir / names[spec])
    return [ExportedGraph(workdir / name, spec, statistics(models[spec])) for spec, name in names.items()]


def trace_graph(checkpoint: Checkpoint, spec: GraphSpec) -> "tuple[onnx.ModelProto, DataFile]":
    """A graph that refers to the checkpoint's data file, and where in that file each weight lies."""
    from qwen_vl_axera.graph.trace import meta_module, place_weights, trace

    tower, config = checkpoint.tower, checkpoint.config.vision
    module = meta_module(tower, config, tower.layout(config, spec.size, checkpoint), spec)
    data = place_weights(tower, config, module, spec, data_file(checkpoint.name))
    return trace(module, data, spec, describe(checkpoint, spec)), data


def describe(checkpoint: Checkpoint, spec: GraphSpec) -> dict[str, Any]:
    """A graph's metadata: what it is, for whoever finds it alone."""
    return spec.metadata() | {
        "checkpoint": checkpoint.name,
        "mean": list(checkpoint.tower.mean),
        "std": list(checkpoint.tower.std),
        "patch_order": PATCH_ORDER,
        "versions": versions(),
    }


def check_shared_data(workdir: Path, name: str, written: set[str], input: str) -> None:
    """Keeps graphs of an earlier export that use the data file about to be replaced; a probe is soon made again.

    Raises:
        InputError: one of them was exported with another `--input`, whose weights are different ones.
    """
    from qwen_vl_axera.graph.files import load_graph, read_metadata

    for path in sorted(workdir.iterdir()):
        ours = path.name.startswith(f"{name}_vision") and path.suffix == ".onnx" and path.name not in written
        metadata = read_metadata(load_graph(path)) if ours else {}
        if not metadata.get("probe") and metadata.get("input", input) != input:
            raise InputError(
                f"{path} was exported with another --input and shares {data_file(name)}: use the same "
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


def checked_size(size: Size, factor: int) -> Size:
    """A size that every other script takes, too.

    Raises:
        InputError: a side is no multiple of `factor`, or one is 200 times the other.
    """
    try:
        return check_size(*size, factor)
    except ValueError as error:
        raise InputError(f"--{error}") from None


def check_capture(workdir: Path, layouts: dict[Size, Any]) -> None:
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
    theirs = read_layout(workdir, layout.saved)
    for name, expected in layout.saved.items():
        tolerance = ROTARY_TOLERANCE if expected.dtype == np.float32 else 0
        same = theirs[name].shape == expected.shape
        # Asked this way round, NaN is no match.
        if not same or not np.abs(theirs[name].astype(np.float64) - expected).max() <= tolerance:
            raise CheckFailed(
                f"{name}.pth in {workdir} is not what this size gives: transformers {theirs[name].shape}, "
                f"derived {expected.shape}; run run_video_by_sec.py again, and report it if that does not help"
            )
    check_unchanged(workdir, capture, *(f"{name}.pth" for name in layout.saved))
