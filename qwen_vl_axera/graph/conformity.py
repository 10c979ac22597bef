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


def fresh_model(checkpoint: Checkpoint, spec: GraphSpec) -> onnx.ModelProto:
    """The graph that export.py would write now, without its metadata."""
    from qwen_vl_axera.graph.trace import meta_module, place_weights, trace

    tower, config = checkpoint.tower, checkpoint.config.vision
    module = meta_module(tower, config, tower.layout(config, spec.size, checkpoint), spec)
    return trace(module, place_weights(tower, config, module, spec, data_file(checkpoint.name)), spec, {})


def structure_problems(fresh: onnx.ModelProto, model: onnx.ModelProto) -> Iterator[str]:
    """Where a graph is built otherwise than one that is traced now: versions, interface, nodes, kinds of constants.

    A graph without such a difference takes the time and the memory that ours takes.

    Args:
        fresh: from `fresh_model`.
        model: the graph, without its external data.

    Yields:
        One line for each difference; of the nodes only the first one's.
    """
    for name in ("ir_version", "opset_import", "functions"):
        ours, theirs = (" ".join(str(getattr(one, name)).split()) for one in (fresh, model))
        if ours != theirs:
            yield f"{name} is {theirs[:100]}, expected {ours}"
    ours, graph = fresh.graph, model.graph
    for what, one, other in (("input", ours.input, graph.input), ("output", ours.output, graph.output)):
        if list(one) != list(other):
            yield f"{what} is {signature(other)}, expected {signature(one)}"
    yield from node_problems(list(ours.node), list(graph.node))
    expected = {tensor.name: tensor for tensor in ours.initializer}
    found = {tensor.name: tensor for tensor in graph.initializer}
    if len(found) < len(graph.initializer) or graph.sparse_initializer:
        yield "constants are given twice, or sparse"
    for name in sorted(expected.keys() ^ found.keys()):
        yield f"constant {name} {'is missing' if name in expected else 'should not be there'}"
    for name, tensor in expected.items():
        if name in found:
            yield from constant_problems(tensor, found[name])


def value_problems(fresh: onnx.ModelProto, model: onnx.ModelProto) -> Iterator[str]:
    """Constants of a graph that hold other values than one that is traced now; weights are left to `weight_problems`.

    Args:
        fresh: from `fresh_model`.
        model: a graph without `structure_problems`.
    """
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in fresh.graph.initializer:
        if not tensor.external_data and found[tensor.name] != tensor:
            ours, theirs = (numpy_helper.to_array(one) for one in (tensor, found[tensor.name]))
            if difference := value_difference(ours, theirs):
                yield f"constant {tensor.name}: {difference}"


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
    """How a constant is another kind of array. A weight may lie in the graph file itself."""
    shapes = list(found.dims), list(expected.dims)
    if shapes[0] != shapes[1] or found.data_type != expected.data_type:
        types = [onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in (found, expected)]
        yield f"constant {expected.name} is {types[0]} {shapes[0]}, expected {types[1]} {shapes[1]}"
    elif expected.external_data and found.external_data:
        if place_of(expected) != place_of(found):
            yield f"constant {expected.name} lies at {place_of(found)}, expected {place_of(expected)}"
    elif found.external_data:
        yield f"constant {expected.name} lies at {place_of(found)}, expected it in the graph file"


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


def data_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files beside a graph that hold its weights."""
    places = (place_of(tensor).get("location") for tensor in model.graph.initializer if tensor.external_data)
    return [Path(path).parent / Path(str(name)).name for name in dict.fromkeys(places)]


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
