"""The schema of Pulsar2's build configuration.

One class per message of the protobuf definition in the Pulsar2 manual 7.0 ("Configuration file details"):
https://github.com/AXERA-TECH/pulsar2-docs-en/blob/main/source/user_guides_config/config.md
Pulsar2 refuses unknown fields, hours later and in a container; here they are refused at once, with the nearest
known name. Field options are those of the manual's text as far as the definition knows them: `KL`, `RAW`,
`NPU4` and the hardware names beyond the three below stand in the text only. Defaults are the text's.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from qwen_vl_axera.compiler.strict_json import read_strict
from qwen_vl_axera.errors import InputError

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Real = Annotated[float, Field(allow_inf_nan=False)]

ModelType = Literal["ONNX", "QuantAxModel", "QuantONNX"]
Hardware = Literal["AX650", "AX620E", "M76H"]
NpuMode = Literal["NPU1", "NPU2", "NPU3"]
QuantMethod = Literal["MinMax", "Percentile", "MSE"]
DataFormat = Literal["Image", "Numpy", "Binary", "NumpyObject"]
TensorFormat = Literal["AutoColorSpace", "BGR", "RGB", "GRAY"]
SourceFormat = Literal["AutoColorSpace", "GRAY", "BGR", "RGB", "YUYV422", "UYVY422", "YUV420SP", "YVU420SP"]
ImageLayout = Literal["NHWC", "NCHW"]
Layout = Literal["DefaultLayout", "NHWC", "NCHW"]
LayerType = Literal["U8", "S8", "U16", "S16", "FP32"]
SourceType = Literal["U8", "S8", "U16", "S16", "U32", "S32", "FP16", "FP32"]
CscMode = Literal["NoCSC", "Matrix", "FullRange", "LimitedRange"]

ARCHIVES = (".tar", ".tar.gz", ".zip")
NPU_MODES = {"AX650": 3, "AX620E": 2, "M76H": 3}  # NPU1 to NPU<n>
CSC_MATRIX = 12  # numbers of a 3×4 matrix


class Message(BaseModel):
    """A protobuf message: types are not coerced, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise PydanticCustomError("no_object", "expected an object")
        unknown = [name for name in data if name not in cls.model_fields]
        if unknown:
            hints = [(name, suggestion(name, cls)) for name in unknown]
            raise PydanticCustomError("unknown_fields", "unknown fields", {"hints": hints})
        return data


class InputQuantConfig(Message):
    """`quant.input_configs[]`: the calibration data of one input. Mean and std in 0..255 units."""

    tensor_name: str = Field(min_length=1)
    calibration_dataset: str = Field(min_length=1)
    calibration_format: DataFormat = "Image"
    calibration_size: Int32 = 32
    calibration_mean: list[Real] = []
    calibration_std: list[Real] = []

    @model_validator(mode="after")
    def _limits(self) -> "InputQuantConfig":
        if not self.calibration_dataset.endswith(ARCHIVES):
            raise ValueError(f"calibration_dataset {self.calibration_dataset!r}: expected one of {', '.join(ARCHIVES)}")
        if self.calibration_size < 1 and self.calibration_size != -1:
            raise ValueError(f"calibration_size is {self.calibration_size}: expected a count, or -1 for all")
        return self


class LayerConfig(Message):
    """`quant.layer_configs[]`: precision of a layer, an operator type or the part between tensors."""

    layer_name: str = ""
    op_type: str = ""
    start_tensor_names: list[str] = []
    end_tensor_names: list[str] = []
    data_type: LayerType = "U8"
    weight_data_type: Literal["S8", "FP32"] = "S8"
    layer_names: list[str] = []
    op_types: list[str] = []
    output_data_type: LayerType = "U8"

    SELECTORS: ClassVar = (
        "layer_name",
        "layer_names",
        "op_type",
        "op_types",
        "start_tensor_names + end_tensor_names",
    )

    @model_validator(mode="after")
    def _one_selector(self) -> "LayerConfig":
        given = [name for name in self.SELECTORS if any(getattr(self, part) for part in name.split(" + "))]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(self.SELECTORS)}; found {', '.join(given) or 'none'}")
        if bool(self.start_tensor_names) != bool(self.end_tensor_names):
            raise ValueError("start_tensor_names and end_tensor_names select a part together: give both")
        return self


