"""One graph's answers to a clip, judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import compare, token_rms
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.fidelity.truth import FIGURES, THRESHOLDS, Judge, Truth, keeps

SHOWN = 20  # problems of a graph


@dataclass
class Graph:
    """One graph under test.

    Attributes:
        path: its file.
        tokens: what it made of the clip, float32 (T, N, C).
        steps: its figures, as in `fidelity.json`.
        exact: those of all exact steps together; None where the answer is not finite.
        problems: what is wrong with it, a line each.
        suspect: the step and the errors of its tokens (N,) to look at when it is wrong.
    """

    path: Path
    tokens: np.ndarray
    steps: list[dict[str, Any]] = field(default_factory=list)
    exact: dict[str, float] | None = None
    problems: list[str] = field(default_factory=list)
    suspect: tuple[int, np.ndarray] | None = None

    def report(self) -> dict[str, Any]:
        """Its entry in `fidelity.json`."""
        return {
            "file": self.path.name,
            "passed": not self.problems,
            "steps": self.steps,
            "exact": self.exact,
            "problems": self.problems[:SHOWN],
        }


def run_graph(path: Path, pixels: np.ndarray, oracle: np.ndarray) -> Graph:
    """Runs a graph over a clip, step by step.

    Args:
        path: the graph.
        pixels: uint8 (T, S, 392, 3).
        oracle: float32 (T, N, C).

    Raises:
        InputError: it is of another size or width.
    """
    tower, outputs = OnnxTower(path), []
    with progress.stage(path.name, len(pixels), unit="step") as stage:
        for patches, expected in zip(pixels, oracle, strict=True):
            tokens = tower.step(np.ascontiguousarray(patches))
            if tokens.shape != expected.shape:
                raise InputError(
                    f"{path}: gives tokens of shape {list(tokens.shape)}, transformers {list(expected.shape)}: "
                    "graph and capture are of different checkpoints"
                )
            outputs.append(tokens)
            stage.advance()
    return Graph(path, np.stack(outputs))


def judge_answers(graph: Graph, judge: Judge) -> None:
    """Fills in a graph's figures and what is wrong with its answers."""
    graph.steps = [
        compare(np.asarray(expected), tokens) | {"passed": True}
        for expected, tokens in zip(judge.oracle, graph.tokens, strict=True)
    ]
    broken = [number for number, tokens in enumerate(graph.tokens) if not np.isfinite(tokens).all()]
    if broken:
        refuse(graph, broken, f"NaN or infinite values in step {', '.join(map(str, broken))}")
        graph.suspect = broken[0], 1.0 - np.isfinite(graph.tokens[broken[0]]).all(-1)
        return
    judge.check_truth(graph.tokens)
    graph.exact = judge_steps(graph, judge, judge.truth)
    bound = judge.bound()
    for number in sorted(set(range(len(graph.tokens))) - set(judge.truth.steps)):
        distance = judge.distance(number, graph.tokens[number])
        graph.steps[number]["bound"] = {"distance": distance, "limit": bound}
        if distance <= bound:
            continue
        if keeps(graph.exact):
            judge_steps(graph, judge, judge.truth_of(number))
        else:  # the graph is wrong already
            graph.steps[number]["passed"] = False


def judge_steps(graph: Graph, judge: Judge, truth: Truth) -> dict[str, float]:
    """Measures steps whose exact answer is known, all of them together."""
    tokens = graph.tokens[truth.steps]
    figures = judge.figures(truth, tokens)
    for place, number in enumerate(truth.steps):
        graph.steps[number]["exact"] = truth.step_figures(place, tokens)
    if keeps(figures):
        return figures
    ratios = truth.token_ratios(tokens)
    place, token = np.unravel_index(int(ratios.argmax()), ratios.shape)
    graph.suspect = truth.steps[place], token_rms(tokens[place] - truth.exact[place])
    errors = {
        "typical_ratio": "the error",
        "ratio": "the error of all tokens together",
        "token_ratio": f"the error of token {token} in step {truth.steps[place]}",
    }
    limits = {name: THRESHOLDS[threshold] for name, threshold in FIGURES.items()}
    name, limit = next((name, limit) for name, limit in limits.items() if figures[name] > limit)
    what = f"{errors[name]} is {times(figures[name])} transformers' own (at most {limit:g})"
    refuse(graph, truth.steps, what)
    return figures


def refuse(graph: Graph, steps: Sequence[int], problem: str) -> None:
    graph.problems.append(problem)
    for number in steps:
        graph.steps[number]["passed"] = False


def times(value: float) -> str:
    return f"{value:.3g} times" if value < 1e6 else "more than a million times"
