"""The report's verdict: what there is to say about each part, in a line each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen_vl_axera.calibration.archive import NEAR_FRACTION
from qwen_vl_axera.chain.record import StepCost
from qwen_vl_axera.compiled.record import AxmodelFidelity, Build
from qwen_vl_axera.fidelity.record import Fidelity
from qwen_vl_axera.preflight.checks import Outcome
from qwen_vl_axera.report.build import Probed
from qwen_vl_axera.report.parts import Part

ORDER = ("ok", "warning", "failed")
TITLES = {
    "clip": "The clip",
    "fidelity": "Fidelity",
    "maps": "Error of each token",
    "calibration": "Calibration set",
    "preview": "Mixed precision",
    "checks": "Checks before the build",
    "probe": "The probe",
    "axmodel": "The compiled model",
    "steps": "Time and memory",
}
OPTIONAL = ("preview", "probe", "axmodel", "steps")  # absent after the host steps, or after steps by hand

PRECISION = {
    "warning": "an entry of layer_configs took effect in part.",
    "failed": "nodes have another width than an entry of layer_configs asks for.",
}


@dataclass(frozen=True)
class Finding:
    """A line of the verdict: "ok", "warning" or "failed", what was found, and the section that shows it."""

    status: str
    text: str
    anchor: str


def findings(parts: dict[str, Part]) -> list[Finding]:
    """The verdict's lines, failures first."""
    judges = {
        "patches": judge_patches,
        "fidelity": judge_fidelity,
        "maps": judge_maps,
        "calibration": judge_calibration,
        "preview": judge_preview,
        "checks": judge_checks,
        "probe": judge_probe,
        "axmodel": judge_axmodel,
        "steps": judge_steps,
    }
    found = [*missing(parts)]
    for name, judge in judges.items():
        if parts[name].value is not None:
            found += judge(parts[name].value)
    return sorted(found, key=lambda finding: -ORDER.index(finding.status))


def worst(found: list[Finding]) -> str:
    """The status of the whole."""
    return max((finding.status for finding in found), key=ORDER.index)


def missing(parts: dict[str, Part]) -> Iterator[Finding]:
    """The parts that cannot be shown, each once: without clip or fidelity there is no map either."""
    for name, title in TITLES.items():
        part = parts[name]
        said = name == "maps" and (parts["clip"].value is None or parts["fidelity"].value is None)
        if part.value is None and not said and not (part.absent and name in OPTIONAL):
            yield Finding("warning", f"{title}: {part.problem}", name)


def judge_patches(patches: dict[str, Any]) -> Iterator[Finding]:
    if patches["equal"]:
        yield Finding("ok", "The patch image, turned back, equals the source's frames byte by byte.", "patches")
    elif patches["equal"] is None:
        yield Finding("warning", f"The patch image has nothing to be compared with: {patches['problem']}", "patches")
    else:
        yield Finding("failed", "The patch image, turned back, is not what the source holds.", "patches")


def judge_fidelity(fidelity: Fidelity) -> Iterator[Finding]:
    if fidelity.holds:
        count = f"{len(fidelity.text)} answers" if len(fidelity.text) > 1 else "answer"
        text = f", and the {count} agree token by token" if fidelity.text else ""
        yield Finding("ok", f"The ONNX graphs err no more than float32 rounding explains{text}.", "fidelity")
        return
    wrong = [graph for graph in fidelity.graphs if not graph.holds]
    differing = [answer for answer in fidelity.text if not answer.equal]
    for graph in wrong:
        problem = graph.problems[0] if graph.problems else "its figures exceed a limit"
        yield Finding("failed", f"{graph.file}: {problem}.", "fidelity")
    if differing:
        yield Finding("failed", f"{len(differing)} of {len(fidelity.text)} answers differ.", "text")
    if not differing and not wrong:
        what = "did not pass" if fidelity.graphs else "measured no graph"
        yield Finding("failed", f"The fidelity test {what}.", "fidelity")


def judge_maps(maps: dict[str, Any]) -> Iterator[Finding]:
    if maps["above"]:
        yield Finding("failed", f"{maps['above']} tokens of {maps['file']} err too much.", "maps")


