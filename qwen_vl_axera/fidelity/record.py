"""`fidelity.json`: how far features are from those that they stand in for.

Whether a graph passed is computed here and nowhere else: the gate asks `holds`, and so does whoever reads the record.
"""

import os
from pathlib import Path

from qwen_vl_axera.contract import EXACT, FIDELITY_TOKENS, ORACLE, PIXELS, shared_place
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import plain, read_record
from qwen_vl_axera.language.record import Answer
from qwen_vl_axera.made_from import stale
from qwen_vl_axera.oracle.record import Capture
from qwen_vl_axera.record import Amount, Positive, Sha256, Text, record


@record
class Figures:
    """One step's distance, as `metrics.compare` measures it."""

    max_abs: Amount
    mean_abs: Amount
    max_abs_relative: Amount
    cosine: float
    min_token_cosine: float


@record
class StepErrors:
    """Errors against the exact answer: root mean squares, and the graph's over transformers' own in float32."""

    reference_error: Amount
    graph_error: Amount
    ratio: Amount


@record
class Thresholds:
    """The largest ratios of errors that pass, by the names that they have in `GraphErrors`."""

    typical_ratio: Amount = 3.0
    window_ratio: Amount = 5.0
    most_ratio: Amount = 5.0
    ratio: Amount = 30.0
    token_ratio: Amount = 100.0


# Measured over odd towers (docs/design.md). The last two are wide: one token of a tower that amplifies rounding can
# decide them.
THRESHOLDS = Thresholds()


@record
class GraphErrors(StepErrors):
    """Errors of all exact steps together.

    Attributes:
        typical_ratio: of the median token.
        window_ratio: of the median token in the worst group of equal windows of the worst step.
        most_ratio: what nine of ten tokens keep within.
        token_ratio: of the worst token.
        float32_runs: of transformers, that its own error was measured with.
    """

    typical_ratio: Amount
    window_ratio: Amount
    most_ratio: Amount
    token_ratio: Amount
    float32_runs: Positive

    @property
    def exceeded(self) -> str | None:
        """The first ratio above its threshold; None: these errors are what rounding makes of them."""
        names = THRESHOLDS.__dataclass_fields__
        return next((name for name in names if not getattr(self, name) <= getattr(THRESHOLDS, name)), None)


@record
class Bound:
    """How far a step without an exact answer is from transformers' float32, and may be; relative to its size.

    Attributes:
        distance, limit: of all tokens together.
        token_distance, token_limit: of the worst token.
    """

    distance: Amount
    limit: Amount
    token_distance: Amount = 0.0
    token_limit: Amount = 0.0

    @property
    def kept(self) -> bool:
        return self.distance <= self.limit and self.token_distance <= self.token_limit


@record
class Step(Figures):
    """One step of a graph.

    Attributes:
        passed: what the gate said.
        exact: where the exact answer is known.
        bound: where it was not known at first.
    """

    passed: bool
    exact: StepErrors | None = None
    bound: Bound | None = None

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        return self.passed and (self.exact is not None or (self.bound is not None and self.bound.kept))


@record
class Graph:
    """One graph.

    Attributes:
        file: its name.
        passed: what the gate said.
        steps: in the clip's order; none where it was not run, because it is built otherwise than export.py builds it.
        exact: errors of all exact steps together; None where there is no finite answer.
        problems: what is wrong, a line each.
        same_as: the graph of the same nodes and weights that ran over every step; this one ran over one of them and
            gave the same values, bit by bit.
    """

    file: Text
    passed: bool
    steps: list[Step]
    exact: GraphErrors | None
    problems: list[str]
    same_as: Text | None = None

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        measured = bool(self.steps) and self.exact is not None and not self.exact.exceeded
        return self.passed and not self.problems and measured and all(step.holds for step in self.steps)


@record
class Fidelity:
    """`fidelity.json`: the gate's verdict and its figures."""

    passed: bool
    thresholds: Thresholds
    graphs: list[Graph]
    text: list[Answer]
    made_from: dict[str, Sha256]

    def __post_init__(self):
        if self.thresholds != THRESHOLDS:
            raise ValueError(f"thresholds are not those of this version, {plain(THRESHOLDS)}")

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        graphs = bool(self.graphs) and all(graph.holds for graph in self.graphs)
        return self.passed and graphs and all(answer.equal for answer in self.text)

    def stale(self, workdir: Path, capture: Capture) -> str | None:
        """Why it is not about the clip and the graphs of a work directory; None when it is.

        Args:
            workdir: of the record.
            capture: the clip that lies there.
        """
        graphs = (os.path.relpath(shared_place(workdir) / graph.file, workdir) for graph in self.graphs)
        absent = {PIXELS, ORACLE, EXACT, *graphs} - self.made_from.keys()
        if absent:
            return f"it was not made from {min(absent)}"
        if any(len(graph.steps) not in (0, capture.grid_thw[0]) for graph in self.graphs):
            return f"it has not the {capture.grid_thw[0]} steps of the clip"
        # The errors of each token lie beside it and may be absent: whoever reads them asks.
        return stale({name: value for name, value in self.made_from.items() if name != FIDELITY_TOKENS}, workdir)


def read_fidelity(path: Path) -> Fidelity:
    """Reads `fidelity.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(path, Fidelity, "test_onnx_video_by_sec.py")


def is_fidelity(path: Path) -> bool:
    """Whether a file is a `fidelity.json`, of whatever name."""
    try:
        return bool(read_fidelity(path))
    except InputError:
        return False
