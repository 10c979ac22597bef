"""plan.py: what a configuration means, and what is refused."""

import json

import pytest

from qwen_vl_axera.compiler.schema import BuildConfig
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.preflight.plan import CONFIGS
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.plan import read_plan

DEFAULT = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"]}
GEMM, NORM = "blocks.1.mlp.up_proj", "blocks.1.norm2.mul"


@pytest.fixture(scope="module")
def network(demo):
    return Network(demo.graph)


def plan(network, *layer_configs, **quant):
    config = {"quant": {"conv_bias_data_type": "FP32", "layer_configs": list(layer_configs)} | quant}
    return read_plan(network, BuildConfig.model_validate(config))


def test_without_entries_everything_is_u8(network):
    assert set(plan(network).types.values()) == {"U8"}


def test_the_vendors_recipe_is_u16(network):
    config = json.loads(CONFIGS["pixels"].read_text())
    assert set(read_plan(network, BuildConfig.model_validate(config)).types.values()) == {"U16"}


def test_a_layer_wins_over_its_operator_type_and_that_over_a_part(network):
    entries = [
        {"layer_names": [GEMM], "data_type": "S16"},
        {"op_types": ["Gemm"], "data_type": "U8"},
        {"start_tensor_names": ["blocks.0.add_1"], "end_tensor_names": ["blocks.1.add_1"], "data_type": "S8"},
        DEFAULT | {"data_type": "U16"},
    ]
    for order in (entries, entries[::-1]):
        types = plan(network, *order).types
        assert types[GEMM] == "S16"
        assert types["blocks.1.mlp.gate_proj"] == "U8"
        assert types["blocks.1.attn.windows.0.softmax"] == "S8"
        assert types[NORM] == "S8"  # a part of the graph reaches what is fused, an operator type does not
        assert types["blocks.0.attn.windows.0.softmax"] == types["blocks.2.add"] == "U16"


def test_an_operator_type_does_not_reach_into_a_fusion(network, demo):
    entries = DEFAULT | {"data_type": "U16"}, {"op_types": ["Mul"], "data_type": "U8"}
    fused, apart = plan(network, *entries).types, plan(Network(demo.graph, ()), *entries).types
    assert fused["rotary.mul"] == apart["rotary.mul"] == "U8"
    assert (fused[NORM], apart[NORM]) == ("U16", "U8")


def test_passive_operators_have_no_type(network):
    found = plan(network, {"op_types": ["Reshape", "Gemm"], "data_type": "U16"})
    assert not any(network.by_name[name].passive for name in found.types)
    assert any("Reshape" in note for note in found.notes)


def test_float_works_for_few_operators(network):
    found = plan(network, DEFAULT | {"data_type": "FP32"})
    assert found.types["blocks.0.add"] == "FP32"
    assert found.types[GEMM] == "U8"
    assert any(GEMM in note for note in found.notes)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"layer_names": ["blocks.1.mlp.upproj"], "data_type": "U16"}], "did you mean blocks.1.mlp.up_proj"),
        ([{"op_types": ["FullyConnected"], "data_type": "U16"}], "no operator type 'FullyConnected'"),
        ([{"op_types": ["RMSNorm"], "data_type": "U16"}], "no operator type 'RMSNorm'"),
        ([{"layer_name": "blocks.1.norm2.pow", "data_type": "U16"}], "part of a RMSNorm after fusion"),
        ([{"layer_name": NORM, "data_type": "U16"}], "part of a RMSNorm after fusion"),
        ([{"start_tensor_names": ["x"], "end_tensor_names": ["y"], "data_type": "U16"}], "no tensor 'x'"),
        (
            [{"start_tensor_names": ["blocks.1.add"], "end_tensor_names": ["blocks.0.add"], "data_type": "U16"}],
            "no operator lies between",
        ),
        (
            [{"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["blocks.0.add"], "data_type": "U16"}],
            "on both sides",
        ),
        (
            [{"op_types": ["Gemm"], "data_type": "U16"}, {"op_type": "Gemm", "data_type": "U8"}],
            "gives .* U8, quant.layer_configs\\[0\\] gives it U16",
        ),
    ],
)
def test_what_the_compiler_would_not_do_is_refused(network, entries, words):
    with pytest.raises(InputError, match=words):
        plan(network, *entries)


def test_other_calibration_methods_are_not_simulated(network):
    with pytest.raises(InputError, match="only MinMax"):
        plan(network, calibration_method="MSE")


def test_what_is_not_simulated_is_said(network):
    assert "quant.enable_smooth_quant is not simulated" in plan(network, enable_smooth_quant=True).notes
