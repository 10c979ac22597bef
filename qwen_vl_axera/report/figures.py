"""The parts of the report that are pictures of figures: where a graph errs, and the calibration set turned back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocess import CHANNELS, MEAN, STD, patch_image_to_picture, unpatchify
from qwen_vl_axera.calibration.manifest import Manifest, Sample
from qwen_vl_axera.contract import FIDELITY_TOKENS
from qwen_vl_axera.doors import map_array
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.record import Fidelity
from qwen_vl_axera.fidelity.tokens import read_token_errors
from qwen_vl_axera.frames.media import open_picture
from qwen_vl_axera.oracle.record import Capture
from qwen_vl_axera.report.parts import Part
from qwen_vl_axera.report.pictures import CONTACT, THUMBNAIL, Scale, data_uri, error_map, shrink

MOST_MAPS = 16  # steps shown; of more, those with the worst tokens
MOST_SAMPLES = 96  # shown


def error_maps(
    workdir: Path, capture: Capture, pixels: np.ndarray, fidelity: Fidelity, command: str
) -> Part[dict[str, Any]]:
    """Draws where a graph's tokens differ from transformers': a failed graph, or else the one with uint8 input.

    Args:
        workdir: what the gate left.
        capture: the clip.
        pixels: uint8 (T, S, 392, 3).
        fidelity: what the gate measured.
        command: measures again.
    """
    measured = [graph for graph in fidelity.graphs if graph.steps]
    if not measured:
        return Part(None, "No graph was measured.", command)
    graph = max(measured, key=lambda graph: (not graph.holds, "_uint8." in graph.file))
    shape = capture.token_grid
    path = workdir / FIDELITY_TOKENS
    if not path.is_file():
        return Part(None, f"{path.name} is not there yet.", command, absent=True)
    try:
        tokens = read_token_errors(path, graph, fidelity, shape)
    except InputError as error:
        return Part(None, f"{error}.", command)
    exact = np.flatnonzero(~np.isnan(tokens.error_ratio).all((1, 2)))
    limit = fidelity.thresholds.token_ratio
    return Part(
        {
            "file": graph.file,
            "grid": shape[1:],
            "above": int((tokens.error_ratio > limit).sum()),
            "limit": limit,
            "ratio": _maps(capture, pixels, tokens.error_ratio, exact, limit) if len(exact) else None,
            "distance": _maps(capture, pixels, tokens.cosine_distance, np.arange(shape[0]), None),
        }
    )


def _maps(
    capture: Capture, pixels: np.ndarray, errors: np.ndarray, steps: np.ndarray, limit: float | None
) -> dict[str, Any]:
    """Pictures of some steps and their scale."""
    scale = Scale.of(errors[steps], limit)
    worst = steps[np.argsort(-errors[steps].max((1, 2)), kind="stable")]
    return {
        "steps": [_map(step, capture, pixels, errors[step], scale) for step in sorted(map(int, worst[:MOST_MAPS]))],
        "total": len(steps),
        "bar": data_uri(scale.bar(), lossless=True),
        "ticks": scale.ticks(),
        "mark": None if limit is None else scale.position(limit),
    }


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
        "above": int(scale.warns(errors).sum()),
    }


def calibration_sheet(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """The calibration set, every sample turned back into the first of its frames."""
    samples = list(_samples(directory, manifest))
    return {
        "format": manifest.format,
        "size": manifest.size,
        "near": manifest.nearly_identical,
        "samples": samples,
        "unreadable": sum(bool(sample["problem"]) for sample in samples),
        "most": MOST_SAMPLES,
    }


def _samples(directory: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for number, sample in enumerate(manifest.samples):
        entry = {
            "short": Path(sample.source[0]).name,
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
    path = directory / sample.file
    if path.suffix != ".npy":
        with open_picture(path) as picture:
            return np.asarray(picture.convert("RGB"))
    values = np.asarray(map_array(path))
    if values.dtype != np.float32 or values.ndim != 4 or values.shape[:2] != (1, CHANNELS):
        raise InputError(f"holds {values.dtype} {values.shape}, expected float32 (1, 3, S, 2·patch²)")
    pixels = values[0].transpose(1, 2, 0)
    if values.min() < 0:  # normalised
        pixels = (pixels * np.float32(STD) + np.float32(MEAN)) * 255
    rounded = np.rint(pixels)
    if not (np.abs(pixels - rounded).max() < 0.01 and rounded.min() >= 0 and rounded.max() <= 255):
        raise InputError("holds values that are no pixels of 0..255, normalised or not")
    return rounded.astype(np.uint8)
