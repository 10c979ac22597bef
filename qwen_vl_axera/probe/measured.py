"""The newest trace in a work directory, for estimates of time: of the whole build, else of the probe."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.compiled.record import Profile, read_axmodel_fidelity
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.contract import AXMODEL_FIDELITY, PROBE
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.files import load_graph, read_spec
from qwen_vl_axera.made_from import stale
from qwen_vl_axera.preflight.plan import find_graph
from qwen_vl_axera.probe.record import read_probe
from qwen_vl_axera.probe.run import attempt_place
from qwen_vl_axera.quantization.estimate import Trace
from qwen_vl_axera.quantization.fusion import FUSIONS
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.plan import read_plan


def find_trace(name: str, workdir: Path, unfused: Sequence[str] = ()) -> Trace | None:
    """The trace; None where no build left one. One that is of no use is warned of: an estimate can do without.

    Args:
        name: the checkpoint's.
        workdir: what the steps left.
        unfused: the fusions that the compiler is assumed not to make.
    """
    try:
        return _find(name, Path(workdir), [kind for kind in FUSIONS if kind not in unfused])
    except InputError as error:
        cli.warn(f"no trace is used for the estimate of time: {error}")
        return None


def _find(name: str, workdir: Path, fuse: Sequence[str]) -> Trace | None:
    if (workdir / AXMODEL_FIDELITY).is_file():
        found = read_axmodel_fidelity(workdir / AXMODEL_FIDELITY)
        config = next((workdir / file for file in found.made_from if file.endswith(".json")), None)
        if config and found.build and found.build.profile:
            _check(found.made_from, workdir, AXMODEL_FIDELITY)
            return _trace(AXMODEL_FIDELITY, find_graph(name, workdir), config, found.build.profile, fuse)
    if (workdir / PROBE).is_file():
        probe = read_probe(workdir)
        chosen = probe.chosen
        if chosen and chosen.build and chosen.build.profile:
            _check(probe.made_from, workdir, PROBE)
            graph = find_graph(name, workdir)
            graph = graph.with_name(f"{graph.stem}_probe.onnx")
            if (form := read_spec(load_graph(graph), graph).window_mode) != chosen.form:
                raise InputError(f"{PROBE}: its trace is of the form {chosen.form}, {graph.name} is {form}")
            config = attempt_place(workdir, chosen.form, chosen.recipe) / "config.json"
            return _trace(PROBE, graph, config, chosen.build.profile, fuse)
    return None


def _check(about: Mapping[str, str], workdir: Path, name: str) -> None:
    if changed := stale(about, workdir):
        raise InputError(f"{name}: {changed}")


def _trace(source: str, graph: Path, config: Path, profile: Profile, fuse: Sequence[str]) -> Trace:
    network = Network(graph, fuse)
    return Trace(source, network, read_plan(network, load_config(config)), profile.span, profile.kinds)
