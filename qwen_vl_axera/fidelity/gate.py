"""Step 3: the ONNX graphs in the vision tower's place, numbers first, then text.

The numbers are two independent checks. `graph.conformity` says whether a graph is what this converter makes of this
checkpoint; the answers, measured by `truth`, say whether that is transformers' tower.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import PIXELS
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import token_cosine_distances
from qwen_vl_axera.fidelity.truth import THRESHOLDS, Judge, Truth
from qwen_vl_axera.fidelity.verdict import Graph, judge_answers, run_graph
from qwen_vl_axera.files import sha256_file
from qwen_vl_axera.graph.conformity import structure_problems, weight_problems
from qwen_vl_axera.graph.files import load_graph, read_spec, video_stems
from qwen_vl_axera.language.chat import LanguageModel
from qwen_vl_axera.language.text import Questions, check_text
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

    def load() -> Any:
        return checkpoint.tower.reference(checkpoint, config, device)

    return capture, Judge(pixels, oracle, truth, capture.grid_thw[1:], load)


def judge_graphs(paths: Sequence[Path], judge: Judge, checkpoint: Checkpoint) -> list[Graph]:
    """Runs graphs over a clip and says what is wrong with each: its answers, where that starts, its structure."""
    graphs = [run_graph(path, judge.pixels, judge.oracle) for path in paths]
    for graph in graphs:
        judge_answers(graph, judge)
    say_where(graphs, judge, checkpoint)
    check_conformity(graphs, checkpoint)
    return graphs


def check_conformity(graphs: Sequence[Graph], checkpoint: Checkpoint) -> None:
    """Adds to each graph's problems where it is not what export.py would write now.

    Graphs share their weights: those of each data file are compared once.
    """
    known: dict[tuple, list[str]] = {}
    for graph in graphs:
        model = load_graph(graph.path)
        spec = read_spec(model, graph.path)
        graph.problems += structure_problems(checkpoint, model, spec)
        names = set(checkpoint.tower.parameters(checkpoint.config.vision, spec.input))
        weights = (tensor.SerializeToString() for tensor in model.graph.initializer if tensor.name in names)
        key = graph.path.parent, spec.input, *weights
        if key not in known:
            made = checkpoint.tower.weights(checkpoint, checkpoint.config.vision, spec.input)
            known[key] = list(weight_problems(made, model, graph.path.parent))
        graph.problems += known[key]


def say_where(graphs: Sequence[Graph], judge: Judge, checkpoint: Checkpoint) -> None:
    """Adds to the first graph with a wrong answer in which block the error starts."""
    from qwen_vl_axera.fidelity.blocks import first_wrong_stage

    graph = next((graph for graph in graphs if graph.suspect), None)
    if graph is None:
        return
    step, errors = graph.suspect
    layout = checkpoint.tower.layout(checkpoint.config.vision, read_spec(load_graph(graph.path), graph.path).size)
    patches = np.ascontiguousarray(judge.pixels[step])
    stage = first_wrong_stage(graph.path, judge.reference, layout, patches, judge.grid, errors)
    if stage:
        graph.problems[0] += f", first seen in {stage}"


def token_maps(graphs: Sequence[Graph], judge: Judge, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The errors of each token for `fidelity_tokens.npz`, float64 (T, H/28, W/28).

    Args:
        graphs: those tested.
        judge: who judged them.
        shape: steps, rows and columns of tokens.

    Returns:
        For each graph FILE/cosine_distance: 1 - cosine with transformers' float32; and FILE/error_ratio: the error
        over transformers' own, both against the exact answer, NaN in steps that have none.
    """
    maps = {}
    for graph in graphs:
        ratios = np.full(graph.tokens.shape[:2], np.nan)
        for truth in (judge.truth, *judge.others.values()):
            ratios[truth.steps] = truth.token_ratios(graph.tokens[truth.steps])
        distances = token_cosine_distances(judge.oracle, graph.tokens)
        maps[f"{graph.path.name}/cosine_distance"] = distances.reshape(shape)
        maps[f"{graph.path.name}/error_ratio"] = ratios.reshape(shape)
    return maps


def verify(
    checkpoint: Checkpoint,
    workdir: Path,
    graphs: Sequence[Path],
    questions: Questions | None = None,
    max_new_tokens: int = 128,
    dtype: str = "bfloat16",
    device: str = "cpu",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Checks the graphs of a work directory against its capture.

    Args:
        checkpoint: the model.
        workdir: what run_video_by_sec.py left.
        graphs: files to test, the first of them in the text comparison.
        questions: for the text comparison; none: numbers only, as where the first graph's are not finite.
        max_new_tokens: per answer.
        dtype: of the language model.
        device: of the language model, and of transformers' tower where it must run again.

    Returns:
        The contents of `fidelity.json` and of `fidelity_tokens.npz`.

    Raises:
        InputError: a file is missing or belongs to something else.
    """
    capture, judge = open_clip(checkpoint, workdir, device)
    tested = judge_graphs(graphs, judge, checkpoint)
    text: list[dict[str, Any]] = []
    if questions and np.isfinite(tested[0].tokens).all():
        model = LanguageModel(checkpoint.directory, dtype, device, questions.tokenizer)
        flat = [features.reshape(-1, features.shape[-1]) for features in (np.asarray(judge.oracle), tested[0].tokens)]
        text = check_text(model, questions.prompts, *flat, max_new_tokens)
    reports = [graph.report() for graph in tested]
    passed = all(report["passed"] for report in reports) and all(entry["equal"] for entry in text)
    report = {"passed": passed, "thresholds": THRESHOLDS, "graphs": reports, "text": text}
    report |= {"pixels_sha256": sha256_file(Path(workdir) / PIXELS)}  # which clip this is about
    return report, token_maps(tested, judge, capture.token_grid)
