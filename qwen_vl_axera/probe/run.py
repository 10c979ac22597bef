"""A slice of the tower through the real compiler: minutes instead of hours until a user knows what to expect.

The forms of the window attention are tried in order, until one compiles and computes what ONNX Runtime does. A recipe
of several precisions goes through beside the one to fall back to, and, where its operator types reach nothing, written
with names. What each build left is read (see `compiled.build`): it tells the rules of this compiler.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.compiled.axmodel import compare_axmodel, with_error
from qwen_vl_axera.compiled.build import read_build
from qwen_vl_axera.compiled.log import kept_log
from qwen_vl_axera.compiled.record import CompiledModel
from qwen_vl_axera.compiler.pulsar2 import build_command, version
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.compiler.tool import Tool, execute
from qwen_vl_axera.contract import ARCHIVE, CALIB, CHIP, PIXELS, GraphSpec, data_file
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.gate import find_graphs
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS
from qwen_vl_axera.files import read_json, write_json
from qwen_vl_axera.graph.export import trace_graph
from qwen_vl_axera.graph.files import load_graph, read_spec, write_graph
from qwen_vl_axera.made_from import made_from
from qwen_vl_axera.oracle.record import versions
from qwen_vl_axera.probe.recipe import by_names, held, named_blocks
from qwen_vl_axera.probe.record import Attempt, Probe, Whole

PLACE = "probe"  # below the work directory: a build's output for each form and recipe
PERFORMANCE = ("--compiler.npu_perf", "true")  # writes the trace
LIMITS = with_error(AXMODEL_THRESHOLDS)
GIVEN, NAMES, FALLBACK = "given", "by names", "fallback"


@dataclass(frozen=True)
class Trial:
    """What all attempts share: see `probe`."""

    checkpoint: Checkpoint
    workdir: Path
    tool: Tool
    chip: str
    extra: Sequence[str]


def probe(
    checkpoint: Checkpoint,
    workdir: Path,
    tool: Tool,
    config: Path,
    forms: Sequence[str],
    chip: str = CHIP,
    every: bool = False,
    opset: int | None = None,
    fallback: Path | None = None,
    extra: Sequence[str] = (),
    accept_precision: bool = False,
) -> Probe:
    """Builds and simulates the probe in one form after the other.

    Args:
        checkpoint: the model.
        workdir: holds the capture, the exported graph and its weights, and the calibration archive.
        tool: the compiler.
        config: the build configuration.
        forms: window modes in the order of trying.
        chip: target hardware.
        every: go on after the first form that works, and take the one with the fewest cycles.
        opset: of the probe; None: the exported graph's.
        fallback: a configuration to go on with where this one does not work or has no effect.
        extra: words for the compiler as they are.
        accept_precision: another width than the one asked for is no reason to stop.

    Raises:
        InputError: a file of an earlier step is missing.
        CheckFailed: the compiler does not tell its version.
    """
    for path in (config, *([fallback] if fallback else [])):
        load_config(path)
    workdir = Path(workdir)
    whole, _ = find_graphs(checkpoint.name, workdir)
    model = load_graph(whole)
    base = read_spec(model, whole)
    files = [workdir / PIXELS, workdir / CALIB / ARCHIVE, workdir / data_file(checkpoint.name)]
    files += [config, *([fallback] if fallback else [])]
    about = made_from(files, workdir)
    base = replace(base, opset=opset or base.opset)
    recipes = {GIVEN: config} | ({FALLBACK: fallback} if fallback else {})
    raw = {name: read_json(path) for name, path in recipes.items()}
    blocks = named_blocks(raw.values(), checkpoint.config.vision.depth)
    compiler = version(tool)  # asked first: one that says nothing costs no build
    trial = Trial(checkpoint, workdir, tool, chip, extra)
    attempts: list[Attempt] = []
    left_out: list[str] = []
    for form in forms:
        spec = replace(base, window_mode=form, probe=True, blocks=blocks)
        graphs = write_probe(checkpoint, workdir, spec)
        nodes = load_graph(graphs[0]).graph
        left_out = held(raw[GIVEN], nodes)[1]

        def attempt_as(recipe: str, path: Path, form: str = form, graphs=graphs, nodes=nodes) -> Attempt:
            attempts.append(attempt(trial, graphs, form, recipe, path, held(read_json(path), nodes)[0]))
            return attempts[-1]

        given = attempt_as(GIVEN, config)
        unsure = given.build and given.build.kept and given.build.precision != "ok"
        if fallback and unsure and (named := by_names(raw[GIVEN], model.graph)):
            path = workdir / f"{Path(config).stem}_by_names.json"
            write_json(path, named)
            attempt_as(NAMES, path)
        if fallback:
            attempt_as(FALLBACK, fallback)
        if any(one.works for one in attempts) and not every:
            break

    best = choose(attempts, accept_precision)
    return Probe(
        best is not None and (accept_precision or best.build.precision != "failed"),
        best and best.form,
        best.config_file if best else str(config),
        best and _reason(attempts, best),
        accept_precision,
        attempts,
        best and Whole(len(model.graph.node), round(best.seconds * len(model.graph.node) / best.nodes, 1)),
        list(dict.fromkeys(left_out)),
        base.metadata(),
        chip,
        raw[GIVEN],
        versions() | {"pulsar2": compiler},
        about,
    )


def choose(attempts: Sequence[Attempt], accept_precision: bool = False) -> Attempt | None:
    """The attempt to go on with: it works; its recipe took effect; the one given before others; the fewest cycles."""
    order = (GIVEN, NAMES, FALLBACK)

    def rank(one: Attempt) -> tuple[bool, bool, int, float]:
        failed = one.build.precision == "failed" and not accept_precision
        # A recipe in names is there for what operator types did not reach.
        better = one.recipe == GIVEN and any(
            two.recipe == NAMES and two.form == one.form and two.works and two.build.precision == "ok"
            for two in attempts
        )
        return failed, better, order.index(one.recipe), one.cycles or float("inf")

    return min((one for one in attempts if one.works), key=rank, default=None)


def _reason(attempts: Sequence[Attempt], best: Attempt) -> str | None:
    """Why the whole is built under another recipe than the one given."""
    given = next(one for one in attempts if one.form == best.form and one.recipe == GIVEN)
    if best.recipe == GIVEN:
        return None
    if given.compared is None:
        return f"{given.config_file} does not build: {given.error}"
    if not given.compared.holds:
        lowest = min(step.min_token_cosine for step in given.compared.steps)
        return (
            f"under {given.config_file} the simulator's lowest cosine of a token is {lowest:.5f}: it breaks the model"
        )
    if not given.works:
        return f"{given.config_file} is not built as one subgraph"
    return f"{given.config_file} took effect in part only, or not at all"


def attempt(
    trial: Trial, graphs: tuple[Path, Path], form: str, recipe: str, config: Path, part: dict[str, Any]
) -> Attempt:
    """Builds and simulates the probe under one recipe; what goes wrong is part of the answer.

    Args:
        trial: what all attempts share.
        graphs: from `write_probe`.
        form: of the window attention.
        recipe: one of GIVEN, NAMES, FALLBACK.
        config: the recipe for the whole graph.
        part: of it, that the probe holds.
    """
    graph, uint8 = graphs
    place = attempt_place(trial.workdir, form, recipe)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "config.json", part)
    model = load_graph(graph)
    extra = [*PERFORMANCE, *trial.extra]
    command = build_command(
        trial.tool, graph, place / "config.json", trial.workdir, place, chip=trial.chip, extra=extra
    )
    compared = build = error = None
    start = time.monotonic()
    try:
        with kept_log(place) as lines:
            execute(command, lines.append)
        seconds = time.monotonic() - start
        build = read_build(place, load_config(place / "config.json"), model)
        axmodel = place / f"{graph.stem}.axmodel"
        steps = compare_axmodel(axmodel, uint8, trial.workdir, place / "check")
        compared = CompiledModel(axmodel.name, LIMITS, "the manual's own limit for a quantised model", steps)
    except (CheckFailed, InputError) as failure:
        error = str(failure)
        seconds = time.monotonic() - start if build is None else seconds
    return Attempt(form, recipe, str(config), len(model.graph.node), round(seconds, 1), compared, build, error)


def attempt_place(workdir: Path, form: str, recipe: str) -> Path:
    """Where an attempt's build leaves its output, and its `config.json`."""
    return workdir / PLACE / f"{form}-{recipe.replace(' ', '-')}"


