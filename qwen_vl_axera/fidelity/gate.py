"""Step 3: the ONNX graphs in the vision tower's place, numbers first, then text.

Two independent checks. `graph.conformity` says whether a graph is what this converter makes of this checkpoint; it
comes first, since a graph of other nodes may never end or take all memory. The answers, measured by `truth`, say
whether that is transformers' tower.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import EXACT, MODES, ORACLE, PIXELS, GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import token_cosine_distances
from qwen_vl_axera.fidelity.record import THRESHOLDS, Fidelity
from qwen_vl_axera.fidelity.tokens import write_token_errors
from qwen_vl_axera.fidelity.truth import Judge, Truth
from qwen_vl_axera.fidelity.verdict import Run
from qwen_vl_axera.graph.conformity import (
    data_files,
    fresh_model,
    structure_problems,
    value_problems,
    weight_problems,
)
from qwen_vl_axera.graph.files import check_data, load_graph, read_spec, video_stems
from qwen_vl_axera.language.chat import LanguageModel
from qwen_vl_axera.language.record import Answer
from qwen_vl_axera.language.text import Questions, check_text
from qwen_vl_axera.made_from import made_from
from qwen_vl_axera.oracle.record import Capture, read_capture, read_exact, read_oracle, read_pixels


def find_graphs(checkpoint_name: str, workdir: Path) -> list[Path]:
    """The graphs to test: float32 and uint8 input, of one size or of the captured one among several.

    Raises:
        InputError: there are none.
    """
    workdir = Path(workdir)
    stems = video_stems(checkpoint_name, workdir)
    for stem in stems:
        pair = [workdir / f"{stem}{suffix}.onnx" for suffix in ("", "_uint8")]
        if all(path.is_file() for path in pair):
            return pair
    raise InputError(f"{workdir / stems[0]}.onnx or {stems[0]}_uint8.onnx is missing: run export.py CKPT video first")


def capture_other_clip(
    checkpoint: Checkpoint,
    workdir: Path,
    graph: Path,
    video: Sequence[Path],
    num_frames: int | None,
    fps: float | None,
    device: str = "cpu",
) -> Path:
    """Runs another clip through transformers at a graph's size, for a comparison beyond the first clip.

    Returns:
        WORKDIR/check, which holds its capture.
    """
    from qwen_vl_axera.frames.media import load_clip
    from qwen_vl_axera.oracle.run import run_clip

    size = read_spec(load_graph(graph), graph).size
    directory = Path(workdir) / "check"
    directory.mkdir(exist_ok=True)
    run_clip(checkpoint, directory, load_clip(video, num_frames=num_frames, fps=fps), size, device)
    return directory


def open_clip(checkpoint: Checkpoint, workdir: Path, device: str = "cpu") -> tuple[Capture, Judge]:
    """What run_video_by_sec.py left, and a judge of graphs over it.

    Args:
        checkpoint: the model.
        workdir: the work directory.
        device: of transformers' tower, where it must run again.

    Raises:
        InputError: a file is missing or belongs to something else.
    """
    capture = read_capture(workdir)
    if capture.checkpoint != checkpoint.name:
        raise InputError(
            f"{workdir}: the capture was made from {capture.checkpoint}, not from {checkpoint.name}: "
            "run run_video_by_sec.py again"
        )
    pixels, oracle, config = read_pixels(workdir, capture), read_oracle(workdir, capture), checkpoint.config.vision
    truth = Truth(capture.exact_steps, read_exact(workdir, capture), [np.asarray(oracle[capture.exact_steps])])
    layout = checkpoint.tower.layout(config, capture.size)
    ends = np.cumsum([group.patches * layout.num_tokens // layout.num_patches for group in layout.groups])
    windows = np.split(layout.order, ends[:-1])

    def load() -> Any:
        return checkpoint.tower.reference(checkpoint, config, device)

    return capture, Judge(pixels, oracle, truth, capture.grid_thw[1:], windows, load)


def judge_graphs(paths: Sequence[Path], judge: Judge, checkpoint: Checkpoint) -> list[Run]:
    """Says what is wrong with each graph: its structure, its answers to a clip, where their error starts.

    Graphs without a difference in structure or weights are of the same nodes but for the first ones, which take the
    input: one of them runs over every step, another one over one step, and over all only if that step differs.
    """
    runs = [Run(Path(path)) for path in paths]
    specs = check_conformity(runs, checkpoint)
    steps = range(len(judge.pixels))
    whole: dict[GraphSpec, Run] = {}
    for run, spec in zip(runs, specs, strict=True):
        if run.foreign:
            continue
        kind = replace(spec, uint8=False)
        first = None if run.differences else whole.get(kind)
        if first:
            step = judge.truth.steps[:1]
            if np.array_equal(run.run(judge.pixels, judge.oracle, step), first.tokens[step], equal_nan=True):
                run.take(first)
                continue
        run.tokens = run.run(judge.pixels, judge.oracle, steps)
        run.judge(judge)
        if not run.differences:
            whole[kind] = run
    say_where(runs, judge, checkpoint)
    return runs


def check_conformity(runs: Sequence[Run], checkpoint: Checkpoint) -> list[GraphSpec]:
    """Fills in where each graph is not what export.py would write now, and says what each was exported for.

    Graphs share their weights: those of each data file are compared once.
    """
    specs, known = [], {}
    for run in runs:
        model = load_graph(run.path)
        spec = read_spec(model, run.path)
        specs.append(spec)
        fresh = fresh_model(checkpoint, spec)
        run.differences += structure_problems(fresh, model)
        run.foreign = bool(run.differences)
        run.differences += mode_problems(run.path, spec, checkpoint.name)
        if run.foreign:
            continue
        run.differences += value_problems(fresh, model)
        names = set(checkpoint.tower.parameters(checkpoint.config.vision, spec.input))
        weights = (tensor.SerializeToString() for tensor in model.graph.initializer if tensor.name in names)
        key = run.path.parent, spec.input, *weights
        if key not in known:
            made = checkpoint.tower.weights(checkpoint, checkpoint.config.vision, spec.input)
            known[key] = list(weight_problems(made, model, run.path.parent))
        run.differences += known[key]
    return specs


def mode_problems(path: Path, spec: GraphSpec, name: str) -> Iterable[str]:
    """Whether a graph says that it is for videos and its file's name that it is for pictures, or the reverse."""
    for mode in MODES:
        stems = {replace(spec, mode=mode).stem(name, sized=sized) for sized in (False, True)}
        if mode != spec.mode and path.stem in stems:
            yield f"mode is {spec.mode}, expected {mode}"


