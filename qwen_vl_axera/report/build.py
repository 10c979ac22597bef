"""The report's chapter on the build: the probe's verdict, the precision really used, the compiled model's numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import ARCHIVE, AXMODEL_FIDELITY, CALIB, MIXED_CONFIG, PIXELS, PROBE, GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS, within
from qwen_vl_axera.fidelity.record import CompiledModel, Precision, read_axmodel_fidelity
from qwen_vl_axera.files import plain
from qwen_vl_axera.oracle.record import Capture
from qwen_vl_axera.report.parts import Part, check_newer, clipped, read_part

MOST_WISHES = 32  # entries of layer_configs shown
MOST_TYPES = 48  # operator types shown
MOST_STEPS = 64  # of a compiled model
SAME = ("tower", "size", "mode", "input")  # of a probe and the graph; the form of the windows may change


def probe_part(checkpoint: Checkpoint, workdir: Path, command: str) -> Part[dict[str, Any]]:
    """What the template shows of `probe.json`, if it is about the graph that is there.

    Args:
        checkpoint: the model.
        workdir: what the steps left.
        command: probes again.
    """
    from qwen_vl_axera.probe.record import read_probe

    part = read_part(lambda path: read_probe(path.parent), workdir / PROBE, command)
    if part.value is None:
        return part
    try:
        exported = check_probe(part.value, checkpoint, workdir)
    except InputError as error:
        return Part(None, f"{error}.", command)
    return Part(_probe(part.value, exported))


def check_probe(found: Any, checkpoint: Checkpoint, workdir: Path) -> GraphSpec:
    """What the graph beside a probe is made for.

    Args:
        found: a `probe.record.Probe`.
        checkpoint: the model.
        workdir: holds the graph.

    Raises:
        InputError: there is none, or the probe is about another one or older than what it was made from.
    """
    from qwen_vl_axera.fidelity.gate import find_graphs
    from qwen_vl_axera.graph.files import load_graph, read_spec

    path, _ = find_graphs(checkpoint.name, workdir)
    model = load_graph(path)
    spec = read_spec(model, path)
    here = spec.metadata()
    for name in SAME:
        if found.spec.get(name) != here[name]:
            raise InputError(f"{PROBE} is about {name} {found.spec.get(name)!r:.60}, {path.name} is of {here[name]!r}")
    form = found.spec.get("window_mode")
    # Exported once more in the form that the probe chose, as it should be, the graph is newer than the probe.
    unchanged = spec.window_mode == form
    if not unchanged and spec.window_mode != found.form:
        raise InputError(f"{PROBE} is about windows {form!r:.60}, {path.name} is exported as {spec.window_mode}")
    nodes = len(model.graph.node)
    if unchanged and found.whole and found.spec.get("opset") == spec.opset and found.whole.nodes != nodes:
        raise InputError(f"{PROBE} is about a graph of {found.whole.nodes} nodes, {path.name} has {nodes}")
    check_newer(workdir / PROBE, [*([path] if unchanged else []), workdir / PIXELS, workdir / CALIB / ARCHIVE])
    return spec


def _probe(found: Any, exported: GraphSpec) -> dict[str, Any]:
    attempts = [_attempt(entry, found.thresholds, found.form) for entry in found.attempts]
    chosen = next((entry for entry in attempts if entry["chosen"]), None)
    return {
        "attempts": attempts[:MOST_WISHES],
        "form": found.form,
        "exported": exported.window_mode,
        "works": found.passed and chosen is not None and chosen["works"],
        "seconds": found.whole and found.whole.seconds,
        "limit": found.thresholds.get("min_token_cosine"),
        "precision": chosen and chosen["precision"],
        "chip": found.chip,
        "versions": found.versions,
    }


def _attempt(entry: Any, thresholds: dict[str, float], form: str | None) -> dict[str, Any]:
    right = bool(entry.steps) and all(within(plain(step), thresholds) for step in entry.steps)
    return {
        "form": entry.form,
        "chosen": entry.form == form,
        "compiled": entry.compiled,
        "right": right if entry.steps else None,
        "works": entry.works and entry.compiled and right,
        "lowest": min((step.min_token_cosine for step in entry.steps), default=None),
        "precision": entry.precision and precision_table(entry.precision),
        "nodes": entry.nodes,
        "seconds": entry.seconds,
        "cycles": entry.cycles,
        "error": entry.error,
    }


def precision_table(found: Precision) -> dict[str, Any]:
    """What became of each entry of `layer_configs`, judged anew from its counts; and the widths by operator type."""
    from qwen_vl_axera.compiled.precision import Wish

    wishes = [
        Wish(entry.selector, entry.data_type, entry.matched, entry.honoured, tuple(entry.missing), tuple(entry.others))
        for entry in found.wishes
    ]
    order = {"ok": 0, "warning": 1, "failed": 2}
    status = max((wish.status for wish in wishes), key=order.__getitem__, default="ok")
    widths = sorted({width for row in found.bits.values() for width in row}, key=lambda width: (len(width), width))
    return {
        "wishes": clipped(wishes, MOST_WISHES),
        "status": status if found.passed else "failed",
        "kept": found.kept,
        "nodes": found.nodes,
        "widths": widths[:6],
        "bits": clipped(sorted(found.bits.items()), MOST_TYPES),
    }


def axmodel_part(
    checkpoint: Checkpoint, workdir: Path, clip: Part[tuple[Capture, np.ndarray]], command: str
) -> Part[dict[str, Any]]:
    """What the template shows of `axmodel_fidelity.json`, if it is about this model, graph and clip.

    Args:
        checkpoint: the model.
        workdir: what the steps left.
        clip: the captured clip, which the compiled model was run on.
        command: builds and compares again.
    """
    part = read_part(read_axmodel_fidelity, workdir / AXMODEL_FIDELITY, command)
    if part.value is None:
        return part
    found = part.value
    try:
        for graph in found.graphs:
            check_compiled(graph, checkpoint, workdir, clip.value and clip.value[0])
    except InputError as error:
        return Part(None, f"{error}.", command)
    precision = found.precision and precision_table(found.precision)
    return Part(
        {
            "holds": found.holds,
            "graphs": [{"graph": graph, "source": limit_source(graph, workdir)} for graph in found.graphs],
            "most": MOST_STEPS,
            "precision": precision,
        }
    )


def check_compiled(graph: CompiledModel, checkpoint: Checkpoint, workdir: Path, capture: Capture | None) -> None:
    """That a comparison is of this model, of the graph that is there and of the captured clip.

    Raises:
        InputError: it is not; the message says of what.
    """
    stem = Path(graph.file).stem
    if Path(graph.file).name != graph.file or not stem.startswith(f"{checkpoint.name}_vision"):
        raise InputError(f"{AXMODEL_FIDELITY} is about {graph.file}, not about a model of {checkpoint.name}")
    if capture is not None and len(graph.steps) != capture.grid_thw[0]:
        raise InputError(
            f"{AXMODEL_FIDELITY} is of a clip of {len(graph.steps)} steps, the captured one has {capture.grid_thw[0]}"
        )
    check_newer(workdir / AXMODEL_FIDELITY, [workdir / f"{stem}_uint8.onnx", workdir / PIXELS])


def limit_source(graph: CompiledModel, workdir: Path) -> str:
    """Where the limits of a comparison come from, in words."""
    from qwen_vl_axera.compiled.axmodel import LEAST_GROWTH, limits
    from qwen_vl_axera.preflight.plan import CONFIGS

    if graph.thresholds == AXMODEL_THRESHOLDS:
        return "the manual’s own limit for a quantised model: no preview had simulated this configuration"
    rule = f"as the preview predicts, whose loss may double and grow by {LEAST_GROWTH:g} at least"
    candidates: Sequence[Path] = [workdir / MIXED_CONFIG, *CONFIGS.values()]
    for config in candidates:
        try:
            if config.is_file() and limits(workdir, config) == graph.thresholds:
                return f"{rule} ({config.name})"
        except (InputError, KeyError, TypeError):  # no preview, or no configuration: the rule alone is said
            continue
    return f"{rule}; of which configuration is not known any more"