def write_probe(checkpoint: Checkpoint, workdir: Path, spec: GraphSpec) -> tuple[Path, Path]:
    """The probe's two graphs over the weights that export.py wrote.

    Raises:
        InputError: those are missing or of another model.
    """
    paths = []
    for one in (spec, replace(spec, uint8=True)):
        model, data = trace_graph(checkpoint, one)
        weights = Path(workdir) / data_file(checkpoint.name)
        if not weights.is_file() or weights.stat().st_size != data.size:
            raise InputError(f"{weights}: expected the {data.size} bytes that export.py writes; run it again")
        paths.append(Path(workdir) / f"{one.stem(checkpoint.name)}.onnx")
        write_graph(model, paths[-1])
    return paths[0], paths[1]


def verdict(report: Probe) -> str:
    """The report for the screen: a row for each attempt, then what to do."""
    rows = [("form", "recipe", "compiles", "lowest token", "worst error", "seconds", "cycles", "")]
    for one in report.attempts:
        steps = one.compared.steps if one.compared else []
        lowest = f"{min(step.min_token_cosine for step in steps):.5f}" if steps else "-"
        error = f"{max(step.token_error for step in steps):.1e}" if steps else "-"
        cycles = f"{one.cycles:,}" if one.cycles else "-"
        built = "yes" if one.build else "no"
        rows.append(
            (one.form, one.recipe, built, lowest, error, str(one.seconds), cycles, "ok" if one.works else "FAILED")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{one.form}, {one.recipe}: {one.error}" for one in report.attempts if one.error]
    for one in report.attempts if report.chosen is None else [report.chosen]:
        lines += one.build.lines() if one.build else []
    if report.left_out:
        lines.append(f"not tried: the probe does not hold {len(report.left_out)} layers of the recipe")
    if report.chosen is None:
        return "\n".join([*lines, "no form works: read the compiler's last lines above, and send us probe.json"])
    if report.reason:
        lines.append(f"go on with {report.config_file}: {report.reason}")
    if not report.passed:
        lines.append("--accept-precision goes on with a precision that is not the one asked for")
    minutes = report.whole.seconds / 60
    lines.append(f"build the whole with --window-mode {report.form}; about {minutes:.0f} minutes (an inference)")
    return "\n".join(lines)
