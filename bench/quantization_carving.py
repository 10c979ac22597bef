"""Spiky hidden units of an MLP in layers of their own, which alone have 16 bits: exact in float, another graph.

A block's gate, up and down_proj become two of each, over the carved units and over the rest, and one Add more: what
down_proj gives is the sum of both. Only for comparison (bench/quantization_study.py); the exporter does not carve.
"""

import sys
from collections.abc import Mapping, MutableSequence, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera.quantization.network import Network

REST, CARVED = ".rest", ".carved"  # ends of names: the smaller part is new, the rest keeps its layers' names


def spikiest(hidden: np.ndarray, count: int) -> np.ndarray:
    """The hidden units that reach furthest, in order: `count` columns of (patches, units)."""
    return np.sort(np.argsort(np.abs(hidden).max(0))[-count:])


def carve(graph: Path, target: Path, units: Mapping[int, np.ndarray]) -> Path:
    """Writes a graph over the same data file with some units of some blocks apart.

    Args:
        graph: `NAME_vision.onnx`.
        target: beside it.
        units: block -> the hidden units to carve.
    """
    network, nodes = Network(graph), []
    model = network.model
    for node in model.graph.node:
        mlp = node.name.rsplit(".", 1)[0]
        block = next((block for block in units if mlp == f"blocks.{block}.mlp"), None)
        if block is None:
            nodes.append(node)
            continue
        rest = np.setdiff1d(np.arange(network.shapes[f"{mlp}.up_proj.weight"][0]), units[block])
        nodes += [_part(network, node, rest, REST), _part(network, node, units[block], CARVED)]
        if node.name.endswith("down_proj"):
            parts = [part.output[0] for part in nodes[-2:]]
            nodes.append(helper.make_node("Add", parts, list(node.output), f"{node.name}.sum"))
    _replace(model.graph.node, nodes)
    read = {name for node in nodes for name in node.input}
    _replace(model.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in read])
    onnx.save(model, target)
    return target


def _part(network: Network, node: onnx.NodeProto, units: np.ndarray, end: str) -> onnx.NodeProto:
    """A node over some of the units; its constants and the shape of its output are added to the graph."""
    graph, mlp, last = network.model.graph, node.name.rsplit(".", 1)[0], node.name.endswith("down_proj")
    part = onnx.NodeProto()
    part.CopyFrom(node)
    part.name = node.name + (CARVED if end == CARVED else "")
    for place, name in enumerate(node.input):
        if name.startswith(mlp):
            part.input[place] = name + end
            if node.op_type == "Gemm" and place:
                values = network.constant(name)
                values = values[units] if not last else values[:, units] if place == 1 else values
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name + end))
    if last and end == CARVED:
        del part.input[2]  # one bias for both parts
    part.output[0] = node.output[0] + end
    rows, columns = network.shapes[node.output[0]]
    shape = (rows, columns if last else len(units))
    graph.value_info.append(helper.make_tensor_value_info(part.output[0], onnx.TensorProto.FLOAT, shape))
    return part


def _replace(field: MutableSequence, values: Sequence) -> None:
    del field[:]
    field.extend(values)
