"""The two parts of the report that take computing: the error map, and the calibration set turned back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocess import CHANNELS, FACTOR, MEAN, PATCH_PIXELS, STD, patch_image_to_picture, unpatchify
from qwen_vl_axera.contract import CALIB, CALIB_MANIFEST
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import THRESHOLDS, token_cosines
from qwen_vl_axera.oracle.record import Capture, read_oracle
from qwen_vl_axera.report.inputs import Fidelity, GraphFidelity, Manifest, Part, Sample, read_part
from qwen_vl_axera.report.pictures import CONTACT, THUMBNAIL, Scale, data_uri, error_map, shrink

MOST_MAPS = 16  # steps shown; of more, those with the worst tokens
MOST_SAMPLES = 96  # shown
NOT_FINITE = 2.0  # the largest cosine error there is, for tokens that hold NaN or infinities
# The same graph on the same clip gives the same cosines up to the threading of sums.
SAME_RUN = 1e-6


def error_maps(
    name: str,
    workdir: Path,
    capture: Capture,
    pixels: np.ndarray,
    fidelity: Fidelity | None,
    command: str,
) -> Part[dict[str, Any]]:
    """Runs a graph once more and draws where its tokens differ from transformers'.

    Args:
        name: the checkpoint's.
        workdir: holds the graphs and vit_out.npy.
        capture: the clip.
        pixels: uint8 (T, S, 392, 3).
        fidelity: what was measured before; it names the graphs, the one with uint8 input is taken first.
        command: measures again.
    """
    from qwen_vl_axera.fidelity.gate import find_graphs

    try:
        measured = {graph.file: graph for graph in fidelity.graphs} if fidelity else {}
        found = [workdir / file for file in measured if Path(file).name == file and (workdir / file).is_file()]
        path = max(found or find_graphs(name, workdir), key=lambda path: path.stem.endswith("_uint8"))
        errors = token_errors(path, pixels, read_oracle(workdir, capture), capture)
    except InputError as error:
        return Part(None, str(error), command)

    graph = measured.get(path.name)
    limit = 1 - (graph.thresholds if graph else THRESHOLDS).get("min_token_cosine", THRESHOLDS["min_token_cosine"])
    scale = Scale.of(errors, limit)
    worst_first = np.argsort(-errors.max((1, 2)), kind="stable")
    steps = sorted(int(step) for step in worst_first[:MOST_MAPS])
    return Part(
        {
            "file": path.name,
            "steps": [_map(step, capture, pixels, errors[step], scale) for step in steps],
            "total": len(errors),
            "grid": errors.shape[1:],
            "above": int((errors > limit).sum()),
            "stale": _stale(path.name, graph, errors),
            "limit": limit,
            "bar": data_uri(scale.bar(), lossless=True),
            "ticks": scale.ticks(),
            "mark": scale.position(limit),
        }
    )


def token_errors(path: Path, pixels: np.ndarray, oracle: np.ndarray, capture: Capture) -> np.ndarray:
    """1 - cosine of every token: float64 (T, H/28, W/28).

    Raises:
        InputError: the graph does not load, or is of another size or checkpoint.
    """
    from qwen_vl_axera.fidelity.runtime import OnnxTower

    tower = OnnxTower(path)
    errors = []
    for patches, expected in zip(pixels, oracle, strict=True):
        tokens = tower.step(np.ascontiguousarray(patches))
        if tokens.shape != expected.shape:
            raise InputError(f"{path.name} gives tokens of shape {tokens.shape}, expected {expected.shape}.")
        with np.errstate(all="ignore"):  # NaN and infinities are counted below
            cosines = token_cosines(np.asarray(expected, np.float64), tokens.astype(np.float64))
        errors.append(np.where(np.isfinite(cosines), 1 - cosines, NOT_FINITE))
    rows, columns = (side // FACTOR for side in capture.size)
    return np.maximum(np.stack(errors), 0).reshape(-1, rows, columns)


def _map(step: int, capture: Capture, pixels: np.ndarray, errors: np.ndarray, scale: Scale) -> dict[str, Any]:
    frame = unpatchify(np.asarray(pixels[step : step + 1]), *capture.size)[0]
    row, column = (int(n) for n in np.unravel_index(np.argmax(errors), errors.shape))
    return {
        "uri": data_uri(shrink(error_map(frame, errors, scale), THUMBNAIL)),
        "step": step,
        "worst": float(errors.max()),
        "median": float(np.median(errors)),
        "row": row,
        "column": column,
        "above": int((errors > scale.threshold).sum()),
    }


def _stale(file: str, graph: GraphFidelity | None, errors: np.ndarray) -> str:
    """Why the measured figures are not those of this graph and clip; empty when they are."""
    if graph is None:
        return ""
    if len(graph.steps) != len(errors):
        return f"fidelity.json has {len(graph.steps)} steps of {file}, the clip has {len(errors)}."
    lowest = 1 - errors.max((1, 2))
    if all(abs(step.min_token_cosine - value) <= SAME_RUN for step, value in zip(graph.steps, lowest, strict=True)):
        return ""
    return f"{file} now gives other cosines than fidelity.json: the graph or the clip has changed since."


def calibration_sheet(workdir: Path, command: str) -> Part[dict[str, Any]]:
    """The calibration set, every sample turned back into the first of its frames."""
    directory = workdir / CALIB
    part = read_part(directory / CALIB_MANIFEST, Manifest, command, f"{CALIB}/{CALIB_MANIFEST}")
    if part.value is None:
        return part
    samples = list(_samples(directory, part.value))
    return Part(
        {
            "format": part.value.format,
            "size": part.value.size,
            "near": part.value.nearly_identical,
            "samples": samples,
            "unreadable": sum(bool(sample["problem"]) for sample in samples),
            "most": MOST_SAMPLES,
        }
    )


def _samples(directory: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for number, sample in enumerate(manifest.samples):
        short = Path(sample.source[0].replace("\\", "/")).name if sample.source else sample.file
        entry = {
            "short": short,
            "file": sample.file,
            "source": ", ".join(dict.fromkeys(sample.source)),
            "frames": sample.frames,
            "uri": "",
            "problem": "",
        }
        try:
            patches = read_sample(directory, sample)
            picture = patch_image_to_picture(patches, *manifest.size)
            if number < MOST_SAMPLES:
                entry["uri"] = data_uri(shrink(picture, CONTACT))
        except (ValueError, OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
            entry["problem"] = str(error)
        yield entry


def read_sample(directory: Path, sample: Sample) -> np.ndarray:
    """A calibration sample as a patch image: uint8 (S, 392, 3).

    Raises:
        ValueError: it is no sample of this graph: another shape or dtype, or values that are no pixels.
        OSError: it does not open.
    """
    if Path(sample.file).name != sample.file:
        raise InputError("names a file outside of calib/")
    path = directory / sample.file
    if path.suffix != ".npy":
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    values = np.load(path, allow_pickle=False)
    if values.dtype != np.float32 or values.ndim != 4 or values.shape[:2] != (1, CHANNELS):
        raise InputError(f"holds {values.dtype} {values.shape}, expected float32 (1, 3, S, {PATCH_PIXELS})")
    pixels = values[0].transpose(1, 2, 0)
    if values.min() < 0:  # normalised
        pixels = (pixels * np.float32(STD) + np.float32(MEAN)) * 255
    rounded = np.rint(pixels)
    if not (np.abs(pixels - rounded).max() < 0.01 and rounded.min() >= 0 and rounded.max() <= 255):
        raise InputError("holds values that are no pixels of 0..255, normalised or not")
    return rounded.astype(np.uint8)
