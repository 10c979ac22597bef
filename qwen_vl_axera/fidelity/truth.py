"""How far a graph is from the exact answer, measured in transformers' own distance from it.

transformers computes in float32, and so does the graph: both miss the exact answer by rounding, and by how much
depends on the weights and the clip. Only the ratio of the two errors says whether the graph is right. Where that
ratio is suspicious, transformers runs again, its pixels moved by float32 rounding: one run may come nearer to the
exact answer by luck than float32 does as a rule. What no run missed by as much, the graph must not miss by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import WORST, rms, token_rms
from qwen_vl_axera.fidelity.record import THRESHOLDS, Bound, GraphErrors, StepErrors
from qwen_vl_axera.oracle.record import MADE_BY
from qwen_vl_axera.oracle.rounding import RUNS, unexplained

MORE_RUNS = 8  # of transformers in float32 at most, before a graph is refused
HOPELESS = 1000.0  # no tower's rounding was seen to explain such a ratio: more runs would change nothing
MOST = 0.9  # of the tokens: what most_ratio is about
# Float32's own rounding of one value, relative: no float32 answer can be expected nearer to the exact one.
ROUNDING = float(np.finfo(np.float32).eps) / 2
# A step without an exact answer may be this far from transformers' float32 at most, relative: where rounding makes
# more of it, a wrong answer could hide, and the exact one is computed.
LOOSEST = 1e-3
TINY = float(np.finfo(np.float64).tiny)


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
        """transformers' error of each token, float64 (E, N): the largest of all its runs."""
        errors = [token_rms(run - self.exact) for run in self.reference]
        return np.maximum(np.max(errors, axis=0), ROUNDING * token_rms(self.exact))

    def token_ratios(self, tokens: np.ndarray) -> np.ndarray:
        """A graph's error of each token over transformers', float64 (E, N).

        A token that transformers happens to hit is measured by the error of all steps together.
        """
        floor = self.token_floor
        return ratio(token_rms(tokens - self.exact), np.maximum(floor, rms(floor)))

    def errors(self, tokens: np.ndarray, windows: Sequence[np.ndarray]) -> GraphErrors:
        """The errors of all steps together.

        Args:
            tokens: a graph's, (E, N, C).
            windows: the tokens of each group of equal windows, in reading order.
        """
        error, floor = token_rms(tokens - self.exact), self.token_floor
        each = ratio(error, floor)
        return GraphErrors(
            **vars(step_errors(rms(floor), rms(error))),
            typical_ratio=quantile(each, 0.5),
            window_ratio=max(quantile(step[group], 0.5) for step in each for group in windows),
            most_ratio=quantile(each, MOST),
            token_ratio=float(self.token_ratios(tokens).max()),
            float32_runs=len(self.reference),
        )

    def step_errors(self, tokens: np.ndarray) -> list[StepErrors]:
        """Each exact step's errors; `tokens` are all theirs."""
        errors = token_rms(tokens - self.exact)
        return [step_errors(rms(floor), rms(error)) for floor, error in zip(self.token_floor, errors, strict=True)]


def quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share, method="lower"))


def step_errors(reference_error: float, graph_error: float) -> StepErrors:
    error = float(np.nan_to_num(graph_error, nan=WORST))
    return StepErrors(reference_error, error, float(ratio(np.array(graph_error), np.array(reference_error))))


