"""What Pulsar2 takes on AX650, as rules over an ONNX graph: operators, limits, names, shapes, constants.

The lists are those of the Pulsar2 manual (7.0, "NPU operators support list", AX650, opset 11 and later) and
of reports from boards. An operator that is not listed fails the compilation; there is no CPU fallback.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qwen_vl_axera.contract import OPSETS

MAX_RANK = 4  # the manual names no limit; more was never seen to compile

# Only what a vision tower can need. Everything else is refused.
SUPPORTED = frozenset(
    """
    Add Cast Concat Conv Div Erf Expand Gather GatherElements Gelu Gemm LayerNormalization MatMul Mul Pad Pow
    ReduceMax ReduceMean ReduceSum Reshape Sigmoid Slice Softmax Split Sqrt Sub Tanh Tile Transpose Where
    """.split()
)
BROKEN = frozenset(
    ["Squeeze", "RotaryEmbedding", "Swish", "ConvTranspose", "Xor", "LpNormalization", "InverseSigmoid"]
)  # listed by the manual, reported to fail on an AX650N with Pulsar2 6.0-lite
CAST_TARGETS = {
    TensorProto.FLOAT,
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32),
}
MOVING = frozenset(["Transpose", "Slice", "Split", "Concat", "Gather"])
BINARY = frozenset(["Add", "Div", "Mul", "Pow", "Sub", "Where"])
# What computes nothing: at the end of the graph it dropped the whole output path to 8 bits on a real card.
PASSIVE = MOVING | {"Expand", "GatherElements", "Pad", "Reshape", "Tile"}


def lint(model: onnx.ModelProto) -> list[str]:
    """What Pulsar2 would refuse or get wrong, one sentence each, naming the node.

    Args:
        model: a graph; external data need not be loaded.

    Returns:
        Problems; empty when there are none.
    """
    return list(_problems(model))


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        yield f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.output, *graph.value_info)}
    shapes |= {name: list(tensor.dims) for name, tensor in constants.items()}

    for node in graph.node:
        where = f"node {node.name or '(unnamed)'} ({node.op_type})"
        if node.op_type == "Constant":
            yield f"{where}: forces the compiler's optimiser on, it should be an initializer"
        elif node.op_type in BROKEN:
            yield f"{where}: reported broken on AX650"
        elif node.op_type not in SUPPORTED or node.domain not in ("", "ai.onnx"):
            yield f"{where}: not in the operator list of AX650"
        else:
            yield from (f"{where}: {problem}" for problem in _limits(node, constants, shapes, opset))
        if node.input and all(name in constants for name in node.input):
            yield f"{where}: all inputs are constant, it should have been folded"
        for name in node.output:
            yield from (f"{where}: {problem}" for problem in _shape_problems(name, shapes.get(name)))

    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        if not _shape(value):
            yield f"output {value.name}: rank 0 crashes the calibration"
        if (maker := makers.get(value.name)) is not None and maker.op_type in PASSIVE:
            yield f"node {maker.name} ({maker.op_type}): the last operator must compute, or the output falls to 8 bits"
    for name, count in Counter(node.name for node in graph.node).items():
        if not name or count > 1:
            yield f"{count} nodes are named {name!r}: names select layers and must be unique"
    names = {node.name for node in graph.node} | set(shapes)
    yield from (f"{name}: '/' in a name breaks the board's PCIe runner" for name in sorted(names) if "/" in name)
    for tensor in graph.initializer:
        inline = tensor.data_location != TensorProto.EXTERNAL and tensor.data_type == TensorProto.FLOAT
        if inline and not np.isfinite(numpy_helper.to_array(tensor)).all():
            users = ", ".join(node.name for node in graph.node if tensor.name in node.input)
            yield f"initializer {tensor.name} of {users}: infinite or NaN values ruin the MinMax ranges"


def _limits(node: onnx.NodeProto, constants: dict, shapes: dict, opset: int) -> Iterator[str]:
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type in BINARY and len(shapes.get(node.output[0]) or []) < 2:
        yield "operators of two inputs need a result of two dimensions or more, others were seen not to compile"
    match node.op_type:
        case "Gather":
            if len(shapes.get(node.input[1]) or [0]) != 1 or node.input[1] not in constants:
                yield "indices must be a constant of one dimension"
        case "Pow":
            if constants.get(node.input[1]) is None or np.prod(constants[node.input[1]].dims) != 1:
                yield "the exponent must be a scalar initializer"
        case "Gemm":
            if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
                yield "alpha and beta must stay 1"
        case "Cast":
            if attributes["to"] not in CAST_TARGETS:
                yield "casts only to (u)int8, (u)int16, (u)int32 and float32"
        case "LayerNormalization":
            if attributes.get("axis", -1) != -1:
                yield "axis must be -1"
        case "ReduceMax" | "ReduceMean" | "ReduceSum":
            by_input = opset >= 18 or node.op_type == "ReduceSum"
            given = len(node.input) > 1 and node.input[1] in constants if by_input else "axes" in attributes
            if not given or attributes.get("noop_with_empty_axes"):
                yield "axes must be given as constants"
        case "Conv":
            if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
                yield "auto_pad must be NOTSET"
        case "Pad":
            if attributes.get("mode", b"constant") != b"constant":
                yield "mode must be constant"
        case "Reshape" | "Split" | "Slice" | "Tile" | "Expand":
            if any(name and name not in constants for name in node.input[1:]):
                yield "its parameters must be constants"
        case "Mul" | "Div":
            for name in node.input:
                if name in constants and _is_one(constants[name]):
                    yield "multiplying or dividing by exactly 1.0 crashes the compiler"


def _is_one(tensor: TensorProto) -> bool:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.FLOAT:
        return False
    return bool((numpy_helper.to_array(tensor) == 1.0).all())


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]


def _shape_problems(name: str, shape: list[int] | None) -> Iterator[str]:
    if shape is None:
        yield f"tensor {name} has no shape"
    elif min(shape, default=1) < 1:
        yield f"tensor {name} has no static shape: {shape}"
    elif len(shape) > MAX_RANK:
        yield f"tensor {name} has rank {len(shape)}, at most {MAX_RANK} is known to work"


def statistics(model: onnx.ModelProto) -> dict[str, int]:
    """How large a graph is: nodes, reshapes among them, data movement and arithmetic per step.

    Returns:
        `nodes`, `reshapes`, `moved_bytes` (outputs of Transpose, Slice, Split, Concat and Gather; a Reshape
        moves nothing), `multiplications` (those of Gemm and MatMul) and the number of nodes of each operator as
        `op.NAME`.
    """
    graph = model.graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes = {name: _shape(value) for name, value in values.items()}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    counts = Counter(node.op_type for node in graph.node)
    moved = multiplications = 0
    for node in graph.node:
        if node.op_type in MOVING:
            for name in node.output:
                kind = onnx.helper.tensor_dtype_to_np_dtype(values[name].type.tensor_type.elem_type)
                moved += int(np.prod(shapes[name])) * kind.itemsize
        elif node.op_type in ("Gemm", "MatMul"):
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            summed = shapes[node.input[0]][0 if transposed else -1]
            multiplications += int(np.prod(shapes[node.output[0]])) * summed
    summary = {"nodes": len(graph.node), "reshapes": counts["Reshape"]}
    summary |= {"moved_bytes": moved, "multiplications": multiplications}
    return summary | {f"op.{name}": count for name, count in sorted(counts.items())}
