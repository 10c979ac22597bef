"""What each ONNX operator of the graph computes, in torch: the table at the end."""

from collections.abc import Callable, Sequence

import onnx
import torch
from onnx import helper
from torch import Tensor

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.quantization.network import Operator

Constant = Callable[[str], Tensor]


def run_nodes(operator: Operator, operands: Sequence[Tensor], constant: Constant) -> list[Tensor]:
    """Runs an operator's nodes one after the other.

    Args:
        operator: any but a Gemm.
        operands: the values of its inputs for one step.
        constant: gives a constant by its name.

    Raises:
        InputError: a node has no entry in TABLE.
    """
    values = dict(zip(operator.inputs, operands, strict=True))
    for node in operator.nodes:
        if node.op_type not in TABLE:
            raise InputError(f"{node.name}: {node.op_type} is no operator of this converter's graphs")
        inputs = [values[name] if name in values else constant(name) for name in node.input]
        made = TABLE[node.op_type](node, *inputs)
        values |= zip(node.output, made if isinstance(made, tuple) else (made,), strict=True)
    return [values[name] for name in operator.outputs]


def attribute(node: onnx.NodeProto, name: str, default=None):
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def concat(node: onnx.NodeProto, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, attribute(node, "axis"))


def gather(node: onnx.NodeProto, x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(attribute(node, "axis", 0), index)


def reduce_mean(node: onnx.NodeProto, x: Tensor, axes: Tensor | None = None) -> Tensor:
    axes = attribute(node, "axes") if axes is None else axes.tolist()
    return x.mean(axes, keepdim=bool(attribute(node, "keepdims", 1)))


def split(node: onnx.NodeProto, x: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    return x.split(sizes.tolist(), attribute(node, "axis", 0))


TABLE: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda node, a, b: a + b,
    "Concat": concat,
    "Div": lambda node, a, b: a / b,
    "Erf": lambda node, x: torch.erf(x),
    "Gather": gather,
    "Identity": lambda node, x: x,
    "MatMul": lambda node, a, b: a @ b,
    "Mul": lambda node, a, b: a * b,
    "Pow": lambda node, x, exponent: x.pow(float(exponent)),
    "ReduceMean": reduce_mean,
    "Reshape": lambda node, x, shape: x.reshape(shape.tolist()),
    "Sigmoid": lambda node, x: torch.sigmoid(x),
    "Softmax": lambda node, x: torch.softmax(x, attribute(node, "axis", -1)),
    "Split": split,
    "Sqrt": lambda node, x: torch.sqrt(x),
    "Transpose": lambda node, x: x.permute(attribute(node, "perm")),
}
