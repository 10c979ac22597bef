"""`quant/quant_axmodel.onnx` of a build: which tensors really exist, and in which width each operator reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError

EDGES = Path("quant") / "quant_axmodel.onnx"  # below the build's output directory; its weights lie beside it
LARGEST = 1 << 29  # bytes
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16}  # of ONNX's element types: float32, uint8, int8, uint16, int16


@dataclass(frozen=True)
class Edges:
    """The compiler's graph after quantisation.

    Attributes:
        reads: operator -> the tensors that it reads, constants left out.
        kinds: operator -> its type, such as "AxQuantizedConv" or "AxRequantizeLinear".
        tensors: all that an operator reads or makes.
        widths: tensor -> bits, by its element type.
    """

    reads: Mapping[str, frozenset[str]]
    kinds: Mapping[str, str]
    tensors: frozenset[str]
    widths: Mapping[str, int]


def read_edges(path: Path) -> Edges:
    """Reads the graph without its weights.

    Raises:
        InputError: it is missing or no graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load_from_string(read_bytes(path, LARGEST)).graph
    except (DecodeError, ValueError):
        raise InputError(f"{path.name} is no ONNX graph (half-written?)") from None
    if not graph.node:
        raise InputError(f"{path.name} has no nodes")
    constants = {tensor.name for tensor in graph.initializer}
    named = [(node.name or next(iter(node.output), ""), node) for node in graph.node]
    values = (*graph.input, *graph.value_info, *graph.output)
    widths = {value.name: BITS.get(value.type.tensor_type.elem_type) for value in values}
    return Edges(
        {name: frozenset(node.input) - constants - {""} for name, node in named},
        {name: node.op_type for name, node in named},
        frozenset(tensor for node in graph.node for tensor in (*node.input, *node.output)) - constants,
        {name: bits for name, bits in widths.items() if bits},
    )
