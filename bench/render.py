"""The result as tables: for the screen and for docs/benchmarks.md."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Row
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
PARTS = {
    "export": "export",
    "steps": "ONNX Runtime, one temporal step",
    "graph": "the graph",
    "chain": "steps 1 and 3, and the graph against transformers",
    "frames": "frames, calibration, embeddings",
}
LABELS = {
    "export_to_copy": "`export.py`, {shape}, {size} / copying its data file ({gigabytes:.2f} GB)",
    "step_dense": "dense windows / grouped, {size}",
    "step_transformers": "transformers' `OnnxExporter` / grouped, {size}",
    "answer_transformers": "transformers' `OnnxExporter`, small tower, {size}: lowest cosine of a token with ours",
    "flatness": "cost per patch, {size} / {other} ({patches}× the patches; {arithmetic}× the arithmetic per patch)",
    "cost_per_patch": "cost per patch at {size} ({patches} patches) / at the smallest size",
    "nodes": "nodes, {kind}, {size}",
    "nodes_vendor": "nodes, the vendor's scripts, simplified, {size} (cited)",
    "nodes_transformers": "nodes, transformers 5.23 `OnnxExporter`, {size} (cited)",
    "moved": "bytes moved a step, {kind}, {size}",
    "peak": "`{script}`, {size}: peak memory",
    "fidelity": "{shape}, {size}: largest error / largest output",
    "fidelity_outliers": "{shape}, {size}, massive activations: largest error / largest output",
    "preprocess_to_processor_pillow": "transformers' Pillow processor / `preprocess.py`, {source} → {seen}",
    "preprocess_to_processor_torchvision": "transformers' torchvision processor / `preprocess.py`, {source} → {seen}",
    "preprocess_to_resize_pillow": "Pillow's resize alone, one thread / `preprocess.py`",
    "preprocess_normalized_to_processor_pillow": "every frame a still, and normalised: Pillow processor",
    "preprocess_normalized_to_processor_torchvision": "every frame a still, and normalised: torchvision processor",
    "preprocess_normalized_to_resize_pillow": "every frame a still, and normalised: Pillow's resize alone",
    "same_bits": "values equal to the Pillow processor's, bit for bit",
    "calibration_rate": "`get_calib.py`, {source} → {size}, {frames} frames",
    "calibration_to_decode": "`get_calib.py` / decoding the same frames alone",
    "calibration_memory": "`get_calib.py`: peak memory, {many} samples / {few} samples",
    "embedding_to_copy": "`extract_embedding.py`, {shape} / copying its {gigabytes:.2f} GB",
}
HEADINGS = (
    "",
    "measured",
    "range, rounds",
    "target",
    "",
    "seconds, for context",
    "processor; disk: read, written",
    "peak memory",
)
VERDICTS = {
    "met": "met",
    "missed": "**missed**",
    "ahead": "ahead",
    "equal": "equal",
    "behind": "**behind**",
    None: "",
}


def cells(row: Row) -> list[str]:
    """One row's texts, in the order of HEADINGS."""
    value = "" if row.value is None else figure(row.value, row.unit)
    if row.note:
        value = f"{value} ({row.note})" if value else row.note
    spread = f"{figure(row.range[0], row.unit)} – {figure(row.range[1], row.unit)}" if row.range else ""
    if row.rounds:
        spread += ", " + (" + ".join(str(run["rounds"]) for run in row.runs) if len(row.runs) > 1 else str(row.rounds))
    target = f"{SIGNS[row.target[0]]} {figure(row.target[1], row.unit)}" if row.target else ""
    peak = memory(row.peak) if row.peak else ""
    if row.peak_limit:
        peak += f" (≤ {memory(row.peak_limit)})"
    context = ", ".join(f"{name} {seconds(amount)}" for name, amount in row.seconds.items())
    return [
        LABELS[row.label].format(**row.params),
        value,
        spread,
        target,
        VERDICTS[row.verdict()],
        context,
        "; ".join(cost(program, used) for program, used in row.costs.items()),
        peak,
    ]


SIGNS = {"<=": "≤", ">=": "≥", ">": ">"}


def figure(value: float, unit: str) -> str:
    match unit:
        case "x":
            return f"{value:.2f}×"
        case "nodes":
            return f"{value:.0f}"
        case "MB":
            return f"{value:.0f} MB"
        case "relative":
            return f"{value:.1e}"
        case "cosine":
            return f"{value:.5f}" if value > 0.99 else f"{value:.3f}"
        case "equal values":
            return f"{100 * value:.6g} %"
        case _:
            return f"{value:.0f} {unit}"


def cost(program: str, used: dict[str, float]) -> str:
    """A program's processor time, and how much of what it read and wrote was on the disk and not in the page cache."""
    parts = [f"{program} {seconds(used['processor'])}"]
    for name in ("read", "written"):
        if used.get(name) and f"{name}_disk" in used:
            parts.append(f"{100 * used[f'{name}_disk'] / used[name]:.0f} % of {memory(used[name])}")
    return ", ".join(parts)


def seconds(amount: float) -> str:
    return f"{amount:.2f} s" if amount >= 0.1 else f"{1000 * amount:.1f} ms"


def memory(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def screen(result: dict[str, Any]) -> str:
    """The whole result for the terminal, in plain columns."""
    rows = [Row.from_json(entry) for entry in result["rows"]]
    lines = [conditions(result["conditions"])]
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", PARTS[part].upper()]
        table = [cells(row) for row in rows if row.part == part]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True) if width).rstrip()
            for line in table
        ]
    return "\n".join(lines).replace("`", "").replace("**", "")


def markdown(result: dict[str, Any], plot: str) -> str:
    """The section of docs/benchmarks.md.

    Args:
        result: what `run.py` saved.
        plot: the picture's path as the document sees it.
    """
    rows = [Row.from_json(entry) for entry in result["rows"]]
    lines = [conditions(result["conditions"]), ""]
    for part in dict.fromkeys(row.part for row in rows):
        table = [cells(row) for row in rows if row.part == part]
        used = [column for column in range(len(HEADINGS)) if column == 0 or any(line[column] for line in table)]
        lines += _markdown_table([PARTS[part], *HEADINGS[1:]], table, used)
        lines.append("")
    return "\n".join([*lines, f"![Cost per step and per patch against size]({plot})"])


def _markdown_table(headings: Sequence[str], table: Iterable[list[str]], used: Sequence[int]) -> list[str]:
    line = lambda texts: "| " + " | ".join(texts[column].replace("|", "\\|") for column in used) + " |"  # noqa: E731
    return [line(headings), "|" + "---|" * len(used), *map(line, table)]


def conditions(values: dict[str, Any]) -> str:
    """Where and with what it was measured, in a sentence or two."""
    versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
    gigabytes = math.ceil(values["memory"] / 2**30)
    minutes = values.get("minutes", 0)
    return (
        f"Conditions: {values['processor']}, {values['cores']} cores, {gigabytes} GiB; load {values['load_before']} "
        f"before the run; {values['date']}, {minutes:.0f} minutes; shape {values['shape']}, random weights, float32; "
        f"{versions}. Ratios carry over to other machines better than seconds do."
    )


def rewrite_section(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replaces what stands between two markers of a document, each on a line of its own.

    Raises:
        InputError: the document does not hold both markers, once each and in order.
    """
    document = Path(path).read_text(encoding="utf-8")
    before, first, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last or begin in rest or end in before or end in after:
        raise InputError(f"{path}: expected one {begin} and one {end}, once each, in this order")
    with atomic_write(path, "w") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")
