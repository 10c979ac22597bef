"""Runs a network with torch, several steps at a time: in float, or quantised under a plan.

Tensors are kept in float as their operator computes them; each consumer takes them through its own codes. This is
the compiler's rule that a tensor has the type of the operator that consumes it, and gets a copy for each type.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qwen_vl_axera.quantization.functions import run_nodes
from qwen_vl_axera.quantization.kernels import Scale, Weight, linear, matmul
from qwen_vl_axera.quantization.network import Network, Operator
from qwen_vl_axera.quantization.plan import FLOAT, Plan

ELEMENTWISE = ("Add", "Mul", "Sub", "Div")  # whose constants are quantised over their own values
BATCH = 4  # steps that go through an operator before the next one: weights are read once for all of them

Watch = Callable[[str, Sequence[Tensor]], None]


def batches(steps: Iterable[np.ndarray], size: int = BATCH) -> Iterator[list[Tensor]]:
    """Steps as torch tensors, a few at a time."""
    remaining = iter(steps)
    while batch := [torch.from_numpy(np.ascontiguousarray(step)) for step in islice(remaining, size)]:
        yield batch


class WeightStore:
    """The S8 weights of a network, quantised when first used and kept."""

    def __init__(self, network: Network):
        self.network = network
        self._quantised: dict[str, Weight] = {}

    def float(self, name: str) -> Tensor:
        return as_tensor(self.network.constant(name))

    def s8(self, name: str) -> Weight:
        if name not in self._quantised:
            self._quantised[name] = Weight.of(self.float(name))
        return self._quantised[name]


class Execution:
    """Runs of one network.

    Args:
        network: the graph.
        plan: data types; None: activations in float.
        ranges: from `observers.calibrate`; needed with a plan.
        weights: shared between executions; None: weights in float.
        constants: without a plan, the data type of constants; None: in float.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan | None = None,
        ranges=None,
        weights: WeightStore | None = None,
        constants: str | None = None,
    ):
        self.network, self.plan, self.ranges, self.weights = network, plan, ranges, weights
        self.constants = constants
        self.clipped: dict[str, tuple[int, int]] = {}  # tensor -> values beyond its codes, values
        self._constants: dict[tuple[str, str], Tensor] = {}

    @torch.inference_mode()
    def run(
        self,
        steps: Sequence[Tensor],
        start: int = 0,
        keep: Collection[str] = (),
        watch: Watch | None = None,
        tensor: str | None = None,
    ) -> dict[str, list[Tensor]]:
        """Runs the operators from `start` on.

        Args:
            steps: the values of the one tensor that lives at `start` (`Network.cuts`), one per step.
            start: index of the first operator.
            keep: tensors to return besides the output.
            watch: called with each tensor that an operator other than a passive one makes.
            tensor: the name of that tensor; default: the graph's input.

        Returns:
            Tensor name -> its values, one per step.
        """
        network = self.network
        values = {tensor or network.input: list(steps)}
        kept = {name: values[name] for name in keep if name in values}
        for index in range(start, len(network.operators)):
            operator = network.operators[index]
            outputs = self._apply(operator, [values[name] for name in operator.inputs])
            for name, made in zip(operator.outputs, outputs, strict=True):
                if watch and not operator.passive:
                    watch(name, made)
                values[name] = made
                if name in keep:
                    kept[name] = made
            for name in operator.inputs:
                if network.last_use[name] == index:
                    values.pop(name, None)
        return kept | {network.output: self._output(values[network.output])}

    def _output(self, steps: list[Tensor]) -> list[Tensor]:
        """The graph's output leaves in the type of the operator that computes it."""
        name = self.network.output
        while (operator := self.network.producers[name]).passive:
            name = operator.inputs[0]
        return [self._rounded(operator, name, step) for step in steps]

    def _apply(self, operator: Operator, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
        """One operator over all steps: a list of steps for each output."""
        if operator.op_type == "Gemm":
            return [self._gemm(operator, inputs[0])]
        per_step = [self._step(operator, list(operands)) for operands in zip(*inputs, strict=True)]
        return [list(output) for output in zip(*per_step, strict=True)]

    def _step(self, operator: Operator, operands: list[Tensor]) -> list[Tensor]:
        if operator.passive or self.plan is None:
            constant = self._rounded_constant(operator) if self.constants and not operator.fused else self._constant
            return run_nodes(operator, operands, constant)
        if operator.op_type == "MatMul" and self.data_type(operator) != FLOAT:
            scales = [self.scale(operator, name) for name in operator.inputs]
            for name, scale, operand in zip(operator.inputs, scales, operands, strict=True):
                self._count(name, scale, operand)
            return [matmul(*operands, scales)]
        operands = [self._rounded(operator, name, value) for name, value in zip(operator.inputs, operands, strict=True)]
        return run_nodes(operator, operands, self._constant if operator.fused else self._rounded_constant(operator))

    def _gemm(self, operator: Operator, steps: list[Tensor]) -> list[Tensor]:
        rows = torch.cat(steps) if len(steps) > 1 else steps[0]
        names = operator.nodes[0].input
        bias = as_tensor(self.network.constant(names[2])) if len(names) > 2 else None
        if self.weights is None:
            made = functional.linear(rows, as_tensor(self.network.constant(operator.weight)), bias)
        elif self.plan is None or self.data_type(operator) == FLOAT:
            made = functional.linear(rows, self.weights.s8(operator.weight).values, bias)
        else:
            name = operator.inputs[0]
            scale = self.scale(operator, name)
            self._count(name, scale, rows)
            made = linear(rows, scale, self.weights.s8(operator.weight), bias)
        return list(made.split([len(step) for step in steps]))

    def data_type(self, operator: Operator) -> str:
        return self.plan.types[operator.name]

    def scale(self, operator: Operator, tensor: str) -> Scale:
        """With which an operator takes a tensor."""
        return Scale.of(*self.ranges.of(tensor), self.data_type(operator), operand=operator.op_type == "MatMul")

    def _rounded(self, operator: Operator, tensor: str, values: Tensor) -> Tensor:
        if self.plan is None or self.data_type(operator) == FLOAT:
            return values
        scale = self.scale(operator, tensor)
        self._count(tensor, scale, values)
        return scale.rounded(values)

    def _count(self, tensor: str, scale: Scale, values: Tensor) -> None:
        """How many values saturate: beyond the outermost codes by more than half a step."""
        low, high = (limit + sign * scale.step / 2 for limit, sign in zip(scale.range, (-1, 1), strict=True))
        smallest, largest = torch.aminmax(values)
        beyond = 0 if smallest >= low and largest <= high else int(((values < low) | (values > high)).sum())
        clipped, total = self.clipped.get(tensor, (0, 0))
        self.clipped[tensor] = clipped + beyond, total + values.numel()

    def _constant(self, name: str) -> Tensor:
        return as_tensor(self.network.constant(name))

    def _rounded_constant(self, operator: Operator) -> Callable[[str], Tensor]:
        """Constants in an operator's type: a factor of a Mul is quantised over its own values."""

        def constant(name: str) -> Tensor:
            key = name, self.constants if self.plan is None else self.data_type(operator)
            if key not in self._constants:
                values = self._constant(name)
                if values.is_floating_point() and key[1] != FLOAT and operator.op_type in ELEMENTWISE:
                    values = constant_scale(values, key[1]).rounded(values)
                self._constants[key] = values
            return self._constants[key]

        return constant


def constant_scale(values: Tensor, data_type: str) -> Scale:
    """Of a constant of an element-wise operator: over its own values, and fixed before ranges are taken."""
    return Scale.of(float(values.min()), float(values.max()), data_type)


def as_tensor(array: np.ndarray) -> Tensor:
    """A constant as a tensor; a mapped one is read while it is used, and never written."""
    if not array.flags.writeable:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it could write; nothing here does
            return torch.from_numpy(array)
    return torch.from_numpy(array)
