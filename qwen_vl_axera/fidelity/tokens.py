"""`fidelity_tokens.npz`: the errors of every token, beside `fidelity.json`, which carries its hash.

Members, float64 (T, H/28, W/28):

    GRAPH.onnx/cosine_distance  1 - cosine with transformers' float32
    GRAPH.onnx/error_ratio      the error over transformers' own, against the exact answer; NaN where there is none
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_vl_axera.contract import FIDELITY, FIDELITY_TOKENS
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.record import Fidelity, Graph
from qwen_vl_axera.files import require, write_arrays
from qwen_vl_axera.made_from import stale

MADE_BY = "test_onnx_video_by_sec.py"
COSINE_DISTANCE, ERROR_RATIO = "cosine_distance", "error_ratio"
# The same tokens give the same cosine up to rounding in float64, of sums over some thousand channels.
ROUNDING = 1e-14
# What zipfile, zlib and numpy raise on damaged files.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, OverflowError, NotImplementedError, RuntimeError),
)


@dataclass(frozen=True)
class TokenErrors:
    """A graph's errors, float64 (T, H/28, W/28); see this file's head."""

    cosine_distance: np.ndarray
    error_ratio: np.ndarray


def token_errors_path(report: Path) -> Path:
    """Where the token errors of a report stand: `fidelity_tokens.npz` beside `fidelity.json`, other names alike."""
    return report.with_name(report.stem + FIDELITY_TOKENS.removeprefix(Path(FIDELITY).stem))


def write_token_errors(report: Path, errors: dict[str, np.ndarray]) -> Path:
    """Writes the errors of one run.

    Args:
        report: the file that they stand beside.
        errors: GRAPH.onnx/cosine_distance and GRAPH.onnx/error_ratio of each graph.

    Returns:
        The file written.
    """
    path = token_errors_path(report)
    write_arrays(path, errors)
    return path


def is_token_errors(path: Path) -> bool:
    """Whether a file holds the errors of a run, of whatever name."""
    try:
        with open_file(path) as stored, zipfile.ZipFile(stored) as archive:
            return any(name.endswith(f"/{COSINE_DISTANCE}.npy") for name in archive.namelist())
    except DAMAGE:
        return False


def read_token_errors(path: Path, graph: Graph, fidelity: Fidelity, shape: tuple[int, int, int]) -> TokenErrors:
    """The errors of one graph's tokens, if they are of `fidelity.json`'s run.

    Args:
        path: the file.
        graph: its entry in `fidelity`.
        fidelity: of the same directory.
        shape: temporal steps, rows and columns of tokens of the captured clip.

    Raises:
        InputError: missing, damaged, or of another clip or run; the message says which.
    """
    again = f"run {MADE_BY} again"
    if problem := stale({name: value for name, value in fidelity.made_from.items() if name == path.name}, path.parent):
        raise InputError(f"{path} is of another run ({problem}): {again}")
    try:
        with open_file(require(path, MADE_BY)) as stored, zipfile.ZipFile(stored) as archive:
            distance, ratio = (
                _member(archive, f"{graph.file}/{name}", shape, np.float64) for name in (COSINE_DISTANCE, ERROR_RATIO)
            )
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}: {again}") from None
    except DAMAGE as error:
        raise InputError(f"{path}: not readable ({error!s:.100}): {again}") from None
    if not (distance >= 0).all() or not (np.isnan(ratio) | (ratio >= 0)).all():
        raise InputError(f"{path}: holds distances or ratios below 0: {again}")
    lowest = [step.min_token_cosine for step in graph.steps]
    if len(lowest) != len(distance) or not np.allclose(1 - distance.max((1, 2)), lowest, rtol=0, atol=ROUNDING):
        raise InputError(f"{path} is of another run than the figures of {graph.file}: {again}")
    return TokenErrors(distance, ratio)


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array, read only if it is exactly the one expected: whatever its header says, no more memory is taken."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else (None, None, None)
        if header != (shape, False, np.dtype(dtype)):
            raise InputError(f"{name} in it is not of the captured clip: run {MADE_BY} again")
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(file.read(count), dtype).reshape(shape)
