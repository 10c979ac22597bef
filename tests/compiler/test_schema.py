"""The build configuration: its schema, the two files in the repository, and every combination that goes wrong."""

import copy
import importlib.machinery
import importlib.util
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preprocess
from qwen_vl_axera.compiler import coherence, schema
from qwen_vl_axera.compiler.coherence import MEAN_255, STD_255, Target, coherence_problems
from qwen_vl_axera.compiler.schema import BuildConfig, load_config
from qwen_vl_axera.compiler.strict_json import parse_strict
from qwen_vl_axera.errors import InputError
from tests.conftest import ROOT

PIXELS, NORMALIZED = ROOT / "config_video.json", ROOT / "config_video_normalized.json"
ENOUGH = 64  # samples

# The messages of the definition; the stand-in holds their fields, typed off the manual a second time.
MESSAGES = {
    "": BuildConfig,
    "onnx_opt": schema.OnnxOptimizeOption,
    "quant": schema.QuantConfig,
    "quant.input_configs": schema.InputQuantConfig,
    "quant.layer_configs": schema.LayerConfig,
    "input_processors": schema.InputProcessor,
    "output_processors": schema.OutputProcessor,
    "const_processors": schema.ConstProcessor,
    "op_processors": schema.OpProcessor,
    "quant_op_processors": schema.OpProcessor,
    "compiler": schema.CompilerConfig,
}


