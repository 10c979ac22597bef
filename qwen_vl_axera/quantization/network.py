"""An exported graph as the compiler's quantiser sees it: operators, who consumes what, which tensors share a range.

The graph file that Pulsar2 gets is what is read, so names are those of its nodes and tensors, and any size or window
mode works. Weights stay in the external data file and are mapped when a layer runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.files import load_graph
from qwen_vl_axera.quantization.fusion import FUSIONS, fuse_nodes

# They move values and compute none: one scale for what goes in and what comes out, and no precision of their own.
PASSIVE = {"Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True, eq=False)  # an operator is itself only
class Operator:
    """One operator of the compiled model.

    Attributes:
        name: the ONNX node's, or that of the last node of a fusion.
        op_type: ONNX operator, or what a fusion makes (`fusion.PATTERNS`).
        inputs: names of the tensors that it consumes, weights and other constants left out.
        outputs: names of the tensors that it makes.
        nodes: the ONNX nodes that compute it; several when fused.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]

    @property
    def passive(self) -> bool:
        return self.op_type in PASSIVE

    @property
    def fused(self) -> bool:
        return len(self.nodes) > 1

    @property
    def weight(self) -> str:
        """The name of a Gemm's weight."""
        return self.nodes[0].input[1]


class Network:
    """The operators of one graph, in order.

    Args:
        path: `NAME_vision.onnx`, its data file beside it.
        fuse: which fusions the compiler is assumed to make: keys of FUSIONS.

    Attributes:
        operators: in an order in which they can run.
        shapes: of every tensor and constant.
        input, output: the graph's tensors.

    Raises:
        InputError: the graph or its data is missing, or it has several inputs or outputs.
    """

    def __init__(self, path: Path, fuse: Sequence[str] = tuple(FUSIONS)):
        self.path = Path(path)
        self.model = load_graph(self.path)
        graph = self.model.graph
        if len(graph.input) != 1 or len(graph.output) != 1:
            raise InputError(
                f"{path}: expected one input and one output, found {len(graph.input)}, {len(graph.output)}"
            )
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._constants: dict[str, np.ndarray] = {}
        self.shapes = {name: tuple(tensor.dims) for name, tensor in self._initializers.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        kinds = {kind for name in fuse for kind in FUSIONS[name]}
        self.operators = [self._operator(*item) for item in fuse_nodes(list(graph.node), self._initializers, kinds)]
        self.by_name = {operator.name: operator for operator in self.operators}

    def _operator(self, op_type: str, nodes: Sequence[onnx.NodeProto]) -> Operator:
        made = {name for node in nodes for name in node.output}
        read = [name for node in nodes for name in node.input if name not in made and name not in self._initializers]
        outputs = nodes[-1].output
        return Operator(nodes[-1].name, op_type, tuple(dict.fromkeys(read)), tuple(outputs), tuple(nodes))

    def constant(self, name: str) -> np.ndarray:
        """A weight or another constant; those in the data file are mapped, not read.

        Raises:
            InputError: the data file is missing or too short.
        """
        tensor = self._initializers[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if name not in self._constants:
                self._constants[name] = numpy_helper.to_array(tensor)
            return self._constants[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = Path(place["location"])
        data = self.path.parent / location.name
        if location.name != place["location"]:
            raise InputError(f"{self.path}: {name} lies in {place['location']!r}, which is no file beside the graph")
        try:
            return np.memmap(data, "<f4", "r", int(place.get("offset", 0)), tuple(tensor.dims))
        except (OSError, ValueError) as error:
            raise InputError(f"{data}: {name} can't be read ({error}): run export.py again") from None

    @cached_property
    def producers(self) -> dict[str, Operator]:
        """Tensor -> the operator that makes it."""
        return {name: operator for operator in self.operators for name in operator.outputs}

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Tensor -> index of the last operator that consumes it."""
        uses = {name: index for index, operator in enumerate(self.operators) for name in operator.inputs}
        return uses | {self.output: len(self.operators)}

    @cached_property
    def cuts(self) -> list[tuple[int, str]]:
        """Where a run can begin anew: (index of the next operator, the only tensor that lives then)."""
        found, live = [], {self.input}
        for index, operator in enumerate(self.operators):
            if len(live) == 1:
                found.append((index, next(iter(live))))
            live |= set(operator.outputs)
            live = {name for name in live if self.last_use.get(name, -1) > index}
        return found

    def consumers(self, tensor: str) -> Iterator[Operator]:
        """The operators that compute with a tensor, passive ones looked through."""
        for operator in self._direct_consumers.get(tensor, ()):
            if not operator.passive:
                yield operator
                continue
            for output in operator.outputs:
                yield from self.consumers(output)

    @cached_property
    def _direct_consumers(self) -> dict[str, list[Operator]]:
        found: dict[str, list[Operator]] = {}
        for operator in self.operators:
            for name in operator.inputs:
                found.setdefault(name, []).append(operator)
        return found

    @cached_property
    def range_group(self) -> dict[str, str]:
        """Tensor -> the representative of the tensors that it shares its range with.

        Passive operators keep the scale of what they move; the inputs of a Concat and its output have one, too. The
        compiler's exception (a chain that feeds only MatMuls while its source has other uses) occurs in no graph of
        this converter.
        """
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            while parent.setdefault(name, name) != name:
                name = parent[name]
            return name

        for operator in self.operators:
            first, *others = (*operator.inputs, *operator.outputs)
            for name in others if operator.passive or operator.op_type == "Concat" else ():
                parent[root(name)] = root(first)
        tensors = [self.input, *self.producers]
        return {name: root(name) for name in tensors}

    def macs(self, operator: Operator) -> int:
        """Multiply-accumulates of a Gemm or MatMul; 0 for the rest."""
        if operator.op_type not in ("Gemm", "MatMul"):
            return 0
        inner = self.shapes[operator.inputs[0]][-1]
        return prod(self.shapes[operator.outputs[0]]) * inner

    def elements(self, tensor: str) -> int:
        return prod(self.shapes[tensor])

    def block(self, tensor: str) -> int | None:
        """The number of the transformer block that a name belongs to."""
        parts = tensor.split(".")
        return int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit() else None

    @cached_property
    def block_outputs(self) -> dict[int, str]:
        """Block -> the tensor that it hands on: the residual stream after it."""
        return {block: name for _, name in self.cuts if (block := self.block(name)) is not None}
