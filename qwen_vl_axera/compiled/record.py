"""`axmodel_fidelity.json`: a compiled model against its graph, and what the build left behind."""

from pathlib import Path
from typing import Literal

from qwen_vl_axera.fidelity.metrics import within
from qwen_vl_axera.fidelity.record import Figures
from qwen_vl_axera.files import plain, read_record
from qwen_vl_axera.record import Amount, Count, Sha256, Text, record

Status = Literal["ok", "warning", "failed", "not known"]
MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "not known": "not known"}


@record
class Finding:
    """One part of what a build left: "not known" where it could not be read, "failed" only with evidence.

    Attributes:
        part: what was looked at.
        status: the verdict.
        detail: what was found, or what was looked for.
    """

    part: Text
    status: Status
    detail: Text


@record
class Selector:
    """An entry of the configuration's `layer_configs`, and what became of it in the built model.

    Attributes:
        selector: what it selects by, in words.
        by_name: it names layers; otherwise operator types or a part of the graph.
        data_type: that it asks for.
        selected: computing nodes of the graph that it means and no stronger entry does.
        seen: those of them whose width is known.
        obeyed: those that read every activation in the width asked for.
        missing: names given that the built model does not have: fused or renamed.
        others: a few of those seen that have another width.
    """

    selector: str
    by_name: bool
    data_type: Text
    selected: Count
    seen: Count
    obeyed: Count
    missing: list[str]
    others: list[str]

    @property
    def status(self) -> Status:
        """ "failed" where nodes are known not to have it: all of them, or any of those that it names."""
        if not self.seen:
            return "not known" if self.selected else "ok"
        if not self.obeyed or (self.by_name and self.obeyed < self.seen):
            return "failed"
        return "warning" if self.obeyed < self.seen or self.missing else "ok"

    @property
    def detail(self) -> str:
        """What was found, in words."""
        missing = f"; not in the built model: {', '.join(self.missing)}" if self.missing else ""
        if not self.selected:
            return f"no node is left to it: other entries win, or the graph has none{missing}"
        if not self.seen:
            return f"looked for the widths of {self.selected} nodes, found none{missing}"
        others = f"; not {', '.join(self.others)}" if self.others else ""
        return f"{self.obeyed} of {self.seen} nodes have it{others}{missing}"


@record
class Fusion:
    """How often a pattern stands in the graph, and how often the compiler made one operator of it."""

    found: Count
    fused: Count


@record
class Profile:
    """Cycles of a build's trace.

    Attributes:
        span: from the first to the last event, what the model takes.
        kinds: operator type -> cycles of all its events; they overlap, so the sum is larger than the span.
        engines: part of the NPU -> cycles in which it is busy.
    """

    span: Count
    kinds: dict[str, Count]
    engines: dict[str, Count]


@record
class Lowest:
    """The compiler's own comparison: its title, how many rows it has, and the row with the lowest cosine."""

    title: Text
    rows: Count
    operator: Text
    cosine: float


@record
class Build:
    """What a build did, as far as it can be read; a preview may take these rules instead of assuming them.

    Attributes:
        findings: each part that was looked at.
        selectors: the entries of `layer_configs`.
        nodes, kept: nodes of the graph, and how many of their names the built model has.
        widths: operator type -> the widths that it reads, such as "8", "16" or "8/16" -> nodes.
        fused: the compiler's own operators -> how many.
        fusions: pattern, such as "RMSNorm" -> whether it is fused.
        constants: width of the constants that 16-bit operators read, such as "8" -> how many.
        splits: what a Split reads and writes, such as "16 -> 8" -> how many.
        compiler_selectors: what the compiler says that it read in `layer_configs`: type or layer -> data type.
        states: the compiler's census of tensors.
        subgraphs, cycles, macs: as the log says.
        profile: of the trace.
        lowest: of the precision table.
    """

    findings: list[Finding]
    selectors: list[Selector]
    nodes: Count
    kept: Count
    widths: dict[str, dict[str, Count]]
    fused: dict[str, Count]
    fusions: dict[str, Fusion]
    constants: dict[str, Count]
    splits: dict[str, Count]
    compiler_selectors: dict[str, str]
    states: dict[str, Count]
    subgraphs: Count | None = None
    cycles: Count | None = None
    macs: Count | None = None
    profile: Profile | None = None
    lowest: Lowest | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing but the precision is known to be wrong."""
        return all(finding.status != "failed" for finding in self.findings)

    @property
    def precision(self) -> Status:
        """The worst status of an entry of `layer_configs`."""
        order = ("ok", "not known", "warning", "failed")
        return max((selector.status for selector in self.selectors), key=order.index, default="ok")

    def lines(self) -> list[str]:
        """For a terminal, one line a finding."""
        rows = [(one.status, one.part, one.detail) for one in self.findings]
        rows += [(one.status, f"{one.data_type} for {one.selector}", one.detail) for one in self.selectors]
        return [f"{MARKS[status]:<10}{part}: {detail}" for status, part, detail in rows]


Limits = dict[Literal["cosine", "min_token_cosine", "token_error"], Amount]


@record
class CompiledStep(Figures):
    """One step of a compiled model; `token_error` is the worst token's error, relative to the token's size."""

    token_error: Amount


@record
class CompiledModel:
    """A compiled model against the ONNX graph, and the limits of every step: cosines from below, errors from above.

    Attributes:
        file: its name.
        thresholds: the limits.
        source: where they come from, in words.
        steps: in the clip's order.
    """

    file: Text
    thresholds: Limits
    source: Text
    steps: list[CompiledStep]

    def keeps(self, step: CompiledStep) -> bool:
        """Whether a step keeps every limit."""
        return within(plain(step), self.thresholds)

    @property
    def holds(self) -> bool:
        """Whether every step keeps them."""
        return bool(self.steps) and bool(self.thresholds) and all(map(self.keeps, self.steps))


@record
class AxmodelFidelity:
    """`axmodel_fidelity.json`: the comparison and the build, two findings; no build where no configuration was given.

    Attributes:
        passed: what the check said.
        accepted: a precision that is not the one asked for was no reason to stop.
        made_from: the axmodel, graph, clip and configuration -> SHA-256.
    """

    passed: bool
    accepted: bool
    graphs: list[CompiledModel]
    made_from: dict[str, Sha256]
    build: Build | None = None

    @property
    def holds(self) -> bool:
        """Whether the figures and what is known of the build allow to go on."""
        build = self.build is None or (self.build.sound and (self.accepted or self.build.precision != "failed"))
        return bool(self.graphs) and all(graph.holds for graph in self.graphs) and build


def read_axmodel_fidelity(path: Path) -> AxmodelFidelity:
    """Reads `axmodel_fidelity.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(path, AxmodelFidelity, "export_video.sh, with PULSAR2,")
