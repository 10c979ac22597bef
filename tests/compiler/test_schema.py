"""The build configuration's schema, and the two files in the repository."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import preprocess
from qwen_vl_axera.compiler import schema
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.errors import InputError
from tests.compiler.configurations import NORMALIZED, PIXELS, changed, raw

# The messages in which a field is misspelt below, by their path.
MESSAGES = {
    "quant": schema.QuantConfig,
    "quant.input_configs.0": schema.InputQuantConfig,
    "input_processors.0": schema.InputProcessor,
    "compiler": schema.CompilerConfig,
}


@pytest.fixture
def written(tmp_path):
    """Writes a configuration and returns its path."""

    def write(config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", [PIXELS, NORMALIZED])
def test_defaults_do_not_change_what_a_file_says(path):
    assert load_config(path).model_dump(exclude_unset=True) == raw(path)


@given(st.data())
def test_a_misspelt_field_is_named_with_its_path_and_the_right_name(tmp_path_factory, data):
    place = data.draw(st.sampled_from(list(MESSAGES)))
    fields = MESSAGES[place].model_fields
    field = data.draw(st.sampled_from([name for name in fields if len(name) > 7]))
    cut = data.draw(st.integers(1, len(field) - 3))
    wrong = field[:cut] + field[cut + 1] + field[cut] + field[cut + 2 :]  # two letters swapped
    assume(wrong not in fields)
    path = tmp_path_factory.mktemp("misspelt") / "config.json"
    path.write_text(json.dumps(changed(raw(), {f"{place}.{wrong}": 1})))
    with pytest.raises(InputError) as error:
        load_config(path)
    assert f"{place.replace('.0', '[0]')}.{wrong}: no such field; did you mean {field}?" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant.input_configs.0.calibration_fromat": "Numpy"}, "did you mean calibration_format?"),
        ({"quant.calibration_mean": [1.0]},
         "quant.calibration_mean: no such field; it belongs into quant.input_configs[]"),
        ({"Quant": {}}, "did you mean quant?"),
        ({"debug": {"dump_frontend_graph": True}}, "debug: no such field"),
        ({"input_processors.0.scale": 0.25}, "input_processors[0].scale: no such field"),
        ({"quant.input_configs.0.calibration_format": "numpy"}, "did you mean 'Numpy'?"),
        ({"quant.input_configs.0.calibration_format": 1}, "calibration_format: 1 is none of"),
        ({"npu_mode": "NPU4"}, "npu_mode: 'NPU4' is none of"),
        ({"npu_mode": "NPU3", "target_hardware": "AX620E"}, "AX620E has NPU1 to NPU2"),
        ({"quant.calibration_method": "KL"}, "'KL' is none of"),
        ({"input_processors.0.src_format": "RAW"}, "'RAW' is none of"),
        ({"input_processors.0.src_dtype": "U9"}, "'U9' is none of"),
        ({"quant.conv_bias_data_type": "U8"}, "conv_bias_data_type: 'U8' is none of"),
        ({"quant.input_configs.0.calibration_size": "32"}, "calibration_size: Input should be a valid integer"),
        ({"quant.input_configs.0.calibration_size": True}, "calibration_size: Input should be a valid integer"),
        ({"quant.input_configs.0.calibration_size": 0}, "calibration_size is 0"),
        ({"quant.input_configs.0.calibration_size": -2}, "calibration_size is -2"),
        ({"quant.input_configs.0.calibration_size": 2**31}, "less than or equal to 2147483647"),
        ({"quant.input_configs.0.calibration_dataset": "calib"}, "expected one of .tar, .tar.gz, .zip"),
        ({"quant.input_configs.0.calibration_dataset": ...}, "calibration_dataset: is required"),
        ({"quant.input_configs.0.tensor_name": ""}, "tensor_name: String should have at least 1 character"),
        ({"quant.input_configs": {}}, "quant.input_configs: Input should be a valid list"),
        ({"quant.input_configs.0": "hidden_states"}, "quant.input_configs[0]: expected an object"),
        ({"quant.precision_analysis": "true"}, "precision_analysis: Input should be a valid boolean"),
        ({"quant.precision_analysis": 1}, "precision_analysis: Input should be a valid boolean"),
        ({"quant.transformer_opt_level": 3}, "transformer_opt_level: Input should be less than or equal to 2"),
        ({"quant.refine_weight_threshold": 0.1}, "refine_weight_threshold: Input should be less than 0.0001"),
        ({"quant.smooth_quant_threshold": 1.5}, "smooth_quant_threshold: Input should be less than or equal to 1"),
        ({"quant.device": "gpu"}, "quant.device: String should match pattern"),
        ({"compiler.check": 4}, "compiler.check: Input should be less than or equal to 3"),
        ({"compiler.check_cosine_similarity": 0.9}, "did you mean check_cosine_simularity?"),
        ({"compiler.start_tensor_names": ["x"]}, "belong into compiler.sub_configs[]"),
        ({"compiler.sub_configs": [{"chek": 1}]}, "compiler.sub_configs[0].chek: no such field; did you mean check?"),
        ({"compiler.compiler_group_patterns": [{"nodes": [{"typs": []}]}]}, "nodes[0].typs: no such field"),
        ({"input_processors.0.csc_mat": [1.0]}, "csc_mat has 1 numbers, expected 12"),
        ({"input_processors.0.src_format": "YUV420SP"}, "needs a csc_mode other than NoCSC"),
        ({"input_processors.0.padding_mode": "reflect"}, "'reflect' is none of 'constant'"),
        ({"quant.layer_configs.0.data_type": "U32"}, "quant.layer_configs[0].data_type: 'U32' is none of"),
        ({"op_processors": [{"op_name": "x"}]}, "op_processors[0].attrs: is required"),
    ],
)  # fmt: skip
def test_schema_refusals(written, changes, words):
    with pytest.raises(InputError) as error:
        load_config(written(changed(raw(), changes)))
    assert words in str(error.value)


def test_several_problems_come_in_one_message(written):
    changes = {"compilr": {}, "quant.enable_smoth_quant": True, "quant.layer_configs.0.data_type": "U12"}
    with pytest.raises(InputError) as error:
        load_config(written(changed(raw(), {"quant.enable_smoth_quant": True, "quant.chek": 0})))
    assert "enable_smooth_quant" in str(error.value) and "did you mean check?" in str(error.value)
    del changes["compilr"], changes["quant.enable_smoth_quant"]
    with pytest.raises(InputError) as error:
        load_config(written(changed(raw(), changes | {"npu_mode": "3", "compiler.check": 9})))
    assert str(error.value).count(";") >= 2


@pytest.mark.parametrize(
    ("selectors", "fits"),
    [
        ({"layer_name": "blocks.31.mlp.down_proj"}, True),
        ({"layer_names": ["a", "b"]}, True),
        ({"op_type": "Softmax"}, True),
        ({"op_types": ["Softmax", "Add"]}, True),
        ({"start_tensor_names": ["a"], "end_tensor_names": ["b"]}, True),
        ({}, False),
        ({"layer_name": ""}, False),
        ({"layer_names": []}, False),
        ({"layer_name": "a", "op_type": "Softmax"}, False),
        ({"layer_name": "a", "layer_names": ["b"]}, False),
        ({"op_type": "Add", "start_tensor_names": ["a"], "end_tensor_names": ["b"]}, False),
        ({"start_tensor_names": ["a"]}, False),
        ({"end_tensor_names": ["a"]}, False),
    ],
)
def test_a_layer_config_has_exactly_one_selector(written, selectors, fits):
    path = written(changed(raw(), {"quant.layer_configs.0": selectors | {"data_type": "U16"}}))
    if fits:
        load_config(path)
    else:
        with pytest.raises(InputError, match=r"quant\.layer_configs\[0\]: .*(exactly one|give both)"):
            load_config(path)


@pytest.mark.parametrize("path", [PIXELS, NORMALIZED])
def test_checked_in_files_follow_the_vendors_recipe(path):
    config = load_config(path)
    quant = config.quant
    assert (config.npu_mode, quant.calibration_method, quant.precision_analysis) == ("NPU3", "MinMax", True)
    assert (quant.precision_analysis_method, quant.conv_bias_data_type) == ("EndToEnd", "FP32")
    assert quant.enable_smooth_quant and quant.disable_auto_refine_scale
    (layer,) = quant.layer_configs
    assert (layer.start_tensor_names, layer.end_tensor_names) == (["DEFAULT"], ["DEFAULT"])
    assert layer.data_type == "U16"
    assert quant.input_configs[0].calibration_dataset == "calib/hidden_states.tar"
    assert config.compiler.check == 0


def test_checked_in_mean_and_std_are_the_codes_own():
    entry = load_config(NORMALIZED).quant.input_configs[0]
    assert entry.calibration_mean == pytest.approx([255 * value for value in preprocess.MEAN], rel=1e-8)
    assert entry.calibration_std == pytest.approx([255 * value for value in preprocess.STD], rel=1e-8)
