"""The preview: a calibrated tower under several configurations, what they lose, and what the activations look like."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.compiler.schema import BuildConfig, load_config
from qwen_vl_axera.contract import ARCHIVE, CALIB, MIXED_CONFIG, PIXELS, QUANTIZATION, data_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json, write_json, write_record
from qwen_vl_axera.graph.files import load_graph, read_spec
from qwen_vl_axera.made_from import made_from
from qwen_vl_axera.preflight.plan import CONFIGS, find_graph
from qwen_vl_axera.quantization import samples as sampling
from qwen_vl_axera.quantization.census import Census, findings
from qwen_vl_axera.quantization.estimate import Trace, basis, estimate, parts
from qwen_vl_axera.quantization.execution import WeightStore
from qwen_vl_axera.quantization.fusion import FUSIONS
from qwen_vl_axera.quantization.losses import loss_over_clips
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.observers import calibrate
from qwen_vl_axera.quantization.plan import Plan, read_plan, uniform
from qwen_vl_axera.quantization.record import MIXED, Quantization
from qwen_vl_axera.quantization.search import PROGRESS_FILE, TARGET_LOSS, mixed_layer_configs, mixed_plan, search
from qwen_vl_axera.quantization.simulation import Simulation

LEAST_JUDGES = 4  # clips below which an interval says little
MOST_STEPS = 16  # evaluated at most: every step's residual stream is kept, 80 MB at 308x308

# What the simulation takes for granted, and how it is known: M measured on a card, C seen in compiled models, D the
# vendor's manual, inf inferred. docs/quantization.md has the sources.
RULES = 2  # raised when the arithmetic changes: what an interrupted search has found is of one set of rules
# Grades: C confirmed by public reports of real builds (those of scales by the figures of 95, tests/quantization/
# oracles.json), D the manual, inf an inference.
ASSUMPTIONS = (
    ("C", "ranges are taken with weights already in S8, activations in float; those of 16-bit constants: inf"),
    ("C", "activations per tensor, MinMax widened to include 0; U8 step range/255, U16 range/65535, in float32"),
    ("C", "both operands of a MatMul of activations symmetric: S8 max/127.5, S16 max/32767.5"),
    ("inf", "weights S8, symmetric, per output channel, max|w|/127.5, half to even (seen for MatMul, not for Gemm)"),
    ("C", "a tensor has the type of the operator that consumes it, and gets a copy for each type"),
    ("C", "Reshape, Transpose, Slice and Gather share one scale with what they move"),
    ("inf", "so do Split and Concat; a Concat has a type of its own"),
    ("D", "biases are float (conv_bias_data_type FP32)"),
    ("C", "nonlinear functions are tables and lose nothing at 8 bits; at 16: inf"),
    ("inf", "the output leaves in the type of the last Gemm, which computes it; nothing is moved behind it"),
    ("inf", "factors of a Mul (rotary cosines and sines) are quantised in its type over their own values"),
    ("inf", "smooth quantisation, which the vendor's recipe turns on, is not simulated"),
)
FUSED = {
    "norm": ("an RMSNorm is one operator; op_types do not reach its input", "the nodes of an RMSNorm are quantised"),
    "activation": ("SiLU and GELU are one operator each", "the nodes of SiLU and GELU are quantised"),
}


@dataclass(frozen=True)
class Request:
    """What to preview.

    Attributes:
        checkpoint: the model.
        workdir: what the steps before left.
        configs: build configurations besides the vendor's recipe.
        evaluate: clips to judge on; none: the captured one.
        unfused: which of FUSIONS the compiler is assumed not to make.
        search: whether to look for the best mix.
        target_loss: of the search.
        trace: of a build, for the estimate of time; None: public reports.
        prompts: questions to answer with quantised features; none: numbers only.
        max_new_tokens, dtype, device: of the answers.
    """

    checkpoint: Checkpoint
    workdir: Path
    configs: Sequence[Path] = ()
    evaluate: Sequence[Path] = ()
    unfused: Sequence[str] = ()
    search: bool = False
    target_loss: float = TARGET_LOSS
    trace: Trace | None = None
    prompts: Sequence[str] = field(default=())
    max_new_tokens: int = 128
    dtype: str = "bfloat16"
    device: str = "cpu"


def preview(request: Request) -> dict[str, Any]:
    """Simulates; writes `quantization.json`, and `config_video_mixed.json` after a search.

    Raises:
        InputError: something is missing, does not fit, or is evaluated on what it was calibrated on.
    """
    workdir = request.workdir
    path = find_graph(request.checkpoint.name, workdir)
    spec = read_spec(load_graph(path), path)
    network = Network(path, [name for name in FUSIONS if name not in request.unfused])
    recipe = load_config(CONFIGS[spec.input])
    # Read first: a typing error should not cost a calibration.
    plans = _plans(network, recipe, request.configs)
    if (workdir / MIXED_CONFIG).is_file() and not request.search:  # of an earlier search
        found = load_config(workdir / MIXED_CONFIG)
        plans[MIXED] = _layer_configs(found), read_plan(network, found)
    samples = sampling.calibration_samples(recipe, workdir, spec.input, network.shapes[network.input])
    grid = request.checkpoint.config.vision.grid(spec.size)
    clips = sampling.evaluation_clips(request.evaluate, workdir, spec.size, grid)
    notes = sampling.check_disjoint(samples, clips)

    calibrated, evaluated = Census(network), Census(network)
    weights = WeightStore(network)
    ranges = calibrate(network, samples, calibrated.observe, weights)
    steps = [step for clip in clips for step in clip.graph_inputs(spec.input)]
    clip_of = [number for number, clip in enumerate(clips) for _ in clip.pixels]
    taken = thinned([len(clip.pixels) for clip in clips])
    if len(taken) < len(steps):
        notes.append(f"evaluated on {len(taken)} of {len(steps)} steps, evenly spaced in each clip")
        steps, clip_of = [steps[index] for index in taken], [clip_of[index] for index in taken]
    simulation = Simulation(network, ranges, steps, evaluated.observe, weights)

    floor, floor_result = simulation.setting("weights alone in S8", None, None)
    files = [path, workdir / data_file(request.checkpoint.name), samples.path]
    about = made_from([*files, *([] if request.evaluate else [workdir / PIXELS])], workdir)
    report: dict[str, Any] = {
        "made_from": about,
        "assumptions": assumptions(request.unfused),
        "graph": path.name,
        "calibration": {"archive": f"{CALIB}/{ARCHIVE}", "samples": len(samples)},
        "evaluation": sampling.describe(clips) | {"simulated_steps": len(steps)},
        "floor": floor,
        "time": basis(network, request.trace),
        "settings": [],
    }
    if request.search:
        # Every other clip chooses, the others judge: a mix flatters itself on the frames that it was chosen on.
        judges = [number for number in range(len(clips)) if number % 2 and number in clip_of]
        if judges:
            sampling.check_apart([clip for number, clip in enumerate(clips) if not number % 2], clips[1::2])
        choosing = [step for step, clip in enumerate(clip_of) if clip not in judges]
        graph, _, archive = list(about.values())[: len(files)]
        fingerprint = _fingerprint(path, graph, archive, [steps[step] for step in choosing], request.unfused)
        saved = workdir / PROGRESS_FILE
        outcome = search(simulation, floor_result.tokens, request.target_loss, saved, fingerprint, choosing)
        if len(judges) < LEAST_JUDGES:
            missing = 2 * (LEAST_JUDGES - len(judges)) - len(clips) % 2
            told = f"judged on {len(judges)} clips" if judges else "judged on the very frames that chose it"
            notes.append(f"the mix is {told}: give {missing} clips more with --evaluate to know how it does on others")
        if not outcome.reached:
            notes.append(
                f"no mix stays within {request.target_loss:g} of the floor: all linear layers are back at 16 bits"
            )
        write_json(workdir / MIXED_CONFIG, mixed_config(CONFIGS[spec.input], outcome.layer_configs))
        # Read again: what is written is what is simulated, with what there is to note.
        plans[MIXED] = (outcome.layer_configs, read_plan(network, load_config(workdir / MIXED_CONFIG)))
        report["search"] = {
            "target_loss": request.target_loss,
            "reached": outcome.reached,
            "wide": outcome.wide,
            "sensitivity": outcome.sensitivity,
            "macs": sum(map(network.macs, network.operators)),
        }
    features = {}
    for name, (layer_configs, plan) in plans.items():
        entry, result = simulation.setting(name, plan, layer_configs)
        relative = estimate(network, plan, request.trace)
        taken = {part: 1e3 * time for part, time in parts(network, plan, request.trace)[1].items()}
        entry |= {"relative_time": [relative.low, relative.high], "time_parts": taken}
        report["settings"].append(entry)
        features[name] = result.tokens
        if request.search and name == MIXED and judges:
            by_clip = [[step for step, clip in enumerate(clip_of) if clip == number] for number in judges]
            judged = loss_over_clips(simulation.reference, floor_result.tokens, result.tokens, by_clip)
            report["search"]["judged"] = {
                "clips": [clips[number].name for number in judges],
                "steps": sum(map(len, by_clip)),
                "loss": judged.value,
                "low": judged.low,
                "high": judged.high,
            }
            if outcome.reached and judged.high > request.target_loss:
                report["search"]["reached"] = False
                notes.append(
                    f"the mix holds on the clips that chose it, and may lose {judged.high:.4f} on others, more than "
                    f"{request.target_loss:g}; search again with more clips, or with a smaller --target-loss"
                )
    report["census"] = findings(evaluated, calibrated)
    report["notes"] = notes
    if request.prompts:
        from qwen_vl_axera.quantization.text import answers

        if len(simulation.steps) < sum(len(clip.pixels) for clip in clips):
            raise InputError(f"--generate needs every step: give clips of at most {MOST_STEPS} steps together")
        report["text"] = answers(request, clips, {"float": simulation.reference, **features})
    write_record(workdir / QUANTIZATION, Quantization, report)
    return report


def _plans(
    network: Network, recipe: BuildConfig, configs: Sequence[Path]
) -> dict[str, tuple[list[dict[str, Any]], Plan]]:
    """Name -> layer_configs and plan: the vendor's recipe, those given, and two to compare with."""
    plans = {"vendor": (_layer_configs(recipe), read_plan(network, recipe))}
    for path in configs:
        config = load_config(path)
        if path.stem in plans:
            raise InputError(f"--config {path}: there is a setting called {path.stem!r} already; rename the file")
        try:
            plans[path.stem] = (_layer_configs(config), read_plan(network, config))
        except InputError as error:
            raise InputError(f"--config {path}: {error}") from None
    plans["linear layers at 8 bits"] = (mixed_layer_configs([]), mixed_plan(network, []))
    plans["all at 8 bits"] = ([], uniform(network, "U8"))
    return plans


