"""Step 3: the ONNX graphs in the vision tower's place, numbers first, then text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import PIXELS
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.chat import LanguageModel, Token, build_prompt, first_difference
from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, graph_report
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.files import sha256_file
from qwen_vl_axera.graph.files import load_graph, read_spec, video_stems
from qwen_vl_axera.oracle.record import Capture, read_capture, read_oracle, read_pixels


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


def check_graph(path: Path, pixels: np.ndarray, oracle: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Runs one graph step by step and compares it with transformers' answer.

    Args:
        path: the graph.
        pixels: uint8 (T, S, 392, 3).
        oracle: float32 (T, S/4, out_hidden).

    Returns:
        Its entry in `fidelity.json`, and its tokens, float32 (T·S/4, out_hidden).
    """
    tower = OnnxTower(path)
    steps, outputs = [], []
    with progress.stage(path.name, len(pixels), unit="step") as stage:
        for patches, expected in zip(pixels, oracle, strict=True):
            tokens = tower.step(np.ascontiguousarray(patches))
            if tokens.shape != expected.shape:
                raise InputError(
                    f"{path}: gives tokens of shape {list(tokens.shape)}, transformers {list(expected.shape)}: "
                    "graph and capture are of different checkpoints"
                )
            steps.append(compare(np.asarray(expected), tokens))
            outputs.append(tokens)
            stage.advance()
    return graph_report(path.name, steps, THRESHOLDS), np.concatenate(outputs)


def check_text(
    model: LanguageModel,
    capture: Capture,
    prompts: Sequence[str],
    reference: np.ndarray,
    actual: np.ndarray,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Greedy text from two sets of features, token by token: the `text` entries of `fidelity.json`.

    Args:
        model: the language model.
        capture: the clip.
        prompts: the questions.
        reference: transformers' features, float32 (N, hidden).
        actual: the graph's features, float32 (N, hidden).
        max_new_tokens: per answer.
    """
    entries = []
    for text in prompts:
        prompt = build_prompt(model.tokenizer, model.config, text, capture.grid_thw, capture.second_per_grid_ts)
        answers = [model.generate(prompt, features, max_new_tokens) for features in (reference, actual)]
        entries.append(text_entry(model, text, *answers))
    return entries


def text_entry(model: LanguageModel, prompt: str, reference: list[Token], actual: list[Token]) -> dict[str, Any]:
    """One question's answers; where they differ, the first token that does with both probabilities."""
    entry = {
        "prompt": prompt,
        "reference": model.text(reference),
        "onnx": model.text(actual),
        "tokens": len(reference),
        "equal": True,
        "reference_ids": [token.id for token in reference],
        "onnx_ids": [token.id for token in actual],
        "complete": bool(reference) and reference[-1].id in model.stop_ids,  # not cut at max_new_tokens
    }
    number = first_difference(reference, actual)
    if number is not None:
        entry["equal"] = False
        entry["first_difference"] = {"token": number} | {
            name: {
                "id": answer[number].id,
                "text": model.tokenizer.decode([answer[number].id]),  # a stop token shows, too
                "probability": answer[number].probability,
            }
            for name, answer in (("reference", reference), ("onnx", actual))
            if number < len(answer)
        }
    return entry


def verify(
    checkpoint: Checkpoint,
    workdir: Path,
    graphs: Sequence[Path],
    prompts: Sequence[str] = (),
    max_new_tokens: int = 128,
    dtype: str = "bfloat16",
    device: str = "cpu",
) -> dict[str, Any]:
    """Checks the graphs of a work directory against its capture.

    Args:
        checkpoint: the model.
        workdir: what run_video_by_sec.py left.
        graphs: files to test, the first of them in the text comparison.
        prompts: questions for the text comparison; none: numbers only.
        max_new_tokens: per answer.
        dtype, device: of the language model.

    Returns:
        The content of `fidelity.json`.

    Raises:
        InputError: a file is missing or belongs to something else.
    """
    capture = read_capture(workdir)
    if capture.checkpoint != checkpoint.name:
        raise InputError(
            f"{workdir}: the capture was made from {capture.checkpoint}, not from {checkpoint.name}: "
            "run run_video_by_sec.py again"
        )
    pixels, oracle = read_pixels(workdir, capture), read_oracle(workdir, capture)
    checked = [check_graph(path, pixels, oracle) for path in graphs]
    text: list[dict[str, Any]] = []
    if prompts:
        model = LanguageModel(checkpoint.directory, dtype, device)
        flat = np.asarray(oracle).reshape(-1, oracle.shape[-1])
        text = check_text(model, capture, prompts, flat, checked[0][1], max_new_tokens)
    reports = [report for report, _ in checked]
    passed = all(report["passed"] for report in reports) and all(entry["equal"] for entry in text)
    return {
        "passed": passed,
        "thresholds": THRESHOLDS,
        "graphs": reports,
        "text": text,
        "pixels_sha256": sha256_file(Path(workdir) / PIXELS),  # which clip this is about
    }
