"""How far the graph's features are from transformers', and how far they may be."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Both graphs run in float32: only the order of sums differs from transformers. A token's cosine is the
# strictest measure of direction, the largest error of magnitude; the latter is relative to the largest
# output, since massive activations set the scale of rounding.
THRESHOLDS = {"min_token_cosine": 0.99999, "max_abs_relative": 2e-5}
# The Pulsar2 manual calls a final cosine above 0.98 normal for a quantised model.
AXMODEL_THRESHOLDS = {"cosine": 0.98, "min_token_cosine": 0.98}


def compare(reference: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """The distance between two sets of tokens.

    Args:
        reference: float (N, C), the oracle's tokens.
        actual: float (N, C).

    Returns:
        `max_abs` and `mean_abs` error, `max_abs_relative` (to the largest reference value), `cosine` over
        all values and `min_token_cosine`, the lowest of any token. NaN or infinities anywhere in `actual`
        give infinite errors and cosines of -1.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"expected tokens of shape {reference.shape}, got {actual.shape}")
    if not np.isfinite(actual).all():
        worst = float(np.finfo(np.float64).max)  # JSON has no infinity
        return {
            "max_abs": worst,
            "mean_abs": worst,
            "max_abs_relative": worst,
            "cosine": -1.0,
            "min_token_cosine": -1.0,
        }
    reference, actual = reference.astype(np.float64), actual.astype(np.float64)
    error = np.abs(actual - reference)
    return {
        "max_abs": float(error.max()),
        "mean_abs": float(error.mean()),
        "max_abs_relative": float(error.max() / max(np.abs(reference).max(), np.finfo(np.float32).tiny)),
        "cosine": float(token_cosines(reference.reshape(1, -1), actual.reshape(1, -1))[0]),
        "min_token_cosine": float(token_cosines(reference, actual).min()),
    }


def token_cosines(reference: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """The cosine of each token, float64 (N,). Two zero vectors agree; one zero vector does not."""
    dot = (reference * actual).sum(-1)
    norms = np.linalg.norm(reference, axis=-1), np.linalg.norm(actual, axis=-1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    product = norms[0] * norms[1]
    return np.where(both_zero, 1.0, dot / np.where(product == 0, 1.0, product))


def within(figures: dict[str, float], thresholds: dict[str, float]) -> bool:
    """Whether every figure keeps its threshold: cosines from below, errors from above."""
    return all(
        figures[name] >= limit if name.endswith("cosine") else figures[name] <= limit
        for name, limit in thresholds.items()
    )


def graph_report(file: str, steps: Sequence[dict[str, float]], thresholds: dict[str, float]) -> dict[str, Any]:
    """One graph's entry in `fidelity.json`."""
    passed = bool(steps) and all(within(figures, thresholds) for figures in steps)
    return {"file": file, "passed": passed, "thresholds": thresholds, "steps": list(steps)}


def table(report: dict[str, Any]) -> str:
    """The report for the screen: one row per graph and step."""
    rows = [("graph", "step", "max abs", "relative", "mean abs", "cosine", "lowest token", "")]
    for graph in report["graphs"]:
        for number, figures in enumerate(graph["steps"]):
            rows.append(
                (
                    graph["file"],
                    str(number),
                    f"{figures['max_abs']:.2e}",
                    f"{figures['max_abs_relative']:.2e}",
                    f"{figures['mean_abs']:.2e}",
                    f"{figures['cosine']:.8f}",
                    f"{figures['min_token_cosine']:.8f}",
                    "ok" if within(figures, graph["thresholds"]) else "FAILED",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    limits = ", ".join(
        f"{name} {'≥' if name.endswith('cosine') else '≤'} {limit:g}" for name, limit in report["thresholds"].items()
    )
    return "\n".join([*lines, f"thresholds: {limits}"])


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