class QuantConfig(Message):
    """`quant`: calibration, precision of layers, and the analysis of both."""

    input_configs: list[InputQuantConfig] = []
    layer_configs: list[LayerConfig] = []
    calibration_method: QuantMethod = "MinMax"
    precision_analysis: bool = False
    precision_analysis_method: Literal["PerLayer", "EndToEnd"] = "PerLayer"
    precision_analysis_mode: Literal["Reference", "NPUBackend"] = "Reference"
    highest_mix_precision: bool = False
    conv_bias_data_type: Literal["S32", "FP32"] = "S32"
    refine_weight_threshold: Annotated[Real, Field(lt=1e-4)] = 1e-6  # -1 switches it off
    enable_smooth_quant: bool = False
    smooth_quant_threshold: Annotated[Real, Field(ge=0, le=1)] = 0.2
    smooth_quant_strength: Real = 0.6
    transformer_opt_level: Annotated[int, Field(ge=0, le=2)] = 0
    input_sample_dir: str = ""
    ln_scale_data_type: Literal["FP32", "S32", "U32"] = "FP32"
    check: Annotated[int, Field(ge=0, le=1)] = 0
    disable_auto_refine_scale: bool = False
    enable_easy_quant: bool = False
    disable_quant_optimization: bool = False
    enable_brecq: bool = False
    enable_lsq: bool = False
    enable_adaround: bool = False
    finetune_epochs: Int32 = 500
    finetune_block_size: Int32 = 4
    finetune_batch_size: Int32 = 1
    finetune_lr: Real = 1e-3
    device: str = Field("cpu", pattern=r"^(cpu|cuda:[0-7])$")


class OnnxOptimizeOption(Message):
    """`onnx_opt`: what the tool does to the graph before quantisation."""

    disable_onnx_optimization: bool = False
    enable_onnxsim: bool = False
    model_check: bool = False
    disable_transformation_check: bool = False
    save_tensors_data: bool = False


class InputProcessor(Message):
    """`input_processors[]`: from the run-time input (`src_*`) to the graph's own (`tensor_*`)."""

    tensor_name: str = Field(min_length=1)
    tensor_format: TensorFormat = "AutoColorSpace"
    tensor_layout: ImageLayout = "NCHW"
    src_format: SourceFormat = "AutoColorSpace"
    src_layout: ImageLayout = "NCHW"
    src_dtype: SourceType = "FP32"
    src_extra_shapes: list[dict[str, Any]] = []  # the manual does not print the Shape message
    csc_mode: CscMode = "NoCSC"
    csc_mat: list[Real] = []
    mean: list[Real] = []  # empty: calibration_mean
    std: list[Real] = []  # empty: calibration_std
    padding: list[Int32] = []
    padding_mode: Literal["constant"] = "constant"
    padding_constant_value: Int32 = 0
    slicing: list[Int32] = []

    @model_validator(mode="after")
    def _colour_conversion(self) -> "InputProcessor":
        if self.csc_mat and len(self.csc_mat) != CSC_MATRIX:
            raise ValueError(f"csc_mat has {len(self.csc_mat)} numbers, expected {CSC_MATRIX}")
        if self.src_format in ("YUV420SP", "YVU420SP") and self.csc_mode == "NoCSC":
            raise ValueError(f"src_format {self.src_format} needs a csc_mode other than NoCSC")
        return self


class OutputProcessor(Message):
    """`output_processors[]`."""

    tensor_name: str = Field(min_length=1)
    tensor_layout: Layout = "DefaultLayout"
    dst_perm: list[Int32] = []
    output_dtype: Literal["FP32", "U8"] = "FP32"


class OpProcessor(Message):
    """`op_processors[]`, `quant_op_processors[]`: attributes patched by operator name."""

    op_name: str = Field(min_length=1)
    attrs: dict[str, Any]


class ConstProcessor(Message):
    """`const_processors[]`: a constant replaced by numbers or by a .bin, .npy or .txt file."""

    name: str = Field(min_length=1)
    data: list[Real] = []
    data_path: str = ""


class PatternNode(Message):
    """A node of `compiler.compiler_group_patterns[].nodes[]` (`Node` in the definition)."""

    types: list[str] = []
    inputs: list[str] = []
    outputs: list[str] = []
    properties: dict[str, Any] = {}


class Pattern(Message):
    """`compiler.compiler_group_patterns[]` (`Graph` in the definition)."""

    nodes: list[PatternNode] = []
    type: Literal["Tile", "Slice"] = "Tile"
    match_mode: Literal["Op", "Tensor"] = "Op"