def say_where(runs: Sequence[Run], judge: Judge, checkpoint: Checkpoint) -> None:
    """Adds to the first graph with a wrong answer in which block the error starts."""
    from qwen_vl_axera.fidelity.blocks import first_wrong_stage

    run = next((run for run in runs if run.suspect), None)
    if run is None:
        return
    step, errors = run.suspect
    layout = checkpoint.tower.layout(checkpoint.config.vision, read_spec(load_graph(run.path), run.path).size)
    patches = np.ascontiguousarray(judge.pixels[step])
    stage = first_wrong_stage(run.path, judge.reference, layout, patches, judge.grid, errors)
    if stage:
        run.problems[0] += f", first seen in {stage}"


def token_maps(runs: Sequence[Run], judge: Judge, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The errors of each token for `fidelity_tokens.npz`, float64 (T, H/28, W/28).

    Args:
        runs: the graphs tested.
        judge: who judged them.
        shape: steps, rows and columns of tokens.

    Returns:
        For each graph FILE/cosine_distance: 1 - cosine with transformers' float32; and FILE/error_ratio: the error
        over transformers' own, both against the exact answer, NaN in steps that have none.
    """
    maps = {}
    for run in runs:
        if run.tokens is None:
            continue
        ratios = np.full(run.tokens.shape[:2], np.nan)
        for truth in (judge.truth, *judge.others.values()):
            ratios[truth.steps] = truth.token_ratios(run.tokens[truth.steps])
        distances = token_cosine_distances(judge.oracle, run.tokens)
        maps[f"{run.path.name}/cosine_distance"] = distances.reshape(shape)
        maps[f"{run.path.name}/error_ratio"] = ratios.reshape(shape)
    return maps


def verify(
    checkpoint: Checkpoint,
    workdir: Path,
    graphs: Sequence[Path],
    report: Path,
    questions: Questions | None = None,
    max_new_tokens: int = 128,
    dtype: str = "bfloat16",
    device: str = "cpu",
) -> Fidelity:
    """Checks graphs against a capture, and writes the errors of their tokens beside the report.

    Args:
        checkpoint: the model.
        workdir: what run_video_by_sec.py left.
        graphs: files to test, the first of them in the text comparison.
        report: where the result will be written.
        questions: for the text comparison; none: numbers only, as where the first graph's are not finite.
        max_new_tokens: per answer.
        dtype: of the language model.
        device: of the language model, and of transformers' tower where it must run again.

    Returns:
        The contents of `fidelity.json`.

    Raises:
        InputError: a file is missing or belongs to something else.
    """
    files = [Path(workdir) / PIXELS, Path(workdir) / ORACLE, Path(workdir) / EXACT, *graphs]
    capture, judge = open_clip(checkpoint, workdir, device)
    for graph in graphs:
        model = load_graph(graph)
        check_data(model, graph)
        files += data_files(model, graph)
    # Before they are used: whatever changes meanwhile makes the record stale.
    about = made_from(dict.fromkeys(files), report.parent)
    runs = judge_graphs(graphs, judge, checkpoint)
    text: list[Answer] = []
    if questions and runs[0].usable:
        model = LanguageModel(questions.directory, dtype, device, questions.tokenizer)
        flat = [features.reshape(-1, features.shape[-1]) for features in (np.asarray(judge.oracle), runs[0].tokens)]
        text = check_text(model, questions.prompts, *flat, max_new_tokens)
    tokens = write_token_errors(report, token_maps(runs, judge, capture.token_grid))
    tested = [run.record(judge.oracle) for run in runs]
    passed = all(graph.holds for graph in tested) and all(answer.equal for answer in text)
    return Fidelity(passed, THRESHOLDS, tested, text, about | made_from([tokens], report.parent))
