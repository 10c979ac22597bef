"""The token embeddings as the board's runtime and its demos read them, streamed out of the checkpoint."""

from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.tensors import FLOAT_DTYPES, Checkpoint, TensorInfo, read_bytes
from qwen_vl_axera.contract import EMBEDDING, EMBEDDING_FILES
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, made_directory

STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
INFINITE = 0x7F80  # the exponent of a bf16 infinity or NaN
PIECE = 1 << 18  # bytes at a time: stays in the processor's cache, and its memory is reused


def extract_embedding(
    checkpoint: Checkpoint, directory: Path, format: str = "bfloat16", known: Container[str] = ()
) -> Path:
    """Writes the embeddings, row-major and little-endian, a piece at a time.

    Args:
        checkpoint: the model.
        directory: where the file goes; made when missing.
        format: "bfloat16" (what the runtime reads; no header), "float32" (no header) or "npy" (float32).
        known: SHA-256 digests of what an earlier run wrote there.

    Returns:
        The file written, one of `contract.EMBEDDING_FILES`.

    Raises:
        InputError: the tensor is missing, of another shape than config.json says, no float, truncated, or holds
            values that are not finite; `directory` is a file, or holds another file of that name.
    """
    info = embedding_info(checkpoint)
    directory = made_directory(Path(directory))
    path = directory / EMBEDDING_FILES[format]
    with progress.stage(f"embedding {format}", info.nbytes) as stage, atomic_write(path, ours=known) as file:
        if format == "npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": info.shape}
            np.lib.format.write_array_header_1_0(file, header)
        for stored, piece in converted(info, "bfloat16" if format == "bfloat16" else "float32"):
            file.write(piece)
            stage.advance(stored)
    return path


def embedding_info(checkpoint: Checkpoint) -> TensorInfo:
    """Where the embeddings lie.

    Raises:
        InputError: they are missing (the message lists the closest names), of another shape or no float.
    """
    info = checkpoint.info(EMBEDDING)
    expected = checkpoint.config.text.vocab_size, checkpoint.config.text.hidden_size
    if info.shape != expected:
        raise InputError(
            f"{info.path}: {info.stored_name} has shape {list(info.shape)}, "
            f"config.json asks for {list(expected)} (vocab_size, hidden_size)"
        )
    if info.dtype not in FLOAT_DTYPES:
        raise InputError(f"{info.path}: {info.stored_name} is stored as {info.dtype}, expected BF16, F16 or F32")
    return info


def converted(info: TensorInfo, target: str) -> Iterator[tuple[int, memoryview]]:
    """A tensor in pieces: bf16 to bf16 byte for byte, other values rounded to nearest, ties to even.

    Args:
        info: a BF16, F16 or F32 tensor.
        target: "bfloat16" or "float32" (exact).

    Yields:
        The number of bytes read, and the piece to write.

    Raises:
        InputError: the file ends early, or a value is not finite (in the target's range).
    """
    for data in read_bytes(info, PIECE):
        values = np.frombuffer(data, STORED[info.dtype])
        if info.dtype != "BF16":
            values = values.astype("<f4", copy=False)
            halves = to_bfloat16(values)
        else:
            halves = values
        if int((halves & 0x7FFF).max()) >= INFINITE:
            raise InputError(f"{info.path}: {info.stored_name} holds NaN, infinities or values beyond bfloat16")
        if target == "bfloat16":
            yield len(data), halves.data
        elif info.dtype == "BF16":
            yield len(data), (values.astype("<u4") << 16).data
        else:
            yield len(data), values.data


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits as `<u2`, rounded to nearest, ties to even.

    NaN stays NaN; values beyond the range become infinite.
    """
    bits = values.view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded[np.isnan(values)] = 0x7FC0  # adding above may carry a NaN's mantissa into the sign
    return rounded
