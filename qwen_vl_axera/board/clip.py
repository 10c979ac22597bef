"""`OUT/check/`: the captured frames and what the host said about them, for check_board.py to ask the board the same."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocess import TEMPORAL_PATCH_SIZE, unpatchify
from qwen_vl_axera.board.settings import VisionModel
from qwen_vl_axera.board.timing import late_clip
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import CAPTURE, FIDELITY, KV_CACHE_LEN, PIXELS, PROMPTS
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.record import read_fidelity
from qwen_vl_axera.files import atomic_write, write_json
from qwen_vl_axera.language.record import Answer
from qwen_vl_axera.oracle.record import Capture, read_pixels
from qwen_vl_axera.swap import Staging

CHECK = "check"
RECORD, RECORD_FORMAT = "check.json", 1  # check_board.py reads it
MISPLACED = ("Query: ", "Document: ")
NO_ANSWERS = "run test_onnx_video_by_sec.py CKPT --generate, then package_model.py again"


@dataclass(frozen=True)
class TravellingClip:
    """What was written, as paths under OUT, and what to warn of."""

    files: list[str]
    warnings: list[str]


def write_clip(
    checkpoint: Checkpoint, staging: Staging, workdir: Path, capture: Capture | None, models: list[VisionModel]
) -> TravellingClip:
    """Writes `OUT/check/`: the frames as PNG files that sort, and `check.json`.

    Args:
        checkpoint: the model.
        staging: of OUT.
        workdir: holds pixels.npy, and fidelity.json where step 3 has run.
        capture: the clip; None: there is none, and nothing is written.
        models: those of the package; the clip belongs to the one of its size.

    Raises:
        InputError: pixels.npy or fidelity.json is unusable.
    """
    before = staging.target / CHECK
    if reason := _why_not(checkpoint, workdir, capture, models):
        left = f"; {CHECK}/ is left from an earlier run" if (before / RECORD).is_file() else ""
        return TravellingClip([], [f"no frames for check_board.py: {reason}{left}"])
    folder = staging.directory / CHECK
    folder.mkdir()
    names = _write_frames(folder, workdir, capture)
    there = {path.name for path in before.iterdir() if path.is_file()} if before.is_dir() else set()
    others = sorted(there - {*names, RECORD})
    stale = [name for name in others if staging.is_ours(f"{CHECK}/{name}")]  # of a longer clip, from an earlier run
    staging.gone |= {f"{CHECK}/{name}" for name in stale}
    questions, warnings = _questions(workdir, capture)
    record = {
        "format": RECORD_FORMAT,
        "checkpoint": checkpoint.name,
        "settings": _settings(capture),
        "size": list(capture.size),
        "sample_fps": capture.sample_fps,
        "frames": names,
        "questions": questions,
    }
    write_json(folder / RECORD, record)
    late = late_clip(capture, checkpoint.config.vision.tokens_per_second, KV_CACHE_LEN)
    foreign = [name for name in others if name not in stale]
    if foreign:
        warnings.append(f"{CHECK}/{foreign[0]} is none of ours: the board would take a picture for a frame")
    warnings += [late] if late else []
    return TravellingClip([f"{CHECK}/{name}" for name in [*names, RECORD]], warnings)


def _why_not(checkpoint: Checkpoint, workdir: Path, capture: Capture | None, models: list[VisionModel]) -> str | None:
    if capture is None or not (workdir / PIXELS).is_file():
        return f"no {PIXELS if capture else CAPTURE} in the work directory"
    if capture.checkpoint != checkpoint.name:
        return f"the capture was made from {capture.checkpoint}"
    if _settings(capture) not in {model.directory for model in models}:
        return f"no vision model of the captured size, {_settings(capture)}"
    return None


def _settings(capture: Capture) -> str:
    """The directory of settings that the clip is for."""
    return f"video{capture.size[0]}x{capture.size[1]}"


def _write_frames(folder: Path, workdir: Path, capture: Capture) -> list[str]:
    """The frames as the model sees them, already of its size, so that the board has nothing to resize."""
    pixels = read_pixels(workdir, capture)
    count = len(capture.indices)
    if -(-count // TEMPORAL_PATCH_SIZE) != len(pixels):
        raise InputError(f"{workdir / CAPTURE}: {count} frames for {len(pixels)} steps; run run_video_by_sec.py again")
    digits = max(4, len(str(count - 1)))
    names = [f"{number:0{digits}}.png" for number in range(count)]
    for number, name in enumerate(names):
        if number % TEMPORAL_PATCH_SIZE == 0:
            pair = unpatchify(np.ascontiguousarray(pixels[number // TEMPORAL_PATCH_SIZE][None]), *capture.size)
        buffer = io.BytesIO()
        Image.fromarray(pair[number % TEMPORAL_PATCH_SIZE]).save(buffer, "PNG")
        with atomic_write(folder / name) as file:
            file.write(buffer.getbuffer())
    return names


def _questions(workdir: Path, capture: Capture) -> tuple[list[dict[str, Any]], list[str]]:
    """The questions with transformers' and the graph's answers, as far as fidelity.json has them of this clip."""
    path = workdir / FIDELITY
    unanswered = [{"prompt": text, "complete": False, "transformers": None, "onnx": None} for text in PROMPTS]
    if not path.is_file():
        return unanswered, [f"check_board.py will have no answers to compare with: no {FIDELITY}; {NO_ANSWERS}"]
    fidelity = read_fidelity(path)
    if not fidelity.text:
        return unanswered, [f"check_board.py will have no answers to compare with; {NO_ANSWERS}"]
    if problem := fidelity.stale(workdir, capture):
        return unanswered, [f"{FIDELITY} is about other files: {problem}; {NO_ANSWERS}"]
    warnings = [] if fidelity.holds else [f"{FIDELITY} says that the graph failed: the board will hardly do better"]
    warnings += [
        f"the runtime puts a question that begins as {answer.prompt[:20]!r} before the frames"
        for answer in fidelity.text
        if answer.prompt.startswith(MISPLACED)
    ]
    return [_question(answer) for answer in fidelity.text], warnings


def _question(answer: Answer) -> dict[str, Any]:
    return {
        "prompt": answer.prompt,
        "complete": answer.complete,
        "transformers": {"text": answer.reference, "token_ids": answer.reference_ids},
        "onnx": {"text": answer.onnx, "token_ids": answer.onnx_ids},
    }