@pytest.fixture(scope="module")
def stand_in():
    loader = importlib.machinery.SourceFileLoader("stand_in", str(ROOT / "tests" / "stand_in" / "pulsar2"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("stand_in", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def written(tmp_path):
    """Writes a configuration, a dict or text, and returns its path."""

    def write(config):
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return path

    return write


def raw(path=PIXELS):
    return json.loads(path.read_text(encoding="utf-8"))


def changed(config, changes):
    """A copy with `{"quant.input_configs.0.field": value}` applied; the value `...` removes the field."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = config
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return config


# Schema


@pytest.mark.parametrize("place", MESSAGES)
def test_fields_are_those_of_the_definition(stand_in, place):
    assert set(MESSAGES[place].model_fields) == set(stand_in.FIELDS[place].split())


@pytest.mark.parametrize("path", [PIXELS, NORMALIZED])
def test_defaults_do_not_change_what_a_file_says(path):
    assert load_config(path).model_dump(exclude_unset=True) == raw(path)


@given(st.data())
def test_a_misspelt_field_is_named_with_its_path_and_the_right_name(tmp_path_factory, data):
    place = data.draw(st.sampled_from(["quant", "quant.input_configs.0", "input_processors.0", "compiler"]))
    key = place.replace(".0", "")
    field = data.draw(st.sampled_from([name for name in MESSAGES[key].model_fields if len(name) > 7]))
    cut = data.draw(st.integers(1, len(field) - 3))
    wrong = field[:cut] + field[cut + 1] + field[cut] + field[cut + 2 :]  # two letters swapped
    if wrong in MESSAGES[key].model_fields:
        return
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


# Strict JSON


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n "a": 1,\n "a": 2}', 'line 3: "a" is given twice'),
        ('{"b": {"a": 1}, "c": [{"a": 1,\n "a": 1}]}', 'line 2: "a" is given twice'),
        ('{\n "a": NaN}', "line 2: NaN"),
        ('{"a": [1,\n-Infinity]}', "line 2: -Infinity"),
        ('{"a":\n\n 1e999}', "line 3: 1e999"),
        ('{"a": 1, // one\n "b": 2}', "line 1: comments"),
        ('{"a": 1,\n # one\n "b": 2}', "line 2: comments"),
        ('{"a": 1,\n /* one\n */ "b": 2}', "line 2: comments"),
        ('{"a": 1,\n}', "line 2: a comma"),
        ('{"a": [1,\n2,]}', "line 2: a comma"),
        ("{'a': 1}", "line 1: "),
        ('{"a": True}', "line 1: "),
        ('{"a": 01}', "line 1: "),
        ('{"a": .5}', "line 1: "),
        ('{"a": 0x10}', "line 1: "),
        ('{"a": "b\nc"}', "line 1: "),
        ('{"a": 1}\n{"b": 2}', "line 2: "),
        ('{"a": 1', "line 1: "),
        ("", "line 1: "),
        ("\ufeff{}", "byte order mark"),
        ("[" * 100_000, "line 1: "),
        ('{"a": ' + "9" * 5000 + "}", "line 1: "),
    ],
)  # fmt: skip
def test_what_is_not_strictly_json_is_refused_with_its_line(written, text, words):
    with pytest.raises(InputError) as error:
        load_config(written(text))
    assert words in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_strict_json_reads_whatever_python_writes(value, ascii_only):
    assert parse_strict(json.dumps(value, indent=1, ensure_ascii=ascii_only)) == value


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "none.json")
    with pytest.raises(InputError, match="not readable"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_config(tmp_path / "config.json")


# The checked-in files


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


@pytest.mark.parametrize("path", [PIXELS, NORMALIZED])
def test_the_stand_in_takes_the_checked_in_files(stand_in, path):
    assert stand_in.read_config(path) == raw(path)


# Coherence

ARRAYS = Target("pixels", "numpy", num_samples=ENOUGH)
PICTURES = Target("normalized", "image", num_samples=ENOUGH)
NORMALIZED_ARRAYS = Target("normalized", "numpy", "normalized", num_samples=ENOUGH)
INPUT, PROCESSOR = "quant.input_configs.0", "input_processors.0"
CLIP = {"mean": MEAN_255, "std": STD_255}
CALIBRATION_CLIP = {f"{INPUT}.calibration_mean": MEAN_255, f"{INPUT}.calibration_std": STD_255}
RUN_TIME_CLIP = {f"{PROCESSOR}.mean": MEAN_255, f"{PROCESSOR}.std": STD_255}
AS_PICTURES = {f"{INPUT}.calibration_format": "Image"}


def problems(path, target, changes):
    config = BuildConfig.model_validate(changed(raw(path), changes))
    return {problem.name for problem in coherence_problems(config, target)}


@pytest.mark.parametrize(
    ("path", "target", "changes"),
    [
        (PIXELS, ARRAYS, {}),
        (NORMALIZED, PICTURES, {}),
        (PIXELS, NORMALIZED_ARRAYS, RUN_TIME_CLIP),  # the manual's third recipe
        (PIXELS, Target("pixels", "image", num_samples=ENOUGH), AS_PICTURES),
        (NORMALIZED, PICTURES, RUN_TIME_CLIP),
        (NORMALIZED, PICTURES, {f"{INPUT}.calibration_mean": [122.771, 116.746, 104.094]}),  # rounded by hand
        (PIXELS, ARRAYS, {f"{INPUT}.tensor_name": "DEFAULT", f"{PROCESSOR}.tensor_name": "DEFAULT"}),
        (PIXELS, ARRAYS, {f"{PROCESSOR}.mean": [0, 0, 0], f"{PROCESSOR}.std": [1, 1, 1]}),
    ],
)
def test_coherent_combinations_have_no_problem(path, target, changes):
    assert problems(path, target, changes) == set()


UNIT = {"mean": list(preprocess.MEAN), "std": list(preprocess.STD)}
SWAPPED = {"mean": MEAN_255[::-1], "std": STD_255[::-1]}
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def calibrated(constants):
    return {f"{INPUT}.calibration_{name}": values for name, values in constants.items()}


def at_run_time(constants):
    return {f"{PROCESSOR}.{name}": values for name, values in constants.items()}


BOTH_WRONG = {"calibration-wrong-constants", "run-time-wrong-constants"}
AS_BGR = {f"{PROCESSOR}.tensor_format": "BGR"}
PERMUTED = {"tensor_name": "hidden_states_out", "dst_perm": [1, 0]}

# file, target, what is changed, every problem that must be named
WRONG = [
    # mean and std against the graph's contract
    (PIXELS, ARRAYS, CALIBRATION_CLIP, {"mean-with-arrays", "run-time-normalised-twice"}),
    (PIXELS, ARRAYS, RUN_TIME_CLIP, {"run-time-normalised-twice"}),
    (PIXELS, ARRAYS, {**CALIBRATION_CLIP, f"{PROCESSOR}.mean": [], f"{PROCESSOR}.std": []},
     {"mean-with-arrays", "run-time-normalised-twice"}),  # an empty list does not override
    (PIXELS, ARRAYS, {**CALIBRATION_CLIP, f"{PROCESSOR}.mean": [0, 0, 0], f"{PROCESSOR}.std": [1, 1, 1]},
     {"mean-with-arrays"}),
    (PIXELS, Target("pixels", "image", num_samples=ENOUGH), {**AS_PICTURES, **CALIBRATION_CLIP},
     {"calibration-normalised-twice", "run-time-normalised-twice"}),
    (PIXELS, Target("pixels", "numpy", "normalized", num_samples=ENOUGH), {}, {"calibration-normalised-twice"}),
    (NORMALIZED, Target("pixels", "image", num_samples=ENOUGH), {},
     {"calibration-normalised-twice", "run-time-normalised-twice"}),
    (NORMALIZED, ARRAYS, {}, {"wrong-calibration-format", "mean-with-arrays", "run-time-normalised-twice"}),
    (NORMALIZED, PICTURES, {f"{INPUT}.calibration_mean": ..., f"{INPUT}.calibration_std": ...},
     {"calibrated-on-raw-pixels", "run-time-raw-pixels"}),
    (NORMALIZED, PICTURES,
     {f"{INPUT}.calibration_mean": ..., f"{INPUT}.calibration_std": ..., **RUN_TIME_CLIP},
     {"calibrated-on-raw-pixels"}),
    (NORMALIZED, PICTURES, at_run_time({"mean": [0, 0, 0], "std": [1, 1, 1]}), {"run-time-raw-pixels"}),
    (PIXELS, NORMALIZED_ARRAYS, {}, {"run-time-raw-pixels"}),
    (PIXELS, NORMALIZED_ARRAYS, CALIBRATION_CLIP, {"mean-with-arrays"}),
    (PIXELS, Target("normalized", "numpy", "pixels", num_samples=ENOUGH), RUN_TIME_CLIP, {"calibrated-on-raw-pixels"}),
    # the wrong numbers
    (NORMALIZED, PICTURES, calibrated(UNIT), BOTH_WRONG),
    (NORMALIZED, PICTURES, calibrated(SWAPPED), BOTH_WRONG),
    (NORMALIZED, PICTURES, calibrated(IMAGENET), BOTH_WRONG),
    (NORMALIZED, PICTURES, calibrated({"mean": MEAN_255[:1]}), BOTH_WRONG),
    (NORMALIZED, PICTURES, calibrated({"std": [68.5, 0.0, 70.3]}), BOTH_WRONG),
    (NORMALIZED, PICTURES, {f"{INPUT}.calibration_std": ...}, BOTH_WRONG),
    (NORMALIZED, PICTURES, at_run_time(UNIT), {"run-time-wrong-constants"}),
    (NORMALIZED, PICTURES, at_run_time({"std": [1, 1, 1]}), {"run-time-wrong-constants"}),
    (PIXELS, NORMALIZED_ARRAYS, at_run_time(IMAGENET), {"run-time-wrong-constants"}),
    # the archive's format
    (PIXELS, ARRAYS, AS_PICTURES, {"wrong-calibration-format"}),
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_format": ...}, {"wrong-calibration-format"}),  # Image by default
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_format": "Binary"}, {"wrong-calibration-format"}),
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_format": "NumpyObject"}, {"wrong-calibration-format"}),
    (NORMALIZED, PICTURES, {f"{INPUT}.calibration_format": "Numpy"}, {"wrong-calibration-format"}),
    # colours
    (NORMALIZED, PICTURES, {**AS_BGR, f"{PROCESSOR}.src_format": "BGR"}, {"red-and-blue-swapped"}),
    (NORMALIZED, PICTURES, {**AS_BGR, f"{PROCESSOR}.src_format": ...}, {"red-and-blue-swapped"}),
    (NORMALIZED, PICTURES, {f"{PROCESSOR}.src_format": "BGR"}, {"conversion-not-made"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.src_format": "BGR"}, {"conversion-not-made"}),
    (PIXELS, ARRAYS, AS_BGR, {"labelled-bgr", "conversion-not-made"}),
    (PIXELS, ARRAYS, {**AS_BGR, f"{PROCESSOR}.src_format": "BGR"}, {"labelled-bgr"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.tensor_format": "GRAY", f"{PROCESSOR}.src_format": "GRAY"}, {"grey-input"}),
    (NORMALIZED, PICTURES, {f"{PROCESSOR}.tensor_format": ...}, {"colour-order-not-set"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.csc_mode": "FullRange"}, {"colour-conversion"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.csc_mode": "FullRange", f"{PROCESSOR}.src_format": "YUV420SP"},
     {"colour-conversion", "conversion-not-made"}),
    # what the board delivers
    (PIXELS, ARRAYS, {f"{PROCESSOR}.src_dtype": ...}, {"float-input"}),  # FP32 by default
    (PIXELS, ARRAYS, {f"{PROCESSOR}.src_dtype": "FP16"}, {"float-input"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.src_dtype": "S8"}, {"wrong-input-type"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.src_layout": ...}, {"wrong-source-layout"}),  # NCHW by default
    (PIXELS, ARRAYS, {f"{PROCESSOR}.tensor_layout": "NHWC"}, {"wrong-tensor-layout"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.padding": [0, 0, 0, 0, 0, 4, 0, 0]}, {"input-resized"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.slicing": [0, 0, 0, 0, 0, 4, 0, 0]}, {"input-resized"}),
    (PIXELS, ARRAYS, {"input_processors": []}, {"no-input-processor"}),
    (PIXELS, ARRAYS, {"input_shapes": "hidden_states:1x3x784x392"}, {"input-reshaped"}),
    # names
    (PIXELS, ARRAYS, {f"{INPUT}.tensor_name": "input"}, {"wrong-tensor-name", "no-calibration-input"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.tensor_name": "pixel_values"}, {"wrong-tensor-name", "no-input-processor"}),
    (PIXELS, ARRAYS, {f"{PROCESSOR}.tensor_name": "hidden_states_out"}, {"wrong-tensor-name", "no-input-processor"}),
    (PIXELS, ARRAYS, {"output_processors": [{"tensor_name": "hidden_states"}]}, {"wrong-tensor-name"}),
    (PIXELS, ARRAYS, {"quant.input_configs": []}, {"no-calibration-input"}),
    (PIXELS, ARRAYS, {"input_processors": [raw()["input_processors"][0]] * 2}, {"two-entries"}),
    # the output
    (PIXELS, ARRAYS, {"output_processors": [{"tensor_name": "DEFAULT", "output_dtype": "U8"}]}, {"wrong-output-type"}),
    (PIXELS, ARRAYS, {"output_processors": [PERMUTED]}, {"output-permuted"}),
    # the number of samples
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_size": 100}, {"too-few-samples"}),
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_size": ...}, {"samples-left-out"}),  # 32 by default
    (PIXELS, ARRAYS, {f"{INPUT}.calibration_size": 4}, {"samples-left-out", "few-samples"}),
    (PIXELS, Target(num_samples=4), {}, {"few-samples"}),
    # the rest
    (PIXELS, ARRAYS, {"model_type": "QuantONNX"}, {"wrong-model-type"}),
    (PIXELS, ARRAYS, {"target_hardware": "AX620E", "npu_mode": "NPU2"}, {"wrong-hardware", "idle-cores"}),
    (PIXELS, ARRAYS, {"npu_mode": ...}, {"idle-cores"}),  # NPU1 by default
    (PIXELS, ARRAYS, {"compiler.max_dynamic_batch_size": 4}, {"batched"}),
    (PIXELS, Target(num_samples=ENOUGH, graph_bytes=2**31),
     {"onnx_opt.enable_onnxsim": True}, {"simplifier-over-2-gb"}),
    (PIXELS, ARRAYS, {"quant.layer_configs.0": {"op_type": "MatMul", "data_type": "FP32"}}, {"fp32-not-verified"}),
    (PIXELS, Target(num_samples=ENOUGH, tensor_names=frozenset({"blocks.0.attn"})),
     {"quant.layer_configs.0": {"layer_name": "blocks.0.atn", "data_type": "U16"}}, {"unknown-layer"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "target", "changes", "expected"), WRONG)
def test_wrong_combinations_are_named(path, target, changes, expected):
    assert problems(path, target, changes) == expected


def test_every_problem_has_a_combination_above():
    source = (ROOT / "qwen_vl_axera" / "compiler" / "coherence.py").read_text(encoding="utf-8")
    names = set().union(*(expected for *_, expected in WRONG))
    assert all(f'"{name}"' in source for name in names)
    made = {line.strip(' ",') for line in source.splitlines() if line.strip().endswith('",') and "-" in line}
    assert {name for name in made if name.replace("-", "").isalpha() and " " not in name} <= names | {"archive-missing"}


def test_a_problem_says_where_what_and_what_to_do():
    config = BuildConfig.model_validate(changed(raw(), CALIBRATION_CLIP))
    for problem in coherence_problems(config, ARRAYS):
        assert problem.where.startswith(("quant.input_configs[0].", "input_processors[0]."))
        assert problem.symptom and problem.remedy and problem.fatal
    assert "inherited from calibration_mean" in coherence_problems(config, ARRAYS)[1].symptom


def test_the_archive_is_looked_for_where_the_compiler_runs(tmp_path):
    config = load_config(PIXELS)
    target = Target(num_samples=ENOUGH, workdir=tmp_path)
    assert [problem.name for problem in coherence_problems(config, target)] == ["archive-missing"]
    (tmp_path / "calib").mkdir()
    (tmp_path / "calib" / "hidden_states.tar").touch()
    assert coherence_problems(config, target) == []


@given(st.lists(st.floats(0, 255), max_size=4), st.lists(st.floats(0, 255), max_size=4))
def test_only_the_checkpoints_constants_count_as_such(mean, std):
    near = len(mean) == len(std) == 3 and all(
        abs(a - b) <= coherence.TOLERANCE for a, b in zip(mean + std, MEAN_255 + STD_255, strict=True)
    )
    assert (coherence.normalisation(mean, std) == "clip") == near
