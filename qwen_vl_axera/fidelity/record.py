"""`fidelity.json` and `axmodel_fidelity.json`: how far features are from those that they stand in for."""

from pathlib import Path
from typing import Literal

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import within
from qwen_vl_axera.files import plain, read_record
from qwen_vl_axera.record import Amount, Count, Positive, Sha256, Text, record


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
class GraphErrors(StepErrors):
    """Errors of all exact steps together.

    Attributes:
        typical_ratio: of the median token.
        token_ratio: of the worst token.
        float32_runs: of transformers, that its own error was measured with.
    """

    typical_ratio: Amount
    token_ratio: Amount
    float32_runs: Positive


@record
class Bound:
    """How far a step without an exact answer is from transformers' float32, relative to its size, and may be."""

    distance: Amount
    limit: Amount


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
        """Whether it passed, and its bound says so, too."""
        return self.passed and (self.exact is not None or self.bound is None or self.bound.distance <= self.bound.limit)


@record
class Thresholds:
    """The largest ratios of errors that pass: over all exact steps, of the median token and of the worst."""

    error_ratio: Amount
    typical_error_ratio: Amount
    token_error_ratio: Amount


@record
class Graph:
    """One graph.

    Attributes:
        file: its name.
        passed: what the gate said.
        steps: in the clip's order.
        exact: errors of all exact steps together; None where the answer is not finite.
        problems: what is wrong, a line each.
    """

    file: Text
    passed: bool
    steps: list[Step]
    exact: GraphErrors | None
    problems: list[str]

    def holds(self, thresholds: Thresholds) -> bool:
        """Whether it passed, and its figures say so, too."""
        return (
            self.passed
            and not self.problems
            and bool(self.steps)
            and all(step.holds for step in self.steps)
            and self.exact is not None
            and self.exact.ratio <= thresholds.error_ratio
            and self.exact.typical_ratio <= thresholds.typical_error_ratio
            and self.exact.token_ratio <= thresholds.token_error_ratio
        )


@record
class AnswerToken:
    """A token of an answer, and the probability that the language model gave it."""

    id: Count
    text: str
    probability: Amount


@record
class Difference:
    """The first token that differs; None on the side whose answer has ended."""

    token: Count
    reference: AnswerToken | None = None
    onnx: AnswerToken | None = None


@record
class Answer:
    """Greedy text from transformers' features and from the graph's.

    Attributes:
        prompt: the question.
        reference, onnx: the words.
        tokens: of the reference.
        equal: token by token.
        reference_ids, onnx_ids: the tokens, a stop token included.
        complete: whether the reference ended by itself.
        first_difference: where they differ.
    """

    prompt: str
    reference: str
    onnx: str
    tokens: Count
    equal: bool
    reference_ids: list[Count]
    onnx_ids: list[Count]
    complete: bool
    first_difference: Difference | None = None


@record
class Fidelity:
    """`fidelity.json`: the gate's verdict and its figures; `pixels_sha256` says of which clip."""

    passed: bool
    thresholds: Thresholds
    graphs: list[Graph]
    text: list[Answer]
    pixels_sha256: Sha256

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        graphs = bool(self.graphs) and all(graph.holds(self.thresholds) for graph in self.graphs)
        return self.passed and graphs and all(answer.equal for answer in self.text)


Limits = dict[Literal["max_abs", "mean_abs", "max_abs_relative", "cosine", "min_token_cosine"], Amount]


@record
class CompiledModel:
    """A compiled model against the ONNX graph, and the limits of every step: cosines from below, errors from above."""

    file: Text
    passed: bool
    thresholds: Limits
    steps: list[Figures]

    def keeps(self, step: Figures) -> bool:
        """Whether a step keeps every limit."""
        return within(plain(step), self.thresholds)

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        return self.passed and bool(self.steps) and bool(self.thresholds) and all(map(self.keeps, self.steps))


@record
class Wish:
    """An entry of the configuration's `layer_configs`, and what became of it: see `compiled.precision.Wish`."""

    selector: str
    data_type: Text
    matched: Count
    honoured: Count
    missing: list[str]
    others: list[str]
    status: Literal["ok", "warning", "failed"]
    detail: str


@record
class Precision:
    """Which precision a build really used: see `compiled.precision.precision_report`."""

    passed: bool
    kept: Count
    nodes: Count
    fused: dict[str, Count]
    bits: dict[str, dict[str, Count]]
    wishes: list[Wish]


@record
class AxmodelFidelity:
    """`axmodel_fidelity.json`; there is no text, and no precision where the compiler left no record of it."""

    passed: bool
    thresholds: Limits
    graphs: list[CompiledModel]
    text: list[Answer]
    precision: Precision | None = None

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        return self.passed and bool(self.graphs) and all(graph.holds for graph in self.graphs)


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


def read_axmodel_fidelity(path: Path) -> AxmodelFidelity:
    """Reads `axmodel_fidelity.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(path, AxmodelFidelity, "export_video.sh, with PULSAR2,")
