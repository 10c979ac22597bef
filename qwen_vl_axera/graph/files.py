"""Graph files: written, read without their weights, and what they say about themselves."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from qwen_vl_axera.contract import CAPTURE, GraphSpec, graph_stem
from qwen_vl_axera.doors import open_file, parse_json, read_bytes
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, require
from qwen_vl_axera.oracle.record import read_capture

MAX_GRAPH = 1 << 28  # bytes; without its weights the graph of 1288x1288 takes 10 MB
METADATA_PREFIX = "qwen_vl_axera."
IR_VERSION, GRAPH = b"\x08", 7  # of ModelProto: the key of its first field, and the number of its graph
LENGTHS = {0: None, 1: 8, 2: None, 5: 4}  # protobuf's wire types -> bytes; None: an integer says


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, atomically and with the same bytes for the same model."""
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """What `export.py` wrote about a model; empty for a foreign one."""
    return {
        entry.key.removeprefix(METADATA_PREFIX): parse_json(entry.value, f"metadata {entry.key}")
        for entry in model.metadata_props
        if entry.key.startswith(METADATA_PREFIX)
    }


def video_stems(name: str, workdir: Path) -> list[str]:
    """The stems under which the graph for the captured clip may be: exported alone, or as one size among several."""
    captured = (Path(workdir) / CAPTURE).is_file()
    return [graph_stem(name, "video", size) for size in (None, *([read_capture(workdir).size] if captured else []))]


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads a graph without its external data.

    Raises:
        InputError: it is missing or no ONNX model.
    """
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(read_bytes(require(path, "export.py"), MAX_GRAPH))
    except DecodeError:
        raise InputError(f"{path}: not an ONNX model (truncated?)") from None
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX model (it has no nodes)")
    return model


def is_cut_off(path: Path) -> bool:
    """Whether a file begins as an ONNX model and ends in the middle of a field, or before the graph.

    Compiled models are ONNX files, too. Only the lengths of the outermost fields are read, whatever the file's size.

    Raises:
        InputError: it is missing or no regular file.
    """
    with open_file(path) as file:
        size, graph = os.fstat(file.fileno()).st_size, False
        if file.read(1) != IR_VERSION:
            return False
        file.seek(0)
        try:
            while file.tell() < size:
                number, kind = divmod(_varint(file), 8)
                graph |= number == GRAPH
                if kind not in LENGTHS:  # no protobuf message
                    return False
                length = _varint(file) if kind in (0, 2) else LENGTHS[kind]
                if kind and length > size - file.tell():
                    return True
                file.seek(length if kind else 0, os.SEEK_CUR)
        except EOFError:
            return True
    return not graph


def _varint(file: BinaryIO) -> int:
    """Protobuf's integer: seven bits a byte, the lowest first.

    Raises:
        EOFError: the file ends before it does.
    """
    value = 0
    for place in range(10):
        if not (byte := file.read(1)):
            raise EOFError
        value |= (byte[0] & 127) << 7 * place
        if byte[0] < 128:
            break
    return value


def check_data(model: onnx.ModelProto, path: Path) -> None:
    """That a graph's weights lie in files beside it: ONNX Runtime would open whatever the graph names.

    Raises:
        InputError: a place is malformed, leads elsewhere, or the file is missing, no regular one or too short.
    """
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            name, numbers = place.get("location", ""), [place.get(key, "0") for key in ("offset", "length")]
            if Path(name).name != name or not all(text.isdecimal() and len(text) < 19 for text in numbers):
                raise InputError(
                    f"{path}: the weights of {tensor.name} are not in a file beside it: run export.py again"
                )
            ends[name] = max(ends.get(name, 0), sum(map(int, numbers)))
    for name, end in ends.items():
        with open_file(require(Path(path).parent / name, "export.py")) as file:
            size = os.fstat(file.fileno()).st_size
        if size < end:
            raise InputError(f"{Path(path).parent / name}: {size} bytes, {path} needs {end}: run export.py again")


def read_spec(model: onnx.ModelProto, path: Path) -> GraphSpec:
    """What a graph was exported for.

    Args:
        model: the graph.
        path: of its file, for messages.

    Raises:
        InputError: it was not written by `export.py`.
    """
    try:
        return GraphSpec.from_metadata(read_metadata(model))
    except InputError as error:
        raise InputError(f"{path}: no vision graph of export.py: {error}") from None
