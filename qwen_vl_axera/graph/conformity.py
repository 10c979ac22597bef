"""Is a graph what this converter makes of this checkpoint? Every node, constant and weight, by name.

Rounding hides a small mistake from any comparison of answers; here nothing is rounded: the graph is traced anew and
its weights are made anew from the checkpoint, and both must be the same.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import GraphSpec, data_file
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import require

Weights = Iterable[tuple[str, np.ndarray]]


def structure_problems(checkpoint: Checkpoint, model: onnx.ModelProto, spec: GraphSpec) -> Iterator[str]:
    """Where a graph differs from one that is traced now: interface, nodes, constants, where its weights lie.

    Args:
        checkpoint: the model.
        model: the graph, without its external data.
        spec: what it was exported for.

    Yields:
        One line for each difference; of the nodes only the first one's.
    """
    from qwen_vl_axera.graph.trace import meta_module, place_weights, trace

    tower, config = checkpoint.tower, checkpoint.config.vision
    module = meta_module(tower, config, tower.layout(config, spec.size, checkpoint), spec)
    fresh = trace(module, place_weights(tower, config, module, spec, data_file(checkpoint.name)), spec, {}).graph
    graph = model.graph
    for what, ours, theirs in (("input", fresh.input, graph.input), ("output", fresh.output, graph.output)):
        if list(ours) != list(theirs):
            yield f"{what} is {signature(theirs)}, expected {signature(ours)}"
    yield from node_problems(list(fresh.node), list(graph.node))
    expected = {tensor.name: tensor for tensor in fresh.initializer}
    found = {tensor.name: tensor for tensor in graph.initializer}
    for name in sorted(expected.keys() ^ found.keys()):
        yield f"constant {name} {'is missing' if name in expected else 'should not be there'}"
    for name, tensor in expected.items():
        if name in found and found[name] != tensor:
            yield from constant_problems(tensor, found[name])


def node_problems(expected: list[onnx.NodeProto], found: list[onnx.NodeProto]) -> Iterator[str]:
    """The first node that is another one than expected."""
    for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
            yield f"node {ours.name}: {describe(theirs, ours)}, expected {describe(ours, theirs)}"
            return
    if len(expected) != len(found):
        yield f"{len(found)} nodes, expected {len(expected)}"


def describe(node: onnx.NodeProto, other: onnx.NodeProto) -> str:
    """What of a node is not as in the other one."""
    for label, value in (("operator", "op_type"), ("inputs", "input"), ("outputs", "output"), ("name", "name")):
        mine, theirs = getattr(node, value), getattr(other, value)
        if mine != theirs:
            return f"{label} {mine if isinstance(mine, str) else list(mine)}"
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return f"attributes {found}"


def constant_problems(expected: onnx.TensorProto, found: onnx.TensorProto) -> Iterator[str]:
    """How a constant differs. A weight that lies in the graph file itself is left to `weight_problems`."""
    shapes = list(found.dims), list(expected.dims)
    if shapes[0] != shapes[1] or found.data_type != expected.data_type:
        types = [onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in (found, expected)]
        yield f"constant {expected.name} is {types[0]} {shapes[0]}, expected {types[1]} {shapes[1]}"
    elif expected.external_data and found.external_data:
        yield f"constant {expected.name} lies at {place_of(found)}, expected {place_of(expected)}"
    elif not expected.external_data:
        ours, theirs = (numpy_helper.to_array(tensor) for tensor in (expected, found))
        if difference := value_difference(ours, theirs):
            yield f"constant {expected.name}: {difference}"


def weight_problems(weights: Weights, model: onnx.ModelProto, directory: Path) -> Iterator[str]:
    """Weights of a graph that are not those made of the checkpoint now, one line each.

    Args:
        weights: name and float32 values, read one at a time.
        model: the graph, without its external data.
        directory: where its data file is.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    with progress.stage("compare weights") as stage:
        for name, expected in weights:
            if name in tensors:
                found = read_weight(tensors[name], directory)
                difference = value_difference(expected.reshape(-1), found.reshape(-1), expected.shape)
                stage.advance(expected.nbytes)
            else:
                difference = "is missing"
            if difference:
                yield f"weight {name}: {difference}"


def read_weight(tensor: onnx.TensorProto, directory: Path) -> np.ndarray:
    """A weight's values from the data file, or from the graph file where they lie there.

    Raises:
        InputError: the data file is not there, or ends too early.
    """
    if not tensor.external_data:
        return numpy_helper.to_array(tensor)
    place = place_of(tensor)
    path, count = Path(directory) / Path(str(place["location"])).name, int(place["length"]) // 4
    with open_file(require(path, "export.py")) as file:
        file.seek(int(place["offset"]))
        values = np.fromfile(file, "<f4", count)
    if len(values) != count:
        raise InputError(f"{path}: ends inside {tensor.name}: run export.py again")
    return values


def place_of(tensor: onnx.TensorProto) -> dict[str, Any]:
    """`location`, `offset` and `length` of a tensor's external data."""
    return {entry.key: entry.value for entry in tensor.external_data}


def value_difference(expected: np.ndarray, found: np.ndarray, shape: tuple[int, ...] | None = None) -> str:
    """How many values differ, by how much, and where first; empty where none does."""
    if found.shape != expected.shape:
        return f"{found.size} values, expected {expected.size}"
    if np.array_equal(expected, found):
        return ""
    other = expected != found
    first = np.unravel_index(int(other.reshape(-1).argmax()), shape or expected.shape)
    with np.errstate(all="ignore"):
        largest = np.abs(expected[other].astype(np.float64) - found[other].astype(np.float64)).max()
    return f"{other.sum()} of {other.size} values differ, by up to {largest:.2g}, first at {list(map(int, first))}"


def signature(values: Iterable[onnx.ValueInfoProto]) -> str:
    """Names, types and shapes of inputs or outputs."""
    kinds = [(value.name, value.type.tensor_type) for value in values]
    return ", ".join(
        f"{name} {onnx.TensorProto.DataType.Name(kind.elem_type).lower()} {[dim.dim_value for dim in kind.shape.dim]}"
        for name, kind in kinds
    )