class CompilerConfig(Message):
    """`compiler`: what happens after quantisation."""

    static_batch_sizes: list[Int32] = []
    max_dynamic_batch_size: Int32 = 0
    ddr_bw_limit: Real = 0.0
    disable_ir_fix: bool = False
    check: Annotated[int, Field(ge=0, le=3)] = 0
    npu_perf: bool = False
    check_mode: Literal["CheckOutput", "CheckPerLayer"] = "CheckOutput"
    check_rtol: Real = 1e-5
    check_atol: Real = 0.0
    check_cosine_simularity: Real = 0.999  # so spelled
    check_tensor_black_list: list[str] = []
    enable_slice_mode: bool = False
    enable_tile_mode: bool = False
    enable_data_soft_compression: bool = False
    input_sample_dir: str = ""
    compiler_group_patterns: list[Pattern] = []
    sub_configs: list["CompilerConfig"] = []
    start_tensor_names: list[str] = []
    end_tensor_names: list[str] = []


class BuildConfig(Message):
    """The whole file. `input` and `output_dir` usually come on the command line, which wins."""

    input: str = ""
    output_dir: str = ""
    output_name: str = "compiled.axmodel"
    work_dir: str = ""
    model_type: ModelType = "ONNX"
    target_hardware: Hardware = "AX650"
    npu_mode: NpuMode = "NPU1"
    input_shapes: str = ""
    onnx_opt: OnnxOptimizeOption = OnnxOptimizeOption()
    quant: QuantConfig = QuantConfig()
    input_processors: list[InputProcessor] = []
    output_processors: list[OutputProcessor] = []
    const_processors: list[ConstProcessor] = []
    op_processors: list[OpProcessor] = []
    quant_op_processors: list[OpProcessor] = []
    compiler: CompilerConfig = CompilerConfig()

    @model_validator(mode="after")
    def _limits(self) -> "BuildConfig":
        if int(self.npu_mode[-1]) > NPU_MODES[self.target_hardware]:
            raise ValueError(f"npu_mode {self.npu_mode}: {self.target_hardware} has NPU1 to NPU2")
        if self.compiler.start_tensor_names or self.compiler.end_tensor_names:
            raise ValueError("compiler.start_tensor_names and end_tensor_names belong into compiler.sub_configs[]")
        return self


def load_config(path: Path) -> BuildConfig:
    """Reads a configuration file.

    Raises:
        InputError: it is missing, not strictly JSON (with the line) or against the schema: every problem with
            its path in the file and, for a misspelt field or value, the nearest known name.
    """
    try:
        return BuildConfig.model_validate(read_strict(path))
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(_explain(error))}") from None


def suggestion(name: str, message: type[Message]) -> str:
    """What the writer of an unknown field may have meant, as the end of a sentence."""
    places = [place for place, field in _places(BuildConfig) if field == name]
    if places:
        return f"it belongs into {places[0]}"
    if close := nearest(name, message.model_fields):
        return f"did you mean {close}?"
    everywhere = {field for _, field in _places(BuildConfig)}
    if close := nearest(name, everywhere):
        return f"did you mean {close}, in {next(place for place, field in _places(BuildConfig) if field == close)}?"
    return f"known here: {', '.join(message.model_fields)}"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is most like `word`, upper and lower case alike; one of the same letters comes first."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=4, cutoff=0.6)
    same_letters = [choice for choice in close if sorted(choice) == sorted(word.lower())]
    return by_lower[(same_letters or close)[0]] if close else None


def _places(message: type[Message], place: str = "") -> Iterable[tuple[str, str]]:
    """Every (path of its message, field) of the schema; sub_configs once."""
    for name, field in message.model_fields.items():
        yield place or "the top level", name
        inner = field.annotation
        many = isinstance(inner, GenericAlias)
        inner = get_args(inner)[0] if many else inner
        if isinstance(inner, type) and issubclass(inner, Message) and inner is not message:
            yield from _places(inner, f"{place}.{name}".lstrip(".") + ("[]" if many else ""))


def _explain(error: ValidationError) -> Iterable[str]:
    for entry in error.errors(include_url=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"]).lstrip(".")
        context = entry.get("ctx", {})
        match entry["type"]:
            case "unknown_fields":
                for name, hint in context["hints"]:
                    yield f"{path}.{name}".lstrip(".") + f": no such field; {hint}"
                continue
            case "literal_error":
                close = nearest(
                    str(entry["input"]),
                    context["expected"].replace("'", "").replace(" or ", ", ").split(", "),
                )
                problem = f"{entry['input']!r} is none of {context['expected']}"
                problem += f"; did you mean {close!r}?" if close else ""
            case "missing":
                problem = "is required"
            case "value_error":
                problem = str(context["error"])
            case "no_object":
                problem = f"expected an object, found {entry['input']!r:.60}"
            case _:
                problem = f"{entry['msg']}, found {entry['input']!r:.60}"
        yield f"{path}: {problem}" if path else problem
