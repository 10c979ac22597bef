"""The linter: each rule is shown to bite; and what is counted in a graph."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qwen_vl_axera.contract import WINDOW_MODES, GraphSpec
from qwen_vl_axera.graph.operators import lint, statistics
from qwen_vl_axera.graph.trace import meta_module, place_weights, trace
from qwen_vl_axera.towers.qwen2_5_vl.module import GroupAttention, RMSNorm


def tiny_model(*nodes, initializers=(), shape=(1, 4), output=(1, 4), opset=17, values=()):
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
            value_info=list(values),
        ),
        opset_imports=[helper.make_operatorsetid("", opset)],
    )


def test_a_good_graph_passes_the_linter():
    assert lint(tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="sqrt"))) == []


ONES = np.ones((1, 4), np.float32)
BAD = {
    "must compute": tiny_model(helper.make_node("Transpose", ["x"], ["y"], name="bad", perm=[1, 0]), output=(4, 1)),
    "be an initializer": tiny_model(
        helper.make_node("Constant", [], ["c"], name="bad", value=numpy_helper.from_array(np.float32([[2.0]]))),
        helper.make_node("Add", ["x", "c"], ["y"], name="add"),
    ),
    "two dimensions": tiny_model(helper.make_node("Add", ["x", "x"], ["y"], name="bad"), shape=(4,), output=(4,)),
    "operator list": tiny_model(helper.make_node("Einsum", ["x"], ["y"], name="bad", equation="ij->ij")),
    "reported broken": tiny_model(helper.make_node("Squeeze", ["x"], ["y"], name="bad")),
    "indices must": tiny_model(
        helper.make_node("Gather", ["x", "i"], ["y"], name="bad"),
        initializers=[("i", np.zeros((1, 1), np.int64))],
    ),
    "exponent must": tiny_model(helper.make_node("Pow", ["x", "x"], ["y"], name="bad")),
    "alpha and beta": tiny_model(
        helper.make_node("Gemm", ["x", "w"], ["y"], name="bad", alpha=0.5),
        initializers=[("w", np.eye(4, dtype=np.float32))],
    ),
    "casts only": tiny_model(helper.make_node("Cast", ["x"], ["y"], name="bad", to=TensorProto.FLOAT16)),
    "axes must": tiny_model(helper.make_node("ReduceMean", ["x"], ["y"], name="bad")),
    "exactly 1.0": tiny_model(helper.make_node("Mul", ["x", "one"], ["y"], name="bad"), initializers=[("one", ONES)]),
    "should have been folded": tiny_model(
        helper.make_node("Sqrt", ["one"], ["y"], name="bad"), initializers=[("one", ONES)]
    ),
    "infinite or NaN": tiny_model(
        helper.make_node("Add", ["x", "m"], ["y"], name="bad"), initializers=[("m", ONES * -np.inf)]
    ),
    "breaks the board": tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="a/bad")),
    "must be unique": tiny_model(helper.make_node("Sqrt", ["x"], ["y"])),
    "opset 11": tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="bad"), opset=11),
    "no static shape": tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="bad"), output=("n", 4)),
    "rank 5": tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="bad"), output=(1, 1, 1, 1, 4)),
    "rank 0 crashes": tiny_model(helper.make_node("Sqrt", ["x"], ["y"], name="bad"), output=()),
    "has no shape": tiny_model(
        helper.make_node("Sqrt", ["x"], ["hidden"], name="bad"),
        helper.make_node("Sqrt", ["hidden"], ["y"], name="b"),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_the_linter_refuses(message):
    problems = lint(BAD[message])
    assert any(message in problem for problem in problems), problems
    named = [problem for problem in problems if message in problem]
    assert any(word in named[0] for word in ("bad", "opset", "output y", "nodes are named")), named


def meta_tower(tiny, size, **form):
    """The tower's module for a size, and where its weights will lie."""
    config, spec = tiny.config.vision, GraphSpec("qwen2_5_vl", size, **form)
    module = meta_module(tiny.tower, config, tiny.tower.layout(config, size), spec)
    return module, place_weights(tiny.tower, config, module, spec, "x.data"), spec


def test_statistics_count_movement():
    model = tiny_model(helper.make_node("Transpose", ["x"], ["y"], name="t", perm=[1, 0]), output=(4, 1))
    figures = {"nodes": 1, "reshapes": 0, "moved_bytes": 16, "multiplications": 0}
    assert statistics(model) == figures | {"op.Transpose": 1}


@pytest.mark.parametrize("size", [(56, 56), (140, 252)])
def test_statistics_count_multiplications(tiny, size):
    """By hand: all linear layers over S patches, scores and sums over each window."""
    module, data, spec = meta_tower(tiny, size)
    config, layout = tiny.config.vision, module.layout
    model = trace(module, data, spec, {})
    rows = {"merger": layout.num_tokens}
    matrices = [(name, shape) for name, shape in data.shapes.items() if len(shape) == 2]
    expected = sum(rows.get(name.split(".")[0], layout.num_patches) * a * b for name, (a, b) in matrices)
    whole = len(config.fullatt_block_indexes)
    pairs = (config.depth - whole) * sum(group.count * group.size**2 for group in layout.groups)
    pairs += whole * layout.num_patches**2
    assert statistics(model)["multiplications"] == expected + 2 * config.hidden_size * pairs


def test_every_layer_is_one_node(tiny):
    """A linear layer is a Gemm with its bias; an attention two MatMuls and a Softmax; a mask needs no more windows."""
    module, data, spec = meta_tower(tiny, (308, 308))
    figures = statistics(trace(module, data, spec, {}))
    layers = [type(layer) for layer in module.modules()]
    assert figures["op.Gemm"] == layers.count(nn.Linear)
    assert figures["op.Softmax"] == layers.count(GroupAttention) == figures["op.MatMul"] / 2
    assert figures["op.ReduceMean"] == layers.count(RMSNorm)
    assert figures["op.Erf"] == 1 and "op.Neg" not in figures and "op.Cast" not in figures


def test_grouped_windows_of_one_size_need_fewer_nodes_than_a_mask(tiny):
    nodes = {}
    for mode in WINDOW_MODES:
        module, data, spec = meta_tower(tiny, (448, 448), window_mode=mode)
        nodes[mode] = statistics(trace(module, data, spec, {}))["nodes"]
    assert nodes["grouped"] < nodes["dense"]
