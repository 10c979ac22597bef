"""A slice of the tower through the real compiler: minutes instead of hours until a user knows what to expect.

The forms of the window attention are tried in order, until one compiles and computes what ONNX Runtime does. Of the
compiler's own output two things are read: `max_cycle`, and `quant/quant_axmodel.json` (see `compiled.precision`).
"""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.compiled.axmodel import compare_axmodel, precision_text, read_precision
from qwen_vl_axera.compiler.pulsar2 import build_command, version
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.compiler.tool import Tool, execute
from qwen_vl_axera.contract import CHIP, GraphSpec, data_file
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.gate import find_graphs
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS, within
from qwen_vl_axera.files import read_json
from qwen_vl_axera.graph.export import trace_graph
from qwen_vl_axera.graph.files import load_graph, read_spec, write_graph
from qwen_vl_axera.oracle.record import versions

PLACE = "probe"  # below the work directory: a build's output for each form
CYCLES = re.compile(r"max_cycle = ([\d,]{1,20})\b")


def probe(
    checkpoint: Checkpoint,
    workdir: Path,
    tool: Tool,
    config: Path,
    forms: Sequence[str],
    chip: str = CHIP,
    every: bool = False,
    opset: int | None = None,
) -> dict[str, Any]:
    """Builds and simulates the probe in one form after the other.

    Args:
        checkpoint: the model.
        workdir: holds the capture, the exported graph and its weights, and the calibration archive.
        tool: the compiler.
        config: the build configuration.
        forms: window modes in the order of trying.
        chip: target hardware.
        opset: of the probe; None: the exported graph's.
        every: go on after the first form that works, and take the one with the fewest cycles.

    Returns:
        `probe.json`: `passed`, the `form` to build the whole in (None: none works), the `attempts`, and what a report
        about them needs (versions, configuration, size).

    Raises:
        InputError: a file of an earlier step is missing.
    """
    load_config(config)
    whole, _ = find_graphs(checkpoint.name, workdir)
    model = load_graph(whole)
    base = read_spec(model, whole)
    base = replace(base, opset=opset or base.opset)
    compiler = version(tool)  # asked first: one that says nothing costs no build
    attempts: list[dict[str, Any]] = []
    for form in forms:
        spec = replace(base, window_mode=form, probe=True)
        attempts.append(attempt(checkpoint, workdir, tool, config, spec, chip))
        if attempts[-1]["works"] and not every:
            break
    working = [entry for entry in attempts if entry["works"]]
    best = min(working, key=lambda entry: entry["cycles"] or float("inf"), default=None)
    precise = best is not None and (best["precision"] is None or best["precision"]["passed"])
    return {
        "passed": best is not None and precise,
        "form": best and best["form"],
        "attempts": attempts,
        "whole": best and {"nodes": len(model.graph.node), "seconds": estimate(best, len(model.graph.node))},
        "thresholds": AXMODEL_THRESHOLDS,
        "spec": base.metadata(),
        "chip": chip,
        "config": read_json(config),
        "versions": versions() | {"pulsar2": compiler},
    }


def attempt(
    checkpoint: Checkpoint, workdir: Path, tool: Tool, config: Path, spec: GraphSpec, chip: str
) -> dict[str, Any]:
    """Exports, builds and simulates the probe in one form; what goes wrong is part of the answer."""
    graph, uint8 = write_probe(checkpoint, workdir, spec)
    place = Path(workdir) / PLACE / spec.window_mode
    command = build_command(tool, graph, config, workdir, place, chip=chip)
    cycles: list[int] = []
    result = {"form": spec.window_mode, "works": False, "nodes": len(load_graph(graph).graph.node), "cycles": None}
    result |= {"compiled": False, "steps": [], "precision": None, "error": None}
    shutil.rmtree(place, ignore_errors=True)  # an earlier build's record must not be taken for this one's
    start = time.monotonic()
    try:
        execute(command, lambda line: cycles.extend(int(found.replace(",", "")) for found in CYCLES.findall(line)))
        result |= {"seconds": round(time.monotonic() - start, 1), "cycles": sum(cycles) or None, "compiled": True}
        result["precision"] = read_precision(config, graph, place)
        result["steps"] = compare_axmodel(place / f"{graph.stem}.axmodel", uint8, workdir, place / "check")
        result["works"] = all(within(figures, AXMODEL_THRESHOLDS) for figures in result["steps"])
    except (CheckFailed, InputError) as error:  # also of what the compiler left behind
        result |= {"error": str(error)}
        result.setdefault("seconds", round(time.monotonic() - start, 1))
    return result


def write_probe(checkpoint: Checkpoint, workdir: Path, spec: GraphSpec) -> tuple[Path, Path]:
    """The probe's two graphs over the weights that export.py wrote.

    Raises:
        InputError: those are missing or of another model.
    """
    paths = []
    for one in (spec, replace(spec, uint8=True)):
        model, data = trace_graph(checkpoint, one)
        weights = Path(workdir) / data_file(checkpoint.name)
        if not weights.is_file() or weights.stat().st_size != data.size:
            raise InputError(f"{weights}: expected the {data.size} bytes that export.py writes; run it again")
        paths.append(Path(workdir) / f"{one.stem(checkpoint.name)}.onnx")
        write_graph(model, paths[-1])
    return paths[0], paths[1]


def estimate(built: dict[str, Any], nodes: int) -> float:
    """Seconds that the whole may take. An inference: that a build's time grows with its nodes."""
    return round(built["seconds"] * nodes / built["nodes"], 1)


def verdict(report: dict[str, Any]) -> str:
    """The report for the screen: a row for each form, then what to do."""
    rows = [("form", "compiles", "lowest token", "seconds", "cycles", "")]
    for entry in report["attempts"]:
        built = "yes" if entry["compiled"] else "no"
        lowest = min((step["min_token_cosine"] for step in entry["steps"]), default=None)
        numbers = "-" if lowest is None else f"{lowest:.5f}"
        cycles = f"{entry['cycles']:,}" if entry["cycles"] else "-"
        rows.append(
            (entry["form"], built, numbers, str(entry["seconds"]), cycles, "ok" if entry["works"] else "FAILED")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{entry['form']}: {entry['error']}" for entry in report["attempts"] if entry["error"]]
    if report["form"] is None:
        return "\n".join([*lines, "no form works: read the compiler's last lines above, and send us probe.json"])
    chosen = next(entry for entry in report["attempts"] if entry["form"] == report["form"])
    minutes = report["whole"]["seconds"] / 60
    lines += [precision_text(chosen["precision"])]
    lines += [f"build the whole with --window-mode {report['form']}; about {minutes:.0f} minutes (an inference)"]
    return "\n".join(lines)
