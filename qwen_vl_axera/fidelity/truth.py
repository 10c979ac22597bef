"""How far a graph is from the exact answer, measured in transformers' own distance from it.

transformers computes in float32, and so does the graph: both miss the exact answer by rounding, and by how much
depends on the weights and the clip. Only the ratio of the two errors says whether the graph is right. Where that
ratio is suspicious, transformers runs again, its pixels moved by float32 rounding: one run may come nearer to the
exact answer by luck than float32 does as a rule.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import WORST, rms, token_rms

# Measured over odd towers (docs/design.md): the error of the median token, of all exact steps together, of the worst
# token. One token of a tower that amplifies rounding can decide the latter two; a wrong one decides them by far.
THRESHOLDS = {"typical_error_ratio": 3.0, "error_ratio": 100.0, "token_error_ratio": 1000.0}
FIGURES = dict(zip(("typical_ratio", "ratio", "token_ratio"), THRESHOLDS, strict=True))  # each, and its threshold
MORE_RUNS = 8  # of transformers in float32 at most, before a graph is refused
HOPELESS = 1000.0  # no tower's rounding was seen to explain such a ratio: more runs would change nothing
# Float32's own rounding of one value, relative: no float32 answer can be expected nearer to the exact one.
ROUNDING = float(np.finfo(np.float32).eps) / 2
# Two float32 answers that agree this much better with one another than with the exact one: it is not exact.
FOREIGN = 100.0


@dataclass
class Truth:
    """The exact answer for some steps, and how far transformers' float32 is from it.

    Attributes:
        steps: their numbers in the clip.
        exact: float64 (E, N, C), tokens in reading order.
        reference: what transformers' float32 gave, float32 (E, N, C) each; the oracle comes first.
    """

    steps: list[int]
    exact: np.ndarray
    reference: list[np.ndarray] = field(default_factory=list)

    @property
    def token_floor(self) -> np.ndarray:
        """transformers' error of each token, float64 (E, N): over all its runs."""
        squares = [np.square(token_rms(run - self.exact)) for run in self.reference]
        return np.maximum(np.sqrt(np.mean(squares, axis=0)), ROUNDING * token_rms(self.exact))

    @property
    def step_floors(self) -> np.ndarray:
        """transformers' error of each step, float64 (E,)."""
        return np.sqrt(np.square(self.token_floor).mean(-1))

    def token_ratios(self, tokens: np.ndarray) -> np.ndarray:
        """A graph's error of each token over transformers', float64 (E, N).

        A token that transformers happens to hit is measured by the error of all steps together.
        """
        floor = self.token_floor
        return ratio(token_rms(tokens - self.exact), np.maximum(floor, rms(floor)))

    def figures(self, tokens: np.ndarray) -> dict[str, float]:
        """The errors of all steps together; see `exact_figures` for a step's."""
        each = ratio(token_rms(tokens - self.exact), self.token_floor)
        figures = error_figures(rms(self.token_floor), rms(tokens - self.exact))
        return figures | {
            "typical_ratio": float(np.quantile(each, 0.5, method="lower")),
            "token_ratio": float(self.token_ratios(tokens).max()),
            "float32_runs": len(self.reference),
        }

    def step_figures(self, number: int, tokens: np.ndarray) -> dict[str, float]:
        """One exact step's errors; `number` counts the exact steps, `tokens` are all theirs."""
        return error_figures(float(self.step_floors[number]), rms(tokens[number] - self.exact[number]))


def error_figures(reference_error: float, graph_error: float) -> dict[str, float]:
    return {
        "reference_error": reference_error,
        "graph_error": float(np.nan_to_num(graph_error, nan=WORST)),
        "ratio": float(ratio(np.array(graph_error), np.array(reference_error))),
    }


def ratio(error: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """error / floor, finite: 0 where there is no error, WORST where only the floor is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.nan_to_num(np.where(error == 0, 0.0, error / floor), nan=WORST, posinf=WORST)


def keeps(figures: dict[str, float]) -> bool:
    """Whether the errors of some steps together are what rounding makes of them."""
    return all(figures[name] <= THRESHOLDS[threshold] for name, threshold in FIGURES.items())


class Judge:
    """Judges graphs against one captured clip.

    Args:
        pixels: uint8 (T, S, 392, 3).
        oracle: transformers' float32 answer, (T, N, C).
        truth: the exact answer of the captured steps.
        grid: rows and columns of patches.
        load: gives transformers' tower; called when it must run again, which takes seconds at true size.

    Raises:
        InputError: an answer holds NaN or infinities.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        oracle: np.ndarray,
        truth: Truth,
        grid: tuple[int, int],
        load: Callable[[], Any],
    ):
        self.pixels, self.oracle, self.truth, self.grid, self.load = pixels, oracle, truth, grid, load
        self.others: dict[int, Truth] = {}  # of steps that were not exact in the capture and looked suspicious

    @cached_property
    def reference(self) -> Any:
        return self.load()

    def figures(self, truth: Truth, tokens: np.ndarray) -> dict[str, float]:
        """A graph's errors; while rounding could explain that they are too large, transformers runs again.

        Args:
            truth: of some steps.
            tokens: the graph's for these steps, (E, N, C).
        """
        figures = truth.figures(tokens)
        while not keeps(figures) and figures["ratio"] <= HOPELESS and len(truth.reference) <= MORE_RUNS:
            with progress.stage("how much float32 rounds", unit="run"):
                run = self.reference.run_moved(self.pixels[truth.steps], self.grid, seed=len(truth.reference))
            truth.reference.append(run.reshape(truth.exact.shape))
            figures = truth.figures(tokens)
        return figures

    def bound(self) -> float:
        """How far a step without an exact answer may be from transformers' float32, relative to its size.

        With G the graph, R transformers and X the exact answer, |G - R| <= |G - X| + |R - X| <= (limit + 1)·|R - X|;
        the last is taken from the step where transformers' relative error is largest. Beyond it X is computed.
        """
        sizes = np.array([max(rms(step), np.finfo(np.float64).tiny) for step in self.truth.exact])
        return (1 + THRESHOLDS["typical_error_ratio"]) * float((self.truth.step_floors / sizes).max())

    def distance(self, step: int, tokens: np.ndarray) -> float:
        """How far a step's tokens are from transformers' float32, relative to its size."""
        size = max(rms(self.oracle[step]), float(np.finfo(np.float64).tiny))
        return min(rms(tokens - self.oracle[step]) / size, WORST)

    def truth_of(self, step: int) -> Truth:
        """The exact answer of another step, computed now."""
        if step not in self.others:
            patches, shape = self.pixels[[step]], self.oracle[[step]].shape
            with progress.stage("exact answer of another step", unit="step"):
                exact = self.reference.run_exact(patches, self.grid).reshape(shape)
            self.others[step] = Truth([step], exact, [self.oracle[[step]]])
        return self.others[step]

    def check_truth(self, tokens: np.ndarray) -> None:
        """Looks whether the exact answer can be one.

        Args:
            tokens: a graph's for all steps, (T, N, C).

        Raises:
            InputError: graph and transformers agree far better with one another than with it.
        """
        steps = self.truth.steps
        between, apart = rms(tokens[steps] - self.oracle[steps]), rms(self.truth.step_floors)
        if apart > FOREIGN * max(between, ROUNDING * rms(self.truth.exact)):
            raise InputError(
                f"the exact answer is not this clip's: graph and transformers differ by {between:.1e} from one "
                f"another and by {apart:.1e} from it; run run_video_by_sec.py again"
            )
