"""Does a build configuration agree with the graph, the calibration archive and the board?

The compiler accepts every combination below and finishes; what comes out is a model that sees wrong pixels.
Two paths lead to the graph and both must deliver what it was exported for:

    calibration   archive -> (Image: colour order, calibration_mean/std | arrays: nothing) -> graph
    run time      U8 NHWC bytes -> (mean/std of input_processors, by default calibration_mean/std) -> graph
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preprocess import MEAN, STD
from qwen_vl_axera.compiler.schema import NPU_MODES, BuildConfig, InputProcessor, InputQuantConfig
from qwen_vl_axera.contract import CHIP, INPUT_NAME, OUTPUT_NAME

EVERY_TENSOR = "DEFAULT"
LEVELS = 255  # the configuration's mean and std are in units of 0..255, the code's in 0..1
MEAN_255, STD_255 = [LEVELS * value for value in MEAN], [LEVELS * value for value in STD]
TOLERANCE = 0.01  # of 255 levels: the digits that a hand-written mean may drop
FEW_SAMPLES = 16  # inference: the vendor's newer projects use 64; 4 to 8 near-identical ones lost accuracy
# The operators for which the vendor has verified FP32.
FP32_OPERATORS = {"LeakyRelu", "Sigmoid", "Relu", "Add", "Mul", "Div", "Sub", "Concat", "Softmax"}
PROTOBUF_LIMIT = 2**31  # bytes; the tool's own simplifier fails beyond
FORMATS = {"numpy": "Numpy", "image": "Image"}

Contract = Literal["pixels", "normalized"]
WRONG_CONSTANTS = {
    "incomplete": "mean and std need three numbers each, std above 0",
    "unit": "mean and std are in units of 0..1: nothing is left but noise around zero",
    "swapped": "mean and std are in the order B, G, R",
    "other": "mean and std are not the checkpoint's",
}


@dataclass(frozen=True)
class Problem:
    """Something that does not fit.

    Attributes:
        name: a fixed identifier.
        where: the path in the configuration file.
        symptom: what the built model would do.
        remedy: what to change.
        fatal: whether the build should not start; otherwise a warning.
    """

    name: str
    where: str
    symptom: str
    remedy: str
    fatal: bool = True


@dataclass(frozen=True)
class Target:
    """What the configuration must agree with.

    Attributes:
        contract: what the graph's float input holds, "pixels" (0..255) or "normalized".
        sample_format: of the archive, "numpy" or "image".
        sample_values: what arrays in the archive hold, "pixels" or "normalized"; pictures always hold pixels.
        num_samples: in the archive, when known.
        tensor_names: of the graph, when known.
        graph_bytes: weights included, when known.
        workdir: where the compiler will run, when its files are to be looked for.
        chip: target hardware.
    """

    contract: Contract = "pixels"
    sample_format: Literal["numpy", "image"] = "numpy"
    sample_values: Contract = "pixels"
    num_samples: int | None = None
    tensor_names: frozenset[str] | None = None
    graph_bytes: int | None = None
    workdir: Path | None = None
    chip: str = CHIP


def coherence_problems(config: BuildConfig, target: Target) -> list[Problem]:
    """Everything in which a configuration and its target disagree; empty when they fit."""
    problems = []
    quant, quant_path = _entry(config.quant.input_configs, INPUT_NAME, "quant.input_configs")
    processor, path = _entry(config.input_processors, INPUT_NAME, "input_processors")
    problems += _entries(config)
    if quant:
        problems += _calibration(quant, quant_path, target)
    else:
        remedy = f"add an entry with tensor_name {INPUT_NAME!r}"
        problems.append(Problem("no-calibration-input", quant_path, "the input is never calibrated", remedy))
    if processor:
        problems += _colours(processor, path, target)
        problems += _run_time_input(processor, path)
        problems += _run_time_values(processor, path, quant, target)
    else:
        symptom = "the model takes float32 NCHW; the board delivers U8 NHWC and misreads the size"
        remedy = f"add tensor_name {INPUT_NAME!r}, src_dtype U8, src_layout NHWC"
        problems.append(Problem("no-input-processor", path, symptom, remedy))
    problems += _output(config)
    problems += _layers(config, target)
    problems += _whole(config, target)
    return problems


def normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """What a mean and a std of 0..255 units do: "none", "clip" (the checkpoint's) or a key of WRONG_CONSTANTS."""
    if not (mean or std) or (list(mean) == [0, 0, 0] and list(std) == [1, 1, 1]):
        return "none"
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        return "incomplete"
    for kind, expected_mean, expected_std, tolerance in (
        ("clip", MEAN_255, STD_255, TOLERANCE),
        ("unit", MEAN, STD, TOLERANCE / LEVELS),
        ("swapped", MEAN_255[::-1], STD_255[::-1], TOLERANCE),
    ):
        if all(abs(a - b) <= tolerance for a, b in zip([*mean, *std], [*expected_mean, *expected_std], strict=True)):
            return kind
    return "other"


def _entry(entries: Sequence, tensor: str, place: str) -> tuple:
    """The entry for a tensor (its own before DEFAULT) and its path; (None, place) without one."""
    for name in (tensor, EVERY_TENSOR):
        for number, entry in enumerate(entries):
            if entry.tensor_name == name:
                return entry, f"{place}[{number}]"
    return None, place


def _entries(config: BuildConfig) -> Iterator[Problem]:
    known = {
        "quant.input_configs": (config.quant.input_configs, INPUT_NAME),
        "input_processors": (config.input_processors, INPUT_NAME),
        "output_processors": (config.output_processors, OUTPUT_NAME),
    }
    for place, (entries, tensor) in known.items():
        names = [entry.tensor_name for entry in entries]
        for number, name in enumerate(names):
            where = f"{place}[{number}].tensor_name"
            if name not in (tensor, EVERY_TENSOR):
                yield Problem("wrong-tensor-name", where, f"the graph has no {name!r} here", f"write {tensor!r}")
            elif name in names[:number]:
                yield Problem("two-entries", where, f"{name!r} is configured twice", "keep one entry")


def _calibration(quant: InputQuantConfig, path: str, target: Target) -> Iterator[Problem]:
    expected = FORMATS[target.sample_format]
    if quant.calibration_format != expected:
        holds = "arrays (.npy)" if target.sample_format == "numpy" else "pictures (.png)"
        yield Problem(
            "wrong-calibration-format",
            f"{path}.calibration_format",
            f"the archive holds {holds}, read as {quant.calibration_format}: no sample loads, or pixels are misread",
            f"write {expected!r}, or make the archive again with get_calib.py --format",
        )
    given = quant.calibration_mean or quant.calibration_std
    if target.sample_format == "numpy" and given:
        yield Problem(
            "mean-with-arrays",
            f"{path}.calibration_mean",
            "arrays are calibrated as they are, but at run time the mean and std are inherited by input_processors: "
            "the two paths differ",
            "leave calibration_mean and calibration_std out",
        )
    kind = target.sample_values
    if target.sample_format == "image":
        applied = normalisation(quant.calibration_mean, quant.calibration_std)
        kind = {"none": "pixels", "clip": "normalized"}.get(applied, applied)
    if target.contract == "pixels" and kind != "pixels":
        yield Problem(
            "calibration-normalised-twice",
            f"{path}.calibration_mean",
            "the graph normalises inside; calibrated on normalised values, its input range is that of about "
            "-2 to 2 instead of 0 to 255 and every real pixel saturates",
            "leave calibration_mean and calibration_std out" if given else "make the archive of pixels 0..255",
        )
    elif target.contract == "normalized" and kind == "pixels":
        yield Problem(
            "calibrated-on-raw-pixels",
            f"{path}.calibration_mean",
            "raw 0..255 reaches a network made for about -2 to 2: every range is a hundred times too wide",
            _give_constants("calibration_mean", "calibration_std")
            if target.sample_format == "image"
            else "make the archive of normalised values",
        )
    elif target.contract == "normalized" and kind in WRONG_CONSTANTS:
        yield Problem(
            "calibration-wrong-constants",
            f"{path}.calibration_mean",
            f"{WRONG_CONSTANTS[kind]}; the network is calibrated on other values than it was trained on",
            _give_constants("calibration_mean", "calibration_std"),
        )
    yield from _archive(quant, path, target)


def _archive(quant: InputQuantConfig, path: str, target: Target) -> Iterator[Problem]:
    if target.workdir is not None and not (target.workdir / quant.calibration_dataset).is_file():
        yield Problem(
            "archive-missing",
            f"{path}.calibration_dataset",
            f"{target.workdir / quant.calibration_dataset} is not there: the build stops at once",
            "run get_calib.py, or correct the path (it counts from the work directory)",
        )
    if target.num_samples is None:
        return
    where, size = f"{path}.calibration_size", quant.calibration_size
    if size > target.num_samples:
        symptom = f"asks for {size} samples, the archive holds {target.num_samples}: the rest is silently missing"
        yield Problem("too-few-samples", where, symptom, "write -1 (all), or sample more", fatal=False)
    elif 0 < size < target.num_samples:
        symptom = f"only {size} of {target.num_samples} samples are used"
        yield Problem("samples-left-out", where, symptom, "write -1 (all)", fatal=False)
    used = target.num_samples if size < 0 else min(size, target.num_samples)
    if used < FEW_SAMPLES:
        symptom = f"calibrated on {used} samples: ranges miss what those do not show (below {FEW_SAMPLES} is few)"
        yield Problem("few-samples", where, symptom, "run get_calib.py with more --inputs or --num-samples", False)


def _colours(processor: InputProcessor, path: str, target: Target) -> Iterator[Problem]:
    form, source = processor.tensor_format, processor.src_format
    where = f"{path}.tensor_format"
    if target.sample_format == "image" and form == "BGR":
        symptom = "the pictures are true RGB files, read as B, G, R: red and blue are swapped in calibration"
        yield Problem("red-and-blue-swapped", where, symptom, "write 'RGB'")
    elif form == "GRAY":
        yield Problem("grey-input", where, "one channel for a graph of three", "write 'RGB'")
    elif form == "BGR":
        symptom = "arrays are not reordered: calibration is right, but the compiled model is labelled BGR"
        yield Problem("labelled-bgr", where, symptom, "write 'RGB'", fatal=False)
    elif form == "AutoColorSpace" and target.sample_format == "image":
        symptom = "the tool chooses the order of the colours in the calibration pictures"
        yield Problem("colour-order-not-set", where, symptom, "write 'RGB'", fatal=False)
    if "AutoColorSpace" not in (form, source) and form != source:
        symptom = f"asks for {source} to {form}, which is not converted at run time: red and blue are swapped, or worse"
        yield Problem("conversion-not-made", f"{path}.src_format", symptom, f"write {form!r}")
    if processor.csc_mode != "NoCSC":
        symptom = "a colour conversion comes before the network; the board delivers RGB"
        yield Problem("colour-conversion", f"{path}.csc_mode", symptom, "write 'NoCSC'")


def _run_time_input(processor: InputProcessor, path: str) -> Iterator[Problem]:
    if processor.src_dtype in ("FP32", "FP16"):
        symptom = "the model takes floats: the runtime infers the size from the bytes and misreads it"
        yield Problem("float-input", f"{path}.src_dtype", symptom, "write 'U8'")
    elif processor.src_dtype != "U8":
        symptom = f"pixels are read as {processor.src_dtype}: wrong values or a wrong number of bytes"
        yield Problem("wrong-input-type", f"{path}.src_dtype", symptom, "write 'U8'")
    if processor.src_layout != "NHWC":
        symptom = "the bytes come as R, G, B per pixel and are read as three planes: the picture is scrambled"
        yield Problem("wrong-source-layout", f"{path}.src_layout", symptom, "write 'NHWC'")
    if processor.tensor_layout != "NCHW":
        symptom = "the graph's input is (1, 3, S, 392), read as NHWC: no transpose is inserted"
        yield Problem("wrong-tensor-layout", f"{path}.tensor_layout", symptom, "write 'NCHW'")
    for field in ("padding", "slicing", "src_extra_shapes"):
        if getattr(processor, field):
            symptom = "the input has another size than the graph, from whose bytes the runtime infers the resolution"
            yield Problem("input-resized", f"{path}.{field}", symptom, "leave it out")


def _run_time_values(
    processor: InputProcessor, path: str, quant: InputQuantConfig | None, target: Target
) -> Iterator[Problem]:
    # An empty list is an absent one in protobuf: it does not override what calibration_mean says.
    mean = processor.mean or (quant.calibration_mean if quant else [])
    std = processor.std or (quant.calibration_std if quant else [])
    kind = normalisation(mean, std)
    source = "" if processor.mean else " (inherited from calibration_mean)"
    if target.contract == "pixels" and kind != "none":
        yield Problem(
            "run-time-normalised-twice",
            f"{path}.mean",
            f"normalised before the graph{source} and again inside: the model sees almost uniform grey",
            "leave mean and std out, in calibration_* too",
        )
    elif target.contract == "normalized" and kind == "none":
        yield Problem(
            "run-time-raw-pixels",
            f"{path}.mean",
            "raw 0..255 reaches a network made for about -2 to 2: the features are meaningless",
            _give_constants("calibration_mean", "calibration_std")
            if target.sample_format == "image"
            else _give_constants("mean", "std"),
        )
    elif target.contract == "normalized" and kind in WRONG_CONSTANTS:
        yield Problem(
            "run-time-wrong-constants",
            f"{path}.mean",
            f"{WRONG_CONSTANTS[kind]}{source}; the features drift without any error",
            _give_constants("mean", "std"),
        )


def _output(config: BuildConfig) -> Iterator[Problem]:
    processor, path = _entry(config.output_processors, OUTPUT_NAME, "output_processors")
    if processor is None:
        return
    if processor.output_dtype != "FP32":
        symptom = "features leave in 8 bits; the runtime reads float32, four times the bytes that are there"
        yield Problem("wrong-output-type", f"{path}.output_dtype", symptom, "leave it out")
    if list(processor.dst_perm) not in ([], [0, 1]) or processor.tensor_layout != "DefaultLayout":
        yield Problem("output-permuted", path, "tokens and channels change places", "leave it out")


def _layers(config: BuildConfig, target: Target) -> Iterator[Problem]:
    for number, layer in enumerate(config.quant.layer_configs):
        path = f"quant.layer_configs[{number}]"
        operators = {name for name in (layer.op_type, *layer.op_types) if name}
        if layer.data_type == "FP32" and operators - FP32_OPERATORS:
            symptom = f"FP32 is not verified by the vendor for {', '.join(sorted(operators - FP32_OPERATORS))}"
            yield Problem("fp32-not-verified", f"{path}.data_type", symptom, "use U16", fatal=False)
        if target.tensor_names is None:
            continue
        tensors = {*layer.start_tensor_names, *layer.end_tensor_names} - {EVERY_TENSOR}
        layers = {name for name in (layer.layer_name, *layer.layer_names) if name}
        if unknown := sorted((tensors | layers) - target.tensor_names):
            symptom = f"{', '.join(unknown[:3])}: not in the graph; a name that matches nothing is ignored silently"
            # Layer names are matched after the tool's own fusions, which are not known here.
            yield Problem(
                "unknown-layer", path, symptom, "copy the name from the graph", fatal=bool(tensors & {*unknown})
            )


def _whole(config: BuildConfig, target: Target) -> Iterator[Problem]:
    if config.model_type != "ONNX":
        yield Problem("wrong-model-type", "model_type", "the graph is read as something else", "write 'ONNX'")
    if "target_hardware" in config.model_fields_set and config.target_hardware != target.chip:
        symptom = f"built for {config.target_hardware}, asked for {target.chip}: it does not load on the board"
        yield Problem("wrong-hardware", "target_hardware", symptom, f"write {target.chip!r}, or leave it out")
    cores = NPU_MODES.get(target.chip)
    if "target_hardware" not in config.model_fields_set and cores and int(config.npu_mode[-1]) > cores:
        symptom = f"{target.chip} has NPU1 to NPU{cores}, and no such mode"
        yield Problem("too-many-cores", "npu_mode", symptom, f"write 'NPU{cores}'")
    if target.chip == "AX650" and config.npu_mode != "NPU3":
        symptom = f"{config.npu_mode} uses {config.npu_mode[-1]} of the three cores: slower, and no more exact"
        yield Problem("idle-cores", "npu_mode", symptom, "write 'NPU3'", fatal=False)
    if config.input_shapes:
        symptom = "the graph is static; another shape contradicts the windows inside"
        yield Problem("input-reshaped", "input_shapes", symptom, "leave it out; export another --size")
    if config.compiler.static_batch_sizes or config.compiler.max_dynamic_batch_size:
        symptom = "the graph takes one step at a time; more batches multiply its memory"
        yield Problem("batched", "compiler.static_batch_sizes", symptom, "leave it out", fatal=False)
    if config.onnx_opt.enable_onnxsim and (target.graph_bytes or 0) >= PROTOBUF_LIMIT:
        symptom = "the simplifier fails beyond 2 GB (narrowing_error)"
        yield Problem(
            "simplifier-over-2-gb", "onnx_opt.enable_onnxsim", symptom, "leave it out: nothing is left to fold"
        )


def _give_constants(mean: str, std: str) -> str:
    def numbers(values: Sequence[float]) -> str:
        return "[" + ", ".join(f"{value:.9g}" for value in values) + "]"

    return f"write {mean} {numbers(MEAN_255)} and {std} {numbers(STD_255)}"
