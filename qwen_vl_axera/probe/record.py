"""`probe.json`: what the compiler did with two blocks of the tower, form after form."""

from pathlib import Path
from typing import Any, Literal

from qwen_vl_axera.contract import PROBE, WINDOW_MODES
from qwen_vl_axera.fidelity.record import Figures, Limits, Precision
from qwen_vl_axera.files import read_record
from qwen_vl_axera.record import Amount, Count, Text, record

Form = Literal[*WINDOW_MODES]


@record
class Attempt:
    """One form.

    Attributes:
        form: of the window attention.
        works: it compiled, and every step keeps the limits.
        compiled: the compiler made a model.
        nodes: of the probe.
        seconds: of the build.
        cycles: as the compiler counts them; None where it does not say.
        steps: the model against the graph in ONNX Runtime.
        precision: that the build used; None where the compiler left no record of it.
        error: what went wrong, with the compiler's last lines.
    """

    form: Form
    works: bool
    compiled: bool
    nodes: Count
    seconds: Amount
    cycles: Count | None
    steps: list[Figures]
    precision: Precision | None
    error: str | None


@record
class Whole:
    """The whole graph, and the seconds that its build may take (an inference)."""

    nodes: Count
    seconds: Amount


@record
class Probe:
    """The verdict, and what a report about it needs.

    Attributes:
        passed: a form works, and no wish of the configuration was without effect.
        form: to build the whole in; None: none works.
    """

    passed: bool
    form: Form | None
    attempts: list[Attempt]
    whole: Whole | None
    thresholds: Limits
    spec: dict[str, Any]
    chip: Text
    config: dict[str, Any]
    versions: dict[str, str]


def read_probe(workdir: Path) -> Probe:
    """Reads `probe.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(Path(workdir) / PROBE, Probe, "probe_build.py")
