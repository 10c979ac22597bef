"""`fidelity_tokens.npz`: the errors of every token, beside `fidelity.json` and for the same run.

Members, all float64 (T, H/28, W/28) but the hashes, which are uint8 (32,):

    GRAPH.onnx/cosine_distance  1 - cosine with transformers' float32
    GRAPH.onnx/error_ratio      the error over transformers' own, against the exact answer; NaN where there is none
    GRAPH.onnx/sha256           of the graph's file
    vit_out.npy/sha256          of transformers' answer: says which clip, weights and run it was
"""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_vl_axera.contract import FIDELITY, FIDELITY_TOKENS, ORACLE, shared_place
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.record import Graph
from qwen_vl_axera.files import require, sha256_file, write_arrays

MADE_BY = "test_onnx_video_by_sec.py"
COSINE_DISTANCE, ERROR_RATIO, SHA256 = "cosine_distance", "error_ratio", "sha256"
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


def write_token_errors(path: Path, errors: dict[str, np.ndarray], graphs: Sequence[Path], clip: Path) -> None:
    """Writes the errors of one run.

    Args:
        path: the file.
        errors: GRAPH.onnx/cosine_distance and GRAPH.onnx/error_ratio of each graph.
        graphs: the graphs.
        clip: the directory of the capture that they were compared with.
    """
    hashes = {f"{file.name}/{SHA256}": file for file in (*graphs, clip / ORACLE)}
    write_arrays(path, errors | {name: _digest(file) for name, file in hashes.items()})


def is_token_errors(path: Path) -> bool:
    """Whether a file holds the errors of a run, of whatever name."""
    try:
        with open_file(path) as stored, zipfile.ZipFile(stored) as archive:
            return f"{ORACLE}/{SHA256}.npy" in archive.namelist()
    except DAMAGE:
        return False


def read_token_errors(path: Path, graph: Graph, workdir: Path, shape: tuple[int, int, int]) -> TokenErrors:
    """The errors of one graph's tokens, if they are of `fidelity.json`'s run and of what lies in the work directory.

    Args:
        path: the file.
        graph: its entry in `fidelity.json`.
        workdir: holds the graph and transformers' answer; of the picture model, the answer alone.
        shape: temporal steps, rows and columns of tokens of the captured clip.

    Raises:
        InputError: missing, damaged, or of another clip, graph or run; the message says which.
    """
    again = f"run {MADE_BY} again"
    try:
        with open_file(require(path, MADE_BY)) as stored, zipfile.ZipFile(stored) as archive:
            for file in (ORACLE, graph.file):
                written = _member(archive, f"{file}/{SHA256}", (32,), np.uint8)
                place = (workdir if file == ORACLE else shared_place(workdir)) / file
                if Path(file).name != file or not (written == _digest(require(place, "export.py"))).all():
                    raise InputError(f"{path} was made with another {file}: {again}")
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


def _digest(path: Path) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(sha256_file(path)), np.uint8)
