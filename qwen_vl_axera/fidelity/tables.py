"""The report of a comparison, for the screen."""

from collections.abc import Sequence

from qwen_vl_axera.fidelity.record import Fidelity, Figures, Graph
from qwen_vl_axera.language.record import Answer

HEAD = "graph", "step", "max abs", "relative", "mean abs", "cosine", "lowest token", ""


# What the ratios are called, in the order of the line.
RATIOS = {
    "typical_ratio": "typical token",
    "window_ratio": "worst windows",
    "most_ratio": "nine of ten",
    "ratio": "all",
    "token_ratio": "worst token",
}


def fidelity_table(report: Fidelity) -> str:
    """`fidelity.json` for the screen: a row for each step that ran, each graph's error, then what is wrong."""
    rows = [(*HEAD[:-1], "ratio", "")]
    for graph in report.graphs:
        for number, step in enumerate(() if graph.same_as else graph.steps):
            ratio = f"{step.exact.ratio:.3g}" if step.exact else "–"
            rows.append((*cells(graph.file, number, step), ratio, "ok" if step.holds else "FAILED"))
    lines = columns(rows)
    lines += [f"{graph.file}: {ratios(graph, report)}" for graph in report.graphs]
    lines += [f"{graph.file}: {problem}" for graph in report.graphs for problem in graph.problems]
    return "\n".join(lines)


def ratios(graph: Graph, report: Fidelity) -> str:
    """A graph's errors over transformers' own, with their limits, in a line."""
    if not graph.steps:
        return "not run: it is built otherwise than export.py builds it"
    if graph.exact is None:
        return "no error can be measured: its answer is not finite"
    parts = (
        f"{name} {_ratio(getattr(graph.exact, field))} (limit {getattr(report.thresholds, field):g})"
        for field, name in RATIOS.items()
    )
    same = f"; the same nodes, weights and values as {graph.same_as}" if graph.same_as else ""
    return f"{' · '.join(parts)}; 1 = as exact as transformers{same}"


def _ratio(value: float) -> str:
    """A ratio of errors; where transformers' own error is 0, it has no upper end."""
    return f"{value:.3g}" if value < 1e6 else "over 1,000,000"


def cells(file: str, step: int, figures: Figures) -> tuple[str, ...]:
    errors = (f"{error:.2e}" for error in (figures.max_abs, figures.max_abs_relative, figures.mean_abs))
    return file, str(step), *errors, f"{figures.cosine:.8f}", f"{figures.min_token_cosine:.8f}"


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


def text_table(answers: Sequence[Answer]) -> str:
    """The answers for the screen: both texts, and the first token that differs with its probabilities."""
    lines = []
    for answer in answers:
        verdict = f"equal, {answer.tokens} tokens" if answer.equal else "DIFFERENT"
        lines += [
            answer.prompt,
            f"  transformers  {answer.reference}",
            f"  ONNX          {answer.onnx}  ({verdict})",
        ]
        if difference := answer.first_difference:
            sides = {"reference": difference.reference, "onnx": difference.onnx}
            tokens = (f"{name} {side.text!r} (p {side.probability:.3f})" for name, side in sides.items() if side)
            lines.append(f"  first difference at token {difference.token}: {', '.join(tokens)}")
    return "\n".join(lines)
