"""What differs between a graph and the one that this converter makes now, by name."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qwen_vl_axera.contract import data_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.conformity import (
    fresh_model,
    read_weight,
    structure_problems,
    value_difference,
    value_problems,
    weight_problems,
)
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.graph.files import load_graph, read_spec

FORMS = [
    {},
    {"input": "normalized"},
    {"window_mode": "dense"},
    {"opset": 18},
]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("conformity")
    return export_vision(tiny, workdir, sizes=[(140, 252)])[0].path


@pytest.fixture
def graph(exported):
    model = load_graph(exported)
    return model, read_spec(model, exported)


def made(tiny, spec):
    return tiny.tower.weights(tiny, tiny.config.vision, spec.input)


def problems_of(checkpoint, model, spec):
    """Of structure; where there are none, of values."""
    fresh = fresh_model(checkpoint, spec)
    return list(structure_problems(fresh, model)) or list(value_problems(fresh, model))


@pytest.mark.parametrize("form", FORMS)
def test_an_export_conforms(tiny, tmp_path, form):
    for item in export_vision(tiny, tmp_path, sizes=[(56, 84), (140, 252)], **form):
        model = load_graph(item.path)
        spec = read_spec(model, item.path)
        assert spec == item.spec
        assert problems_of(tiny, model, spec) == []
        assert list(weight_problems(made(tiny, spec), model, tmp_path)) == []


def change_constant(model, name, change):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith(name))
    value = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(value), tensor.name))


def node(model, name):
    return next(node for node in model.graph.node if node.name == name)


def attribute_changed(model):
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 1


DAMAGES = {
    "an operator": (
        lambda m: setattr(node(m, "merger.mlp.1.erf"), "op_type", "Tanh"),
        "operator Tanh, expected operator",
    ),
    "an input": (lambda m: node(m, "blocks.1.mlp.up_proj").input.pop(), "node blocks.1.mlp.up_proj: inputs ["),
    "an attribute": (attribute_changed, "attributes {'axis': 1}, expected attributes {'axis': -1}"),
    "a node more": (lambda m: m.graph.node.add(op_type="Identity", input=["a"], output=["b"]), "nodes, expected"),
    "a constant's value": (lambda m: change_constant(m, "rotary.cos", lambda v: v * 2), "constant rotary.cos: "),
    "a constant's shape": (
        lambda m: change_constant(m, "reading_order", lambda v: v[:-1]),
        "int64 [44], expected int64",
    ),
    "a constant's type": (
        lambda m: change_constant(m, "rotary.cos", lambda v: v.astype(np.float64)),
        "constant rotary.cos is double",
    ),
    "a constant missing": (lambda m: m.graph.initializer.pop(), "is missing"),
    "the output's shape": (
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 44),
        "output is hidden_states_out float [44, 48], expected hidden_states_out float [45, 48]",
    ),
    "the opset": (
        lambda m: setattr(m.opset_import[0], "version", 13),
        "version: 13",
    ),
    "the format's version": (lambda m: setattr(m, "ir_version", 3), "ir_version is 3, expected"),
    "a function": (lambda m: m.functions.add(name="Gemm"), "functions is "),
    "a constant twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "constants are given twice"),
    "where a weight lies": (
        lambda m: setattr(
            next(t for t in m.graph.initializer if t.name == "merger.mlp.2.bias").external_data[1], "value", "0"
        ),
        "constant merger.mlp.2.bias lies at",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_difference_is_named(tiny, graph, damage):
    model, spec = graph
    change, words = DAMAGES[damage]
    change(model)
    problems = problems_of(tiny, model, spec)
    assert any(words in problem for problem in problems), problems


def test_another_spec_is_another_graph(tiny, graph):
    model, spec = graph
    assert problems_of(tiny, model, replace(spec, size=(56, 84)))
    assert problems_of(tiny, model, replace(spec, uint8=True))


def test_a_weight_is_compared_where_it_lies(tiny, graph, exported, tmp_path):
    """In the data file, or in the graph file; the message counts and places what differs."""
    model, spec = graph
    name = "blocks.1.mlp.down_proj.weight"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value = read_weight(tensor, exported.parent).reshape(tensor.dims).copy()
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    assert list(weight_problems(made(tiny, spec), model, exported.parent)) == []
    assert problems_of(tiny, model, spec) == []
    value[3, 5] += 0.25
    value[4, 1] += 0.125
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    (problem,) = weight_problems(made(tiny, spec), model, exported.parent)
    assert problem == f"weight {name}: 2 of {value.size} values differ, by up to 0.25, first at [3, 5]"


def test_a_data_file_that_is_not_whole(tiny, graph, exported, tmp_path):
    model, spec = graph
    with pytest.raises(InputError, match="is missing: run export"):
        list(weight_problems(made(tiny, spec), model, tmp_path))
    data = (exported.parent / data_file(tiny.name)).read_bytes()
    (tmp_path / data_file(tiny.name)).write_bytes(data[:-8])
    with pytest.raises(InputError, match=r"ends inside merger\.mlp\.2\.bias"):
        list(weight_problems(made(tiny, spec), model, tmp_path))


def test_values_that_are_not_numbers_differ():
    expected = np.ones((2, 3), np.float32)
    assert value_difference(expected, expected.copy()) == ""
    broken = expected.copy()
    broken[1, 2] = np.nan
    assert value_difference(expected, broken) == "1 of 6 values differ, by up to nan, first at [1, 2]"
    assert value_difference(expected, expected[:1]) == "3 values, expected 6"


def test_a_graph_without_the_weight(tiny, graph, exported):
    model, spec = graph
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "merger.mlp.2.bias"]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert list(weight_problems(made(tiny, spec), model, exported.parent)) == ["weight merger.mlp.2.bias: is missing"]
