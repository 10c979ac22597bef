"""A second simulation of the compiled tower, written apart from the library's: ONNX's own reference operators in
float64, node by node, with fake quantisation between them.

It knows the graph by the exporter's names (an RMSNorm is what lies in `norm1`), the library by patterns; it types and
scales tensors walking back from each operand, the library with a plan and groups. The rules' mistakes are switches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

MOVES = {"Reshape", "Transpose", "Split", "Gather"}


@dataclass(frozen=True)
class Rules:
    """The compiler's rules; each switch plants a mistake."""

    by_producer: bool = False  # a tensor has the type of the operator that makes it
    weights_per_tensor: bool = False
    affine_operands: bool = False  # of MatMuls between activations
    ranges_not_shared: bool = False  # each part of a Split has a range of its own
    fused: bool = True  # norms, SiLU and GELU
    quantise: bool = True  # activations at all


@dataclass
class Interpreter:
    """Runs a graph.

    Args:
        path: the graph, its data beside it.
        data_type: gives the type ("U8", "U16") of a node.
        rules: those of the compiler, or with mistakes.
    """

    path: str
    data_type: Callable[[onnx.NodeProto], str]
    rules: Rules = Rules()
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        model = onnx.load(self.path)
        self.nodes = list(model.graph.node)
        self.output = model.graph.output[0].name
        self.constants = {}
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            self.constants[tensor.name] = values.astype(np.float64) if values.dtype == np.float32 else values
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.evaluators = {node.name: ReferenceEvaluator(node) for node in self.nodes}

    def calibrate(self, samples: Sequence[np.ndarray]) -> None:
        for sample in samples:
            for name, values in self._run(sample, lambda node, name, values: values).items():
                low, high = self.limits.get(name, (0.0, 0.0))
                self.limits[name] = min(low, values.min()), max(high, values.max())

    def __call__(self, step: np.ndarray) -> np.ndarray:
        values = self._run(step, self._operand)
        if not self.rules.quantise:
            return values[self.output]
        maker = self.maker[self.output]
        while maker.op_type in MOVES:
            maker = self.maker[maker.input[0]]
        return self._round(maker.output[0], self.data_type(maker), False, values[self.output])

    def _run(self, step: np.ndarray, operand) -> dict[str, np.ndarray]:
        values = {"hidden_states": step.astype(np.float64)}
        for node in self.nodes:
            feeds = {}
            for name in node.input:
                given = values[name] if name in values else self.constants[name]
                floating = np.asarray(given).dtype == np.float64
                feeds[name] = operand(node, name, given) if floating else given
            made = self.evaluators[node.name].run(None, feeds)
            values |= {name: np.asarray(value, np.float64) for name, value in zip(node.output, made, strict=True)}
        return values

    def _operand(self, node: onnx.NodeProto, name: str, values: np.ndarray) -> np.ndarray:
        """What a node sees of an operand."""
        if node.op_type == "Gemm" and name == node.input[1]:
            return s8(values, self.rules.weights_per_tensor)
        constant = name in self.constants
        if not self.rules.quantise or node.op_type in MOVES or (node.op_type == "Gemm" and constant):
            return values
        if self._inside(node) and (constant or self._inside(self.maker.get(name)) == self._inside(node)):
            return values
        if constant:
            return (
                values if node.op_type in ("Pow",) else fake(values, values.min(), values.max(), self.data_type(node))
            )
        typed_by = self._typed_by(node, name)
        symmetric = node.op_type == "MatMul" and not self.rules.affine_operands
        return self._round(name, self.data_type(typed_by), symmetric, values)

    def _typed_by(self, node: onnx.NodeProto, name: str) -> onnx.NodeProto:
        if not self.rules.by_producer:
            return node
        while name in self.maker:
            node = self.maker[name]
            if node.op_type not in MOVES:
                break
            name = node.input[0]
        return node

    def _inside(self, node: onnx.NodeProto | None) -> str:
        """Which fused operator a node is part of."""
        if node is None or not self.rules.fused:
            return ""
        *path, leaf = node.name.split(".")
        parent = path[-1] if path else ""
        if parent in ("norm1", "norm2", "ln_q") or ".".join(path) == "merger.mlp.1":
            return ".".join(path)
        return ".".join(path) + ".silu" if parent == "mlp" and leaf in ("sigmoid", "mul") else ""

    def _round(self, name: str, data_type: str, symmetric: bool, values: np.ndarray) -> np.ndarray:
        return fake(values, *self._limits(name), data_type, symmetric)

    def _limits(self, name: str) -> tuple[float, float]:
        """A tensor's range: that of what moves lead back to, and of a Concat that follows."""
        if self.rules.ranges_not_shared:
            return self.limits[name]
        while name in self.maker and self.maker[name].op_type in MOVES:
            name = self.maker[name].input[0]
        pending, found = [name], {name}
        while pending:
            for node in self.readers.get(pending.pop(), []):
                if node.op_type in MOVES or node.op_type == "Concat":
                    new = set(node.output) - found
                    found |= new
                    pending += new
        lows, highs = zip(*(self.limits[item] for item in found), strict=True)
        return min(lows), max(highs)


def fake(values: np.ndarray, low: float, high: float, data_type: str, symmetric: bool = False) -> np.ndarray:
    """Quantised and back."""
    levels = {"U8": 255, "U16": 65535}[data_type]
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        step = float(np.float32(max(-low, high)) / np.float32(levels / 2)) or 1.0
        return np.clip(np.rint(values / step), -(levels + 1) // 2, levels // 2) * step
    step = float(np.float32((high - low) / levels)) or 1.0  # stored in float32, and the zero point counted in it
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, levels) - zero) * step


def s8(weights: np.ndarray, per_tensor: bool) -> np.ndarray:
    """A Gemm's weight (out, in) in S8 and back: all of it in float32, as the compiler divides."""
    weights = weights.astype(np.float32)
    largest = np.abs(weights).max() if per_tensor else np.abs(weights).max(1, keepdims=True)
    step = np.where(largest == 0, np.float32(1), largest / np.float32(127.5))
    return (np.clip(np.rint(weights / step), -128, 127) * step).astype(np.float64)
