"""One graph's answers to a clip, judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import compare, token_rms
from qwen_vl_axera.fidelity.record import THRESHOLDS, Bound, Graph, GraphErrors, Step, StepErrors
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.fidelity.truth import Judge, Truth

SHOWN = 20  # problems of a graph
WORDS = {
    "typical_ratio": "the error",
    "window_ratio": "the error of a group of windows in one step",
    "most_ratio": "the error of one token in ten",
    "ratio": "the error of all tokens together",
    "token_ratio": "the error of token {token} in step {step}",
}


@dataclass
class Run:
    """One graph under test.

    Attributes:
        path: its file.
        differences: where it is not what export.py would write now, a line each.
        foreign: whether its nodes are others: it is not run then.
        tokens: what it made of the clip, float32 (T, N, C).
        same_as: the graph whose tokens these are; it gave the same ones in the step that it ran over.
        problems: what is wrong with its answers, a line each.
        exact: errors of all exact steps together; None where the answer is not finite.
        exact_steps, bounds: of single steps.
        failed: the steps that did not pass.
        suspect: the step and the errors of its tokens (N,) to look at when it is wrong.
    """

    path: Path
    differences: list[str] = field(default_factory=list)
    foreign: bool = False
    tokens: np.ndarray | None = None
    same_as: str | None = None
    problems: list[str] = field(default_factory=list)
    exact: GraphErrors | None = None
    exact_steps: dict[int, StepErrors] = field(default_factory=dict)
    bounds: dict[int, Bound] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    suspect: tuple[int, np.ndarray] | None = None

    @property
    def usable(self) -> bool:
        """Whether its tokens can be given to the language model."""
        return self.tokens is not None and bool(np.isfinite(self.tokens).all())

    def run(self, pixels: np.ndarray, oracle: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """Runs it over some steps of a clip.

        Args:
            pixels: uint8 (T, S, 392, 3).
            oracle: float32 (T, N, C), of which the shape counts.
            steps: their numbers.

        Returns:
            float32 (E, N, C).

        Raises:
            InputError: it is of another size or width.
        """
        tower, outputs = OnnxTower(self.path), []
        with progress.stage(self.path.name, len(steps), unit="step") as stage:
            for step in steps:
                tokens = tower.step(np.ascontiguousarray(pixels[step]))
                if tokens.shape != oracle.shape[1:]:
                    raise InputError(
                        f"{self.path}: gives tokens of shape {list(tokens.shape)}, transformers "
                        f"{list(oracle.shape[1:])}: graph and capture are of different checkpoints"
                    )
                outputs.append(tokens)
                stage.advance()
        return np.stack(outputs)

    def judge(self, judge: Judge) -> None:
        """Fills in the figures and what is wrong with its tokens."""
        broken = [number for number, tokens in enumerate(self.tokens) if not np.isfinite(tokens).all()]
        if broken:
            self.refuse(broken, f"NaN or infinite values in step {', '.join(map(str, broken))}")
            self.suspect = broken[0], 1.0 - np.isfinite(self.tokens[broken[0]]).all(-1)
            return
        self.exact = self.judge_steps(judge, judge.truth)
        for number in sorted(set(range(len(self.tokens))) - set(judge.truth.steps)):
            self.bounds[number] = judge.bound(number, self.tokens[number])
            if self.bounds[number].kept:
                continue
            if self.exact.exceeded:  # wrong already
                self.failed.add(number)
            else:
                self.judge_steps(judge, judge.truth_of(number))

    def judge_steps(self, judge: Judge, truth: Truth) -> GraphErrors:
        """Measures steps whose exact answer is known, all of them together."""
        tokens = self.tokens[truth.steps]
        errors = judge.errors(truth, tokens)
        self.exact_steps |= zip(truth.steps, truth.step_errors(tokens), strict=True)
        if name := errors.exceeded:
            ratios = truth.token_ratios(tokens)
            place, token = np.unravel_index(int(ratios.argmax()), ratios.shape)
            step = truth.steps[place]
            self.suspect = step, token_rms(tokens[place] - truth.exact[place])
            what, limit = WORDS[name].format(token=token, step=step), getattr(THRESHOLDS, name)
            self.refuse(truth.steps, f"{what} is {times(getattr(errors, name))} transformers' own (at most {limit:g})")
        return errors

    def take(self, other: "Run") -> None:
        """Takes over what another graph gave and how that was judged."""
        path, differences = self.path, self.differences
        vars(self).update(vars(other) | {"path": path, "differences": differences, "same_as": other.path.name})

    def refuse(self, steps: Sequence[int], problem: str) -> None:
        self.problems.append(problem)
        self.failed.update(steps)

    def record(self, oracle: np.ndarray) -> Graph:
        """Its entry in `fidelity.json`."""
        steps = (
            []
            if self.tokens is None
            else [
                Step(
                    **compare(np.asarray(expected), tokens),
                    passed=number not in self.failed,
                    exact=self.exact_steps.get(number),
                    bound=self.bounds.get(number),
                )
                for number, (expected, tokens) in enumerate(zip(oracle, self.tokens, strict=True))
            ]
        )
        problems = [*self.problems, *self.differences]
        return Graph(self.path.name, not problems, steps, self.exact, problems[:SHOWN], self.same_as)


def times(value: float) -> str:
    return f"{value:.3g} times" if value < 1e6 else "more than a million times"
