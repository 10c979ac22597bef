"""Which precision a build really used: entries of layer_configs that took effect, in part, or not at all."""

import json

import pytest
from onnx import TensorProto, helper

from qwen_vl_axera.compiled.precision import precision_lines, precision_report, read_quantized
from qwen_vl_axera.compiler.schema import BuildConfig
from qwen_vl_axera.errors import InputError

NAMES = {"a": "Gemm", "b": "MatMul", "c": "Reshape", "d": "Gemm"}


def graph():
    """hidden_states -> a -> b -> c -> d -> hidden_states_out."""
    tensors = ["hidden_states", "a", "b", "c", "hidden_states_out"]
    nodes = [
        helper.make_node(op, [tensors[number]], [tensors[number + 1]], name=name)
        for number, (name, op) in enumerate(NAMES.items())
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in (tensors[0], tensors[-1])]
    return helper.make_graph(nodes, "g", ends[:1], ends[1:])


def entry(bits, per_channel=False, state="ACTIVATED"):
    return {"bit_width": bits, "policy": {"PER_CHANNEL": per_channel}, "state": state}


def built(tmp_path, **bits):
    """A quant_axmodel.json: node -> bits of its activation."""
    names = {name: {"x": entry(width), "w": entry(8, True), "bias": entry(32)} for name, width in bits.items()}
    path = tmp_path / "quant_axmodel.json"
    path.write_text(json.dumps({"configs": names, "dispatchings": dict.fromkeys([*names, "op_7:onnx.Silu"], "X")}))
    return path


def report(path, *entries):
    return precision_report(BuildConfig.model_validate({"quant": {"layer_configs": list(entries)}}), graph(), path)


DEFAULT = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"]}


def test_the_whole_at_16_bits(tmp_path):
    result = report(built(tmp_path, a=16, b=16, d=16), DEFAULT | {"data_type": "U16"})
    (wish,) = result["wishes"]
    assert (wish["matched"], wish["honoured"], wish["status"]) == (3, 3, "ok")
    assert (result["passed"], result["kept"], result["nodes"]) == (True, 3, 4)
    assert result["fused"] == {"onnx.Silu": 1} and result["bits"]["Gemm"] == {"16": 2}
    assert precision_lines(result)[1].startswith("ok")


def test_weights_and_biases_say_nothing_of_a_node(tmp_path):
    assert read_quantized(built(tmp_path, a=16))["a"] == {16}


def test_a_layer_wins_over_a_type_and_that_over_a_part(tmp_path):
    entries = (
        {"layer_names": ["d"], "data_type": "U16"},
        {"op_types": ["Gemm"], "data_type": "U8"},
        DEFAULT | {"data_type": "U16"},
    )
    result = report(built(tmp_path, a=8, b=16, d=16), *entries)
    assert [(wish["matched"], wish["honoured"]) for wish in result["wishes"]] == [(1, 1)] * 3
    assert result["passed"]


def test_an_entry_that_took_effect_in_part_is_a_warning(tmp_path):
    result = report(built(tmp_path, a=16, b=16, d=8), DEFAULT | {"data_type": "U16"})
    assert result["passed"] and result["wishes"][0]["status"] == "warning"
    assert "2 of 3 nodes got it; not d" in precision_lines(result)[1]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"layer_names": ["b", "gone"], "data_type": "U16"}, "not in the built model: gone"),
        ({"op_types": ["AxFullyConnected"], "data_type": "U16"}, "matched nothing"),
        ({"op_types": ["Reshape"], "data_type": "U16"}, "matched nothing"),  # a type set on it has no effect
        ({"op_types": ["Gemm"], "data_type": "U16"}, "0 of 2 nodes got it"),
        ({"start_tensor_names": ["nowhere"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}, "matched nothing"),
    ],
)
def test_an_entry_without_effect_fails(tmp_path, wish, words):
    result = report(built(tmp_path, a=8, b=16, d=8), wish)
    assert not result["passed"]
    assert precision_lines(result)[1].startswith("FAILED") and words in precision_lines(result)[1]


def test_the_part_between_two_tensors(tmp_path):
    part = {"start_tensor_names": ["a"], "end_tensor_names": ["c"], "data_type": "U16"}
    (wish,) = report(built(tmp_path, a=8, b=16, d=8), part)["wishes"]
    assert (wish["matched"], wish["honoured"]) == (1, 1)  # b; c is a Reshape


@pytest.mark.parametrize("text", ["[]", "{}", '{"dispatchings": 3}', '{"dispatchings": {}, "configs": []}', "{"])
def test_another_form_is_refused(tmp_path, text):
    (tmp_path / "quant_axmodel.json").write_text(text)
    with pytest.raises(InputError, match=r"quant_axmodel\.json"):
        read_quantized(tmp_path / "quant_axmodel.json")
