"""The report of a comparison, for the screen."""

from collections.abc import Sequence
from typing import Any

from qwen_vl_axera.fidelity.metrics import within

HEAD = "graph", "step", "max abs", "relative", "mean abs", "cosine", "lowest token", ""


def fidelity_table(report: dict[str, Any]) -> str:
    """`fidelity.json` for the screen: a row for each graph and step, each graph's error, then what is wrong."""
    rows = [(*HEAD[:-1], "ratio", "")]
    for graph in report["graphs"]:
        for number, figures in enumerate(graph["steps"]):
            ratio = f"{figures['exact']['ratio']:.3g}" if "exact" in figures else "–"
            rows.append((*cells(graph["file"], number, figures), ratio, "ok" if figures["passed"] else "FAILED"))
    lines = columns(rows)
    for graph in report["graphs"]:
        if exact := graph["exact"]:
            lines.append(
                f"{graph['file']}: error {exact['graph_error']:.2e}, transformers' own {exact['reference_error']:.2e}: "
                f"ratio {exact['ratio']:.3g}, of a typical token {exact['typical_ratio']:.3g}, "
                f"of the worst {exact['token_ratio']:.3g}"
            )
    limits = "of a typical token {typical_error_ratio:g}, of all {error_ratio:g}, of the worst {token_error_ratio:g}"
    limits = limits.format(**report["thresholds"])
    lines.append(f"errors are root mean squares against float64; limits of the ratio: {limits}")
    lines += [f"{graph['file']}: {problem}" for graph in report["graphs"] for problem in graph["problems"]]
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """A report that is judged by thresholds, for the screen: a row for each graph and step."""
    rows = [HEAD]
    for graph in report["graphs"]:
        for number, figures in enumerate(graph["steps"]):
            verdict = "ok" if within(figures, graph["thresholds"]) else "FAILED"
            rows.append((*cells(graph["file"], number, figures), verdict))
    limits = ", ".join(
        f"{name} {'≥' if name.endswith('cosine') else '≤'} {limit:g}" for name, limit in report["thresholds"].items()
    )
    return "\n".join([*columns(rows), f"thresholds: {limits}"])


def cells(file: str, step: int, figures: dict[str, float]) -> tuple[str, ...]:
    return (
        file,
        str(step),
        f"{figures['max_abs']:.2e}",
        f"{figures['max_abs_relative']:.2e}",
        f"{figures['mean_abs']:.2e}",
        f"{figures['cosine']:.8f}",
        f"{figures['min_token_cosine']:.8f}",
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def text_table(entries: Sequence[dict[str, Any]]) -> str:
    """The answers for the screen: both texts, and the first token that differs with its probabilities."""
    lines = []
    for entry in entries:
        verdict = f"equal, {entry['tokens']} tokens" if entry["equal"] else "DIFFERENT"
        lines += [
            entry["prompt"],
            f"  transformers  {entry['reference']}",
            f"  ONNX          {entry['onnx']}  ({verdict})",
        ]
        difference = entry.get("first_difference")
        if difference:
            sides = [
                f"{name} {side['text']!r} (p {side['probability']:.3f})"
                for name, side in difference.items()
                if name != "token"
            ]
            lines.append(f"  first difference at token {difference['token']}: {', '.join(sides)}")
    return "\n".join(lines)
