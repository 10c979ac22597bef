"""From recorded PyTorch calls to ONNX nodes: the table at the end of this file is the conversion.

`Tracer` writes down a module's forward, module paths included. `Lowering` runs each recorded call on the meta
device, for its shape alone, and emits the ONNX nodes for it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

import qwen_vl_axera
from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.graph.external_data import DataFile
from qwen_vl_axera.graph.files import METADATA_PREFIX

ONNX_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
    torch.uint8: TensorProto.UINT8,
}


class Tracer(fx.Tracer):
    """Records calls with the path of the module that makes them; linear layers stay whole."""

    def __init__(self):
        super().__init__()
        self.path = ""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Linear)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        before, self.path = self.path, self.path_of_module(module)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.path = before

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self.path
        return node


class Lowering(fx.Interpreter):
    """Runs a traced tower on the meta device and emits ONNX nodes as it goes."""

    def __init__(self, traced: fx.GraphModule, data: DataFile, opset: int, outputs: Sequence[str]):
        super().__init__(traced, garbage_collect_values=False)
        self.data, self.opset, self.outputs = data, opset, outputs
        self.parameters_by_name = dict(traced.named_parameters())
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.names: dict[fx.Node, Any] = {}  # ONNX tensor name, or a tuple of names for a split
        self.taken: dict[str, int] = {}
        self.graph_input: onnx.ValueInfoProto | None = None
        self.graph_outputs: list[onnx.ValueInfoProto] = []

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "placeholder":
            self.names[node] = INPUT_NAME
            self.graph_input = self.value_info(INPUT_NAME, result)
        elif node.op == "get_attr":
            result = self.constant_of_module(node, result)
        elif node.op == "output":
            several = isinstance(result, tuple)
            nodes, results = (node.args[0], result) if several else ([node.args[0]], [result])
            for name, made, value in zip(self.outputs, nodes, results, strict=True):
                self.name_output(name, made, value)
        else:
            self.lower(node, result)
        return result

    def call_module(self, target: str, args: tuple, kwargs: dict) -> torch.Tensor:
        return args[0].new_empty(*args[0].shape[:-1], self.module.get_submodule(target).out_features)

    def call_method(self, target: str, args: tuple, kwargs: dict) -> Any:
        return SHAPES[target](*args, **kwargs) if target in SHAPES else super().call_method(target, args, kwargs)

    def call_function(self, target: Callable, args: tuple, kwargs: dict) -> Any:
        shape = SHAPES.get(target.__name__)
        return shape(*args, **kwargs) if shape else super().call_function(target, args, kwargs)

    def lower(self, node: fx.Node, result: Any) -> None:
        if node.op == "call_module":
            return self.gemm(node, result)
        target = node.target if node.op == "call_method" else node.target.__name__
        if target not in TABLE:
            raise NotImplementedError(f"no ONNX lowering for {target} in {node.meta['path']}")
        return TABLE[target](self, node, result)

    def emit(self, op: str, inputs: list[str], node: fx.Node, result: Any, suffix: str = "", **attributes) -> str:
        """Adds a node named after its module and operator; its output tensor has the same name."""
        name = self.unique(".".join(part for part in (node.meta["path"], suffix or snake_case(op)) if part))
        return self.emit_named(name, op, inputs, node, result, **attributes)

    def emit_named(self, name: str, op: str, inputs: list[str], node: fx.Node, result: Any, **attributes) -> str:
        outputs = [name]
        if isinstance(result, tuple):
            outputs = [f"{name}.{number}" for number in range(len(result))]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        for output, value in zip(outputs, result if isinstance(result, tuple) else [result], strict=True):
            self.values.append(self.value_info(output, value))
        self.names[node] = tuple(outputs) if isinstance(result, tuple) else name
        return name

    def gemm(self, node: fx.Node, result: torch.Tensor) -> None:
        linear = self.module.get_submodule(node.target)
        inputs = [self.names[node.args[0]], self.weight(f"{node.target}.weight", linear.weight)]
        if linear.bias is not None:
            inputs.append(self.weight(f"{node.target}.bias", linear.bias))
        self.emit_named(self.unique(node.target), "Gemm", inputs, node, result, transB=1)

    def weight(self, name: str, parameter: torch.Tensor) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.data.tensor(name, parameter.shape)
        return name

    def constant_of_module(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        name = self.names[node] = str(node.target)
        if name in self.parameters_by_name:
            self.weight(name, value)
        elif name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name)
        return value.to("meta")

    def constant(self, kind: str, value: np.ndarray) -> str:
        """A small initializer named after its value; equal ones are shared."""
        text = "x".join(str(item).replace("-", "minus").replace("+", "") for item in value.reshape(-1).tolist())
        name = f"{kind}.{text}"
        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def operand(self, argument: Any) -> str:
        """An argument's tensor name; Python numbers become scalar initializers."""
        if isinstance(argument, fx.Node):
            return self.names[argument]
        return self.constant("scalar", np.array(argument, np.float32))

    def unique(self, name: str) -> str:
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return f"{name}_{count}" if count else name

    def value_info(self, name: str, value: torch.Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ONNX_DTYPES[value.dtype], list(value.shape))

    def name_output(self, name: str, node: fx.Node, result: torch.Tensor) -> None:
        made = self.names[node]
        if any(made in other.input for other in self.nodes):
            raise ValueError(f"{made}: an output is used inside the graph, too")
        maker = next(other for other in self.nodes if list(other.output) == [made])
        maker.output[0] = name
        self.values = [value for value in self.values if value.name != made]
        self.graph_outputs.append(self.value_info(name, result))

    def model(self, name: str, metadata: dict[str, Any]) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            name,
            [self.graph_input],
            self.graph_outputs,
            [tensor for name, tensor in self.initializers.items() if name in used],
            value_info=self.values,
        )
        opset = helper.make_operatorsetid("", self.opset)
        model = helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=helper.find_min_ir_version_for([opset]),
            producer_name="qwen_vl_axera",
            producer_version=qwen_vl_axera.__version__,
        )
        properties = {METADATA_PREFIX + key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
        helper.set_model_props(model, properties)
        return model


def snake_case(op: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op).lstrip("_")


def binary(op: str) -> Callable:
    def lower(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
        self.emit(op, [self.operand(argument) for argument in node.args], node, result)

    return lower


def unary(op: str) -> Callable:
    def lower(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
        self.emit(op, [self.names[node.args[0]]], node, result)

    return lower


def cast(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    self.emit("Cast", [self.names[node.args[0]]], node, result, to=ONNX_DTYPES[result.dtype])


def concat(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    tensors, axis = node.args
    self.emit("Concat", [self.names[tensor] for tensor in tensors], node, result, axis=axis)


def gather(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    x, axis, index = node.args
    self.emit("Gather", [self.names[x], self.names[index]], node, result, axis=axis)


def gelu(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    """GELU, exact or in its tanh form: the Gelu operator came with opset 20 only.

    The tanh form has the nodes of PyTorch's own exporter, which the compiler is seen to join into one.
    """
    if node.kwargs.get("approximate", "none") == "tanh":
        return gelu_tanh(self, node, result)
    # x·(1 + erf(x / sqrt 2)) / 2
    x = self.names[node.args[0]]
    half = self.operand(0.5)
    scaled = self.emit("Mul", [x, self.operand(float(np.float32(0.5**0.5)))], node, result)
    halved = self.emit("Mul", [self.emit("Erf", [scaled], node, result), half], node, result)
    self.emit("Mul", [x, self.emit("Add", [halved, half], node, result)], node, result)


def gelu_tanh(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    """x·(1 + tanh(sqrt(2 / pi)·(x + 0.044715·x³))) / 2."""
    x = self.names[node.args[0]]
    cube = self.emit("Mul", [x, self.emit("Mul", [x, x], node, result)], node, result)
    scaled = self.emit("Mul", [cube, self.operand(float(np.float32(0.044715)))], node, result)
    inner = self.emit("Add", [x, scaled], node, result)
    inner = self.emit("Mul", [inner, self.operand(float(np.float32((2 / np.pi) ** 0.5)))], node, result)
    one = self.emit("Add", [self.emit("Tanh", [inner], node, result), self.operand(1.0)], node, result)
    self.emit("Mul", [self.emit("Mul", [x, one], node, result), self.operand(0.5)], node, result)


def getitem(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    source, number = node.args
    self.names[node] = self.names[source][number]


def layer_norm(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    x, _, weight, bias, eps = (*node.args, *node.kwargs.values())
    inputs = [self.names[part] for part in (x, weight, bias)]
    self.emit("LayerNormalization", inputs, node, result, axis=-1, epsilon=eps)


def mean(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    x, axis = self.names[node.args[0]], node.args[1]
    if self.opset >= 18:  # axes became an input
        self.emit("ReduceMean", [x, self.constant("axes", np.array([axis]))], node, result, keepdims=1)
    else:
        self.emit("ReduceMean", [x], node, result, axes=[axis], keepdims=1)


def permute(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    self.emit("Transpose", [self.names[node.args[0]]], node, result, perm=list(node.args[1:]))


def reshape(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    shape = self.constant("shape", np.array(result.shape, np.int64))
    self.emit("Reshape", [self.names[node.args[0]], shape], node, result)


def silu(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    """x·sigmoid(x) in two nodes: Swish is reported broken on AX650N."""
    x = self.names[node.args[0]]
    self.emit("Mul", [x, self.emit("Sigmoid", [x], node, result)], node, result)


def softmax(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    self.emit("Softmax", [self.names[node.args[0]]], node, result, axis=node.args[1])


def split(self: Lowering, node: fx.Node, result: tuple[torch.Tensor, ...]) -> None:
    x, sizes, axis = node.args
    lengths = self.constant("split", np.array(sizes, np.int64))
    self.emit("Split", [self.names[x], lengths], node, result, axis=axis)


def elementwise(*args: Any, **kwargs: Any) -> torch.Tensor:
    """The shape of an elementwise result; Python numbers take any."""
    tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
    return tensors[0].new_empty(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))


def joined(tensors: list[torch.Tensor], axis: int) -> torch.Tensor:
    shape = list(tensors[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return tensors[0].new_empty(shape)


# What torch computes on the meta device by decomposition (as it does linear layers): it would import its
# compiler, 300 MB and a second, to find out a shape.
SHAPES: dict[str, Callable[..., torch.Tensor]] = {
    **dict.fromkeys(("add", "gelu", "mul", "pow", "sqrt", "truediv"), elementwise),
    "cat": joined,
    "layer_norm": lambda x, *args, **kwargs: x.new_empty(x.shape),
    "index_select": lambda x, axis, index: x.new_empty(*x.shape[:axis], len(index), *x.shape[axis + 1 :]),
    "mean": lambda x, axis, keepdim: x.new_empty(*x.shape[:-1], 1),
}

TABLE: dict[str, Callable[[Lowering, fx.Node, Any], None]] = {
    "add": binary("Add"),
    "cat": concat,
    "float": cast,
    "gelu": gelu,
    "getitem": getitem,
    "index_select": gather,
    "layer_norm": layer_norm,
    "matmul": binary("MatMul"),
    "mean": mean,
    "mul": binary("Mul"),
    "permute": permute,
    "pow": binary("Pow"),
    "reshape": reshape,
    "sigmoid": unary("Sigmoid"),
    "silu": silu,
    "softmax": softmax,
    "split": split,
    "sqrt": unary("Sqrt"),
    "truediv": binary("Div"),
}
