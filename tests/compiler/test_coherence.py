"""Every combination of configuration, graph and archive that goes wrong, by name; and those that do not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preprocess
from qwen_vl_axera.compiler import coherence
from qwen_vl_axera.compiler.coherence import MEAN_255, STD_255, Target, coherence_problems
from qwen_vl_axera.compiler.schema import BuildConfig, load_config
from tests.compiler.configurations import NORMALIZED, PIXELS, changed, raw

ENOUGH = 64  # samples

ARRAYS = Target("pixels", "numpy", num_samples=ENOUGH)

PICTURES = Target("normalized", "image", num_samples=ENOUGH)

NORMALIZED_ARRAYS = Target("normalized", "numpy", "normalized", num_samples=ENOUGH)

INPUT, PROCESSOR = "quant.input_configs.0", "input_processors.0"

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
    (PIXELS, replace(ARRAYS, chip="AX620E"), {}, {"too-many-cores"}),
    (PIXELS, replace(ARRAYS, chip="M57"), {"target_hardware": "AX650"}, {"wrong-hardware"}),
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
