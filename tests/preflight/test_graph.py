"""Graphs that the compiler would not take, each found by its own check."""

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from qwen_vl_axera.made_from import made_from
from tests.preflight.state import truncate


def edit_graph(change):
    def breaking(state):
        model = onnx.load(state.graph, load_external_data=False)
        change(model)
        state.graph.write_bytes(model.SerializeToString())

    return breaking


def set_metadata(key, value):
    def change(model):
        for entry in model.metadata_props:
            if entry.key == f"qwen_vl_axera.{key}":
                entry.value = value

    return edit_graph(change)


def rename(model):
    for node in model.graph.node:
        node.input[:] = ["x" if name == "hidden_states" else name for name in node.input]
    model.graph.input[0].name = "x"


def clear_metadata(model):
    del model.metadata_props[:]


def other_weights(state):
    data = state.workdir / "tiny_vision.onnx.data"
    values = np.fromfile(data, np.float32)
    (values * np.float32(1.001)).tofile(data)


BROKEN_GRAPHS = {
    "missing": (lambda state: state.graph.unlink(), {"graph": "is missing"}),
    "empty": (lambda state: state.graph.write_bytes(b""), {"graph": "not an ONNX model"}),
    "truncated": (lambda state: truncate(state.graph), {"graph": "not an ONNX model"}),
    "uint8 variant": (
        lambda state: shutil.copy(state.workdir / "tiny_vision_uint8.onnx", state.graph),
        {"graph input": "takes uint8"},
    ),
    "an operator that AX650 lacks": (
        edit_graph(lambda model: setattr(model.graph.node[3], "op_type", "Einsum")),
        {"graph operators": "not in the operator list of AX650"},
    ),
    "input renamed": (edit_graph(rename), {"graph input": "is x float [1, 3, 48, 392], expected hidden_states"}),
    "output renamed": (
        edit_graph(lambda model: setattr(model.graph.output[0], "name", "y")),
        {"graph output": "expected hidden_states_out float [12, 48]"},
    ),
    "another size": (set_metadata("size", "[112, 112]"), {"graph input": "expected hidden_states float [1, 3, 64,"}),
    "another checkpoint": (set_metadata("checkpoint", '"other"'), {"graph metadata": "made from other, not tiny"}),
    "another mean": (set_metadata("mean", "[0.5, 0.5, 0.5]"), {"graph metadata": "mean is [0.5, 0.5, 0.5]"}),
    "foreign graph": (edit_graph(clear_metadata), {"graph": "no vision graph of export.py"}),
    "metadata that is no JSON": (set_metadata("size", "{"), {"graph": "not readable as JSON"}),
    "weights absent": (
        lambda state: (state.workdir / "tiny_vision.onnx.data").unlink(),
        {"graph weights": "is not beside"},
    ),
    "weights truncated": (
        lambda state: truncate(state.workdir / "tiny_vision.onnx.data"),
        {"graph weights": "it is truncated"},
    ),
    "weights of another model": (other_weights, {"graph weights": "are not this checkpoint's"}),
    "weights elsewhere": (
        edit_graph(lambda model: [
            setattr(entry, "value", "../tiny_vision.onnx.data")
            for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
        ]),
        {"graph weights": "is not beside"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_GRAPHS)
def test_broken_graphs(state, case):
    breaking, expected = BROKEN_GRAPHS[case]
    breaking(state)
    found = {name: text for name, text in state.bad().items() if name.startswith("graph")}
    for name, words in expected.items():
        assert words in found[name]
    # Another size changes both ends; an output that no node makes has no shape, either.
    assert found.keys() - expected.keys() <= {"graph output", "graph operators"}


def test_a_bit_that_changed_since_the_gate_passed_is_seen(state, monkeypatch):
    """Nothing but its hash tells such weights from those that passed."""
    data = state.graph.with_name("tiny_vision.onnx.data")
    about = made_from([state.graph, data], state.workdir)
    verdict = SimpleNamespace(made_from=about, holds=True)
    monkeypatch.setattr("qwen_vl_axera.fidelity.record.read_fidelity", lambda path: verdict)

    def check():
        return next(check for check in state.checks() if check.name == "fidelity")

    assert check().status == "ok"
    verdict.holds = False
    assert (check().status, check().detail) == ("failed", "the graph did not pass")
    verdict.holds = True
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert (check().status, check().detail) == ("failed", "tiny_vision.onnx.data has changed since it was tested")
    verdict.made_from = {"tiny_vision.onnx": about["tiny_vision.onnx"]}
    assert (check().status, check().detail) == ("warning", "fidelity.json is not about tiny_vision.onnx.data")