def _layer_configs(config: BuildConfig) -> list[dict[str, Any]]:
    return [entry.model_dump(exclude_unset=True) for entry in config.quant.layer_configs]


def mixed_config(recipe: Path, layer_configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The vendor's recipe with other layer_configs, and without smooth quantisation, which is not simulated."""
    config = read_json(recipe)
    config["quant"] |= {"layer_configs": layer_configs, "enable_smooth_quant": False}
    return config


def thinned(lengths: Sequence[int], most: int = MOST_STEPS) -> list[int]:
    """Which of the clips' steps are simulated: evenly spaced ones of each clip, so that every clip keeps its part.

    Args:
        lengths: steps of each clip.
        most: how many in all.

    Returns:
        Numbers of steps, counted through all clips, rising.
    """
    if sum(lengths) <= most:
        return list(range(sum(lengths)))
    each, starts = max(1, most // len(lengths)), np.cumsum([0, *lengths])
    taken = []
    for start, length in list(zip(starts, lengths, strict=False))[:most]:  # with very many clips, the first ones
        count = min(length, each)
        taken += [int(start) + index * length // count for index in range(count)]
    return taken


def assumptions(unfused: Sequence[str]) -> list[dict[str, str]]:
    """What the simulation takes for granted, with how it is known."""
    rules = [{"grade": grade, "rule": rule} for grade, rule in ASSUMPTIONS]
    return rules + [{"grade": "inf", "rule": FUSED[name][name in unfused]} for name in FUSIONS]


def _fingerprint(path: Path, graph: str, archive: str, steps: Sequence, unfused: Sequence[str]) -> str:
    """Of everything that a layer's damage depends on; `graph` and `archive` are hashes, `path` is the graph's."""
    digest = hashlib.sha256(f"{RULES} {graph} {archive} {sorted(unfused)}".encode())
    for data in sorted(path.parent.glob("*.onnx.data")):
        digest.update(f"{data.name} {data.stat().st_size} {data.stat().st_mtime_ns}".encode())
    for step in steps:
        digest.update(step.tobytes())
    return digest.hexdigest()
