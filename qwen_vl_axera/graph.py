"""PyTorch -> ONNX without weights in memory: trace on the meta device, lower, stream the weights.

`torch.fx` writes down the tower's forward as it is, module paths included; each recorded call is then run on
the meta device (shapes only) and lowered to ONNX by the table at the end of this file. Nodes and tensors are
named after the modules, so that mixed-precision settings can select them: `blocks.7.attn.qkv.q`.

Weights go into one external data file in the order of `weights.weight_table`; what depends on the size
(rotary angles, permutations) stays inside the graph file. Graphs of several sizes thus share one data file.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

import qwen_vl_axera
from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write
from qwen_vl_axera.operators import lint
from qwen_vl_axera.vision import VisionTower

INPUT_NAME, OUTPUT_NAME = "hidden_states", "hidden_states_out"
OPSETS = (16, 17, 18)
METADATA_PREFIX = "qwen_vl_axera."
ALIGNMENT = 4096  # bytes; ONNX Runtime maps external tensors that begin on a page boundary
ONNX_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
    torch.uint8: TensorProto.UINT8,
}


class DataFile:
    """Where each weight lies in the external data file. Offsets follow from the shapes alone."""

    def __init__(self, location: str, shapes: dict[str, tuple[int, ...]]):
        self.location = location
        self.places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, shape in shapes.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + 4 * int(np.prod(shape))
            self.places[name] = start, end - start
        self.size = end

    def tensor(self, name: str, shape: Iterable[int]) -> TensorProto:
        """A float32 initializer that refers to this file."""
        start, length = self.places[name]
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write(self, directory: Path, weights: Iterable[tuple[str, np.ndarray]]) -> Path:
        """Writes the weights one at a time.

        Args:
            directory: where the file `location` goes.
            weights: name and float32 values, in the order of the shapes given before.

        Raises:
            InputError: a weight comes in another size or order than announced.
        """
        path = Path(directory) / self.location
        with progress.stage("weights", self.size) as stage, atomic_write(path) as file:
            announced = iter(self.places.items())
            for name, values in weights:
                expected, (start, length) = next(announced, (None, (0, 0)))
                if name != expected or values.nbytes != length:
                    raise InputError(
                        f"{name}: {values.nbytes} bytes, the graph expects {expected}: {length} bytes"
                    )
                file.seek(start)
                file.write(values.data)
                stage.advance(length)
            if left := next(announced, None):
                raise InputError(f"the checkpoint gave no {left[0]}")
        return path


def shapes_of(tower: nn.Module, order: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a tower's parameters in the given order.

    Raises:
        ValueError: the tower and the order name different parameters.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}
    names = list(order)
    if set(names) != set(shapes):
        raise ValueError(f"weight table and tower differ: {sorted(set(names) ^ set(shapes))}")
    return {name: shapes[name] for name in names}


def meta_tower(*args: Any, **kwargs: Any) -> VisionTower:
    """A `VisionTower` whose parameters have shapes but no memory; its few constants are real."""
    with torch.device("meta"):
        tower = VisionTower(*args, **kwargs)
    return tower.eval()


def export_graph(tower: VisionTower, data: DataFile, opset: int, metadata: dict[str, Any]) -> onnx.ModelProto:
    """The ONNX model of a tower; weights are references into `data`.

    Args:
        tower: from `meta_tower`.
        data: the external data file.
        opset: 16, 17 or 18.
        metadata: written as `qwen_vl_axera.*` properties, values as JSON.

    Returns:
        A model whose input is `hidden_states` and whose output is `hidden_states_out`, linted.

    Raises:
        InputError: the opset is not supported, or the linter found something that Pulsar2 would refuse.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset}: expected one of {', '.join(map(str, OPSETS))}")
    tracer = Tracer()
    traced = fx.GraphModule(tower, tracer.trace(tower))
    lowering = Lowering(traced, data, opset)
    patches, slots = tower.layout.num_patches, tower.config.patch_pixels
    if tower.uint8:
        example = torch.empty(1, patches, slots, tower.config.in_channels, dtype=torch.uint8, device="meta")
    else:
        example = torch.empty(1, tower.config.in_channels, patches, slots, device="meta")
    with torch.no_grad():
        lowering.run(example)
    model = lowering.model(metadata)
    problems = lint(model)
    if problems:
        raise InputError("the graph would not compile: " + "; ".join(problems[:5]))
    return model


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, atomically and with the same bytes for the same model."""
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """What `export_graph` wrote about a model; empty for a foreign one."""
    return {
        entry.key.removeprefix(METADATA_PREFIX): json.loads(entry.value)
        for entry in model.metadata_props
        if entry.key.startswith(METADATA_PREFIX)
    }


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads a graph without its external data.

    Raises:
        InputError: it is missing or no ONNX model.
    """
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise InputError(f"{path} is missing: run export.py first")
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except DecodeError:
        raise InputError(f"{path}: not an ONNX model (truncated?)") from None
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX model (it has no nodes)")
    return model


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

    def __init__(self, traced: fx.GraphModule, data: DataFile, opset: int):
        super().__init__(traced, garbage_collect_values=False)
        self.data, self.opset = data, opset
        self.parameters_by_name = dict(traced.named_parameters())
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.names: dict[fx.Node, Any] = {}  # ONNX tensor name, or a tuple of names for a split
        self.taken: dict[str, int] = {}
        self.graph_input: onnx.ValueInfoProto | None = None
        self.graph_output: onnx.ValueInfoProto | None = None

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "placeholder":
            self.names[node] = INPUT_NAME
            self.graph_input = self.value_info(INPUT_NAME, result)
        elif node.op == "get_attr":
            result = self.constant_of_module(node, result)
        elif node.op == "output":
            self.name_output(node.args[0], result)
        else:
            self.lower(node, result)
        return result

    def lower(self, node: fx.Node, result: Any) -> None:
        if node.op == "call_module":
            return self.gemm(node, result)
        target = node.target if node.op == "call_method" else node.target.__name__
        if target not in TABLE:
            raise NotImplementedError(f"no ONNX lowering for {target} in {node.meta['path']}")
        return TABLE[target](self, node, result)

    def emit(
        self, op: str, inputs: list[str], node: fx.Node, result: Any, suffix: str = "", **attributes
    ) -> str:
        """Adds a node named after its module and operator; its output tensor has the same name."""
        name = self.unique(".".join(part for part in (node.meta["path"], suffix or snake_case(op)) if part))
        return self.emit_named(name, op, inputs, node, result, **attributes)

    def emit_named(
        self, name: str, op: str, inputs: list[str], node: fx.Node, result: Any, **attributes
    ) -> str:
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
        text = "x".join(
            str(item).replace("-", "minus").replace("+", "") for item in value.reshape(-1).tolist()
        )
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

    def name_output(self, node: fx.Node, result: torch.Tensor) -> None:
        last = self.nodes[-1]
        if list(last.output) != [self.names[node]]:
            raise ValueError("the last node must make the output")
        last.output[0] = OUTPUT_NAME
        self.values.pop()
        self.graph_output = self.value_info(OUTPUT_NAME, result)

    def model(self, metadata: dict[str, Any]) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            "qwen2_5_vl_vision",
            [self.graph_input],
            [self.graph_output],
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
        properties = {
            METADATA_PREFIX + key: json.dumps(value, sort_keys=True) for key, value in metadata.items()
        }
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
    """Exact GELU, x·(1 + erf(x / sqrt 2)) / 2: the Gelu operator came with opset 20 only."""
    x = self.names[node.args[0]]
    half = self.operand(0.5)
    scaled = self.emit("Mul", [x, self.operand(float(np.float32(0.5**0.5)))], node, result)
    halved = self.emit("Mul", [self.emit("Erf", [scaled], node, result), half], node, result)
    self.emit("Mul", [x, self.emit("Add", [halved, half], node, result)], node, result)


def getitem(self: Lowering, node: fx.Node, result: torch.Tensor) -> None:
    source, number = node.args
    self.names[node] = self.names[source][number]


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


TABLE: dict[str, Callable[[Lowering, fx.Node, Any], None]] = {
    "add": binary("Add"),
    "cat": concat,
    "float": cast,
    "gelu": gelu,
    "getitem": getitem,
    "index_select": gather,
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