def ratio(error: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """error / floor, finite: 0 where there is no error, WORST where only the floor is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.nan_to_num(np.where(error == 0, 0.0, error / floor), nan=WORST, posinf=WORST)


class Judge:
    """Judges graphs against one captured clip.

    Args:
        pixels: uint8 (T, S, 392, 3).
        oracle: transformers' float32 answer, (T, N, C).
        truth: the exact answer of the captured steps.
        grid: rows and columns of patches.
        windows: the tokens of each group of equal windows.
        load: gives transformers' tower; called when it must run again, which takes seconds at true size.

    Raises:
        InputError: transformers' two answers are not to the same steps.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        oracle: np.ndarray,
        truth: Truth,
        grid: tuple[int, int],
        windows: Sequence[np.ndarray],
        load: Callable[[], Any],
    ):
        self.pixels, self.oracle, self.truth, self.grid = pixels, oracle, truth, grid
        self.windows, self.load = windows, load
        self.others: dict[int, Truth] = {}  # of steps that were not exact in the capture and looked suspicious
        self.check_oracle(truth)

    @cached_property
    def reference(self) -> Any:
        return self.load()

    def run_again(self, truth: Truth) -> None:
        """One more run of transformers in float32, its pixels moved by rounding."""
        with progress.stage("how much float32 rounds", unit="run"):
            run = self.reference.run_moved(self.pixels[truth.steps], self.grid, seed=len(truth.reference))
        truth.reference.append(run.reshape(truth.exact.shape))

    def check_oracle(self, truth: Truth) -> None:
        """That transformers' float32 and float64 are answers to the same steps.

        Raises:
            InputError: they differ by more than rounding explains.
        """

        def moved() -> np.ndarray:
            while len(truth.reference) <= RUNS:
                self.run_again(truth)
            return np.stack(truth.reference[1 : 1 + RUNS])

        if found := unexplained(truth.reference[0], truth.exact, moved):
            raise InputError(
                f"transformers' float32 and float64 answers to step {', '.join(map(str, truth.steps))} differ by "
                f"{found[0]:.1e}, rounding explains {found[1]:.1e}: one of them is of another clip or other weights; "
                f"run {MADE_BY} again"
            )

    def errors(self, truth: Truth, tokens: np.ndarray) -> GraphErrors:
        """A graph's errors; while rounding could explain that they are too large, transformers runs again.

        Args:
            truth: of some steps.
            tokens: the graph's for these steps, (E, N, C).
        """
        errors = truth.errors(tokens, self.windows)
        while errors.exceeded and errors.ratio <= HOPELESS and len(truth.reference) <= MORE_RUNS:
            self.run_again(truth)
            errors = truth.errors(tokens, self.windows)
        return errors

    @cached_property
    def limits(self) -> tuple[float, float]:
        """How far a step without an exact answer may be from transformers' float32: all tokens, and the worst.

        With G the graph, R transformers and X the exact answer, |G - R| <= |G - X| + |R - X| <= (limit + 1)·|R - X|;
        the last is taken from the exact step or token where it is largest, relative to its size. What keeps this is
        transformers' answer, too: a graph that is right in the exact steps is right in all of them. Beyond it, X is
        computed.
        """
        sizes, floor = np.maximum(token_rms(self.truth.exact), TINY), self.truth.token_floor
        steps = np.array([rms(one) / max(rms(size), TINY) for one, size in zip(floor, sizes, strict=True)])
        factor = 1 + THRESHOLDS.typical_ratio
        return tuple(float(min(LOOSEST, factor * found.max())) for found in (steps, floor / sizes))

    def bound(self, step: int, tokens: np.ndarray) -> Bound:
        """How far a step's tokens are from transformers' float32, and may be."""
        sizes, apart = np.maximum(token_rms(self.oracle[step]), TINY), token_rms(tokens - self.oracle[step])
        found = (min(float(value), WORST) for value in (rms(apart) / max(rms(sizes), TINY), (apart / sizes).max()))
        distance, token_distance = found
        limit, token_limit = self.limits
        return Bound(distance, limit, token_distance, token_limit)

    def truth_of(self, step: int) -> Truth:
        """The exact answer of another step, computed now.

        Raises:
            InputError: transformers' float32 is not an answer to this step.
        """
        if step not in self.others:
            patches, shape = self.pixels[[step]], self.oracle[[step]].shape
            with progress.stage("exact answer of another step", unit="step"):
                exact = self.reference.run_exact(patches, self.grid).reshape(shape)
            self.others[step] = Truth([step], exact, [self.oracle[[step]]])
            self.check_oracle(self.others[step])
        return self.others[step]