def judge_calibration(sheet: dict[str, Any]) -> Iterator[Finding]:
    count = len(sheet["samples"])
    text = f"{count} calibration samples"
    if sheet["unreadable"]:
        yield Finding("failed", f"{sheet['unreadable']} of {text} cannot be used.", "calibration")
    elif sheet["near"] >= NEAR_FRACTION * count > NEAR_FRACTION:
        near = f"{sheet['near']} of {text} are nearly identical to another one"
        yield Finding("warning", f"{near}: add other videos or pictures.", "calibration")
    else:
        yield Finding("ok", f"{text}, each turned back into a frame.", "calibration")


def judge_checks(outcome: Outcome) -> Iterator[Finding]:
    for status, title in (("failed", "Failed before the build"), ("warning", "Warnings before the build")):
        if names := [check.name for check in outcome.checks if check.status == status]:
            yield Finding(status, f"{title}: {', '.join(names)}.", "checks")
    if all(check.status == "ok" for check in outcome.checks):
        yield Finding("ok", f"Every check before the build is fine ({len(outcome.checks)}).", "checks")


def judge_preview(preview: dict[str, Any]) -> Iterator[Finding]:
    mixed, search = preview["mixed"], preview["search"]
    text = preview["text"] or {"changed": {}, "total": 0}
    if mixed and text["changed"].get(mixed.name):
        count = f"{text['changed'][mixed.name]} of {text['total']} answers change"
        yield Finding("warning", f"Simulated: {count} with mixed precision.", "preview")
    if search and not search["reached"]:
        target = f"{search['target']:g}"
        yield Finding(
            "warning",
            f"Simulated: no mix of 8 and 16 bits loses at most {target} more than 8-bit weights alone.",
            "preview",
        )
    elif mixed and mixed.mac8 is not None:
        loss = max(preview["loss"], 0)
        share = f"{mixed.mac8:.1%} of the products at 8 bits"
        yield Finding(
            "ok", f"Simulated: mixed precision has {share} and loses {loss:.4f} of a token’s cosine.", "preview"
        )
    else:
        yield Finding("ok", f"Simulated under {len(preview['settings']) + preview['hidden'] - 1} settings.", "preview")


def judge_probe(probed: Probed) -> Iterator[Finding]:
    probe = probed.found
    if probe.chosen is None:
        yield Finding("failed", "No form of the graph compiles and computes what ONNX Runtime does.", "probe")
        return
    yield from judge_build(probe.chosen.build, "The probe", probe.accepted)
    if probe.holds:
        yield Finding("ok", f"A few blocks compile as {probe.form} and compute what ONNX Runtime does.", "probe")
    elif not probe.chosen.works or probe.chosen.build.precision != "failed":
        yield Finding("failed", "The probe misses a limit.", "probe")
    if probe.reason:
        yield Finding("warning", f"The probe goes on with {probe.config_file}: {probe.reason}.", "probe")
    if probe.form != probed.exported:
        text = f"The graph is exported as {probed.exported}, the probe chose {probe.form}."
        yield Finding("warning", text, "probe")


def judge_axmodel(axmodel: AxmodelFidelity) -> Iterator[Finding]:
    if axmodel.build:
        yield from judge_build(axmodel.build, "The build", axmodel.accepted)
    if axmodel.graphs and all(graph.holds for graph in axmodel.graphs):
        yield Finding("ok", "The compiled model keeps every limit, on every step and token.", "axmodel")
    else:
        yield Finding("failed", "The compiled model misses a limit.", "axmodel")


def judge_build(build: Build | None, name: str, accepted: bool) -> Iterator[Finding]:
    """What a build left; what is not known is no finding."""
    for one in build.findings if build else []:
        if one.status in ("failed", "warning"):
            yield Finding(one.status, f"{name}: {one.part}: {one.detail}", "precision")
    if build and (status := build.precision) in PRECISION:
        yield Finding("warning" if accepted else status, f"{name}: {PRECISION[status]}", "precision")


def judge_steps(steps: list[StepCost]) -> Iterator[Finding]:
    for step in steps:
        if step.returncode:
            yield Finding("failed", f"Step {step.name} ended with exit code {step.returncode}.", "steps")
