"""The report's chapter on the build: the probe's verdict, what the build says, the compiled model's numbers."""

from dataclasses import dataclass
from pathlib import Path

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.compiled.record import AxmodelFidelity, read_axmodel_fidelity
from qwen_vl_axera.contract import AXMODEL_FIDELITY, PROBE
from qwen_vl_axera.probe.record import Probe, read_probe
from qwen_vl_axera.report.parts import Part, check, read_part


@dataclass(frozen=True)
class Probed:
    """A probe, and the form in which the graph beside it is exported."""

    found: Probe
    exported: str


def probe_part(checkpoint: Checkpoint, workdir: Path, command: str) -> Part[Probed]:
    """`probe.json`, if it is about what is there.

    Args:
        checkpoint: the model.
        workdir: what the steps left.
        command: probes again.
    """
    from qwen_vl_axera.fidelity.gate import find_graphs
    from qwen_vl_axera.graph.files import load_graph, read_spec

    def read(path: Path) -> Probed:
        found = read_probe(path.parent)
        check(PROBE, found.made_from, workdir)
        graph, _ = find_graphs(checkpoint.name, workdir)
        return Probed(found, read_spec(load_graph(graph), graph).window_mode)

    return read_part(read, workdir / PROBE, command)


def axmodel_part(workdir: Path, command: str) -> Part[AxmodelFidelity]:
    """`axmodel_fidelity.json`, if it is about what is there.

    Args:
        workdir: what the steps left.
        command: builds and compares again.
    """

    def read(path: Path) -> AxmodelFidelity:
        found = read_axmodel_fidelity(path)
        check(AXMODEL_FIDELITY, found.made_from, workdir)
        return found

    return read_part(read, workdir / AXMODEL_FIDELITY, command)
