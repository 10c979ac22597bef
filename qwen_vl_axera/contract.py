"""What several packages must agree on: names of tensors and files, documented defaults, what a graph is made for.

Standard library only: everything imports this, and `--help` must answer at once.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_vl_axera.errors import InputError

# Tensors of the graph and of the compiled model.
INPUT_NAME, OUTPUT_NAME = "hidden_states", "hidden_states_out"

# Files of the work directory, by the step that writes them.
CAPTURE, PIXELS, ORACLE = "capture.json", "pixels.npy", "vit_out.npy"  # run_video_by_sec.py
EXACT = "vit_exact.npy"  # the oracle in float64, for some steps
STEP_PATCHES = "hidden_states"  # .pth: one step's normalised patches
FIDELITY, FIDELITY_TOKENS = "fidelity.json", "fidelity_tokens.npz"  # test_onnx_video_by_sec.py
CALIB, ARCHIVE, CALIB_MANIFEST = "calib", "hidden_states.tar", "manifest.json"  # get_calib.py, in calib/
PREFLIGHT = "preflight.json"
BUILD_OUTPUT, AXMODEL_FIDELITY = "build-output", "axmodel_fidelity.json"  # pulsar2 build, and the check of its model
STEPS, STAMPS, LEFT_TO_DO = "steps.json", ".steps", "pulsar2_commands.sh"  # export_video.sh
PROBE = "probe.json"  # probe_build.py
QUANTIZATION, MIXED_CONFIG = "quantization.json", "config_video_mixed.json"  # preview_quantization.py
REPORT = "report.html"
PICTURES = "pictures"  # the directory, in it, of what the steps hand each other about the picture model

# The embeddings, which `pulsar2 llm_build` does not write.
EMBEDDING = "model.embed_tokens.weight"
EMBEDDING_FILES = {
    "bfloat16": f"{EMBEDDING}.bfloat16.bin",
    "float32": f"{EMBEDDING}.float32.bin",
    "npy": f"{EMBEDDING}.npy",
}

# Defaults of the documented commands. Sizes are height and width in pixels, lengths are tokens.
VIDEO_SIZE, IMAGE_SIZE = (308, 308), (448, 448)
NUM_FRAMES, NUM_SAMPLES = 8, 32
PREFILL_LEN, KV_CACHE_LEN, PARALLEL, CHIP = 512, 1023, 32, "AX650"
CHUNK = 128  # tokens of one prefill run where it is done in chunks, as the vendor's newer models do it
ANSWER = 128  # tokens that should be left for an answer
WEIGHT_TYPES = ("s8", "s4", "bf16", "fp16", "fp32", "fp8_e5m2", "fp8_e4m3")  # of `pulsar2 llm_build`
POST_WEIGHT_TYPES = ("s8", "bf16", "fp8_e5m2", "fp8_e4m3")
CHIPS = ("AX650", "AX620E")  # those that `pulsar2 build` and `pulsar2 llm_build` both know
DESCRIBE, LOCATE = "描述这个视频.", "给出物体最后的位置框."
PROMPTS = (DESCRIBE, LOCATE)
MAX_NEW_TOKENS = 128
LANGUAGE_DTYPES = ("bfloat16", "float32")  # of the language model, where the host runs it

# What is taken when nothing is given; for a trial of the commands only.
ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEMO_CLIP, DEMO_MODEL = ASSETS / "demo.mp4", ASSETS / "demo_model"

MODES = ("video", "image")  # what a step holds: two frames, or a picture twice
INPUTS = ("pixels", "normalized")  # what the float input holds: 0..255, or normalised values
WINDOW_MODES = ("grouped", "folded", "unrolled", "dense")  # in the order in which a compiler is tried with them
OPSETS, OPSET = (16, 17, 18), 17
RECIPES = ("vendor", "mixed")  # which configuration a build gets: QUANTIZE


@dataclass(frozen=True)
class GraphSpec:
    """What a vision graph is made for: it makes the file's name and stands in the graph's metadata.

    Attributes:
        tower: model_type of the tower, such as "qwen2_5_vl".
        size: height and width in pixels.
        mode: one of MODES.
        input: one of INPUTS.
        window_mode: one of WINDOW_MODES.
        uint8: takes uint8 (1, S, 392, 3) as the compiled model does, instead of float32 (1, 3, S, 392).
        opset: one of OPSETS.
        probe: one windowed and one full-attention block of the tower, to be built in minutes instead of hours.
        blocks: those that a probe holds besides, by number.

    Raises:
        InputError: a field is none of its choices.
    """

    tower: str
    size: tuple[int, int]
    mode: str = MODES[0]
    input: str = INPUTS[0]
    window_mode: str = WINDOW_MODES[0]
    uint8: bool = False
    opset: int = OPSET
    probe: bool = False
    blocks: tuple[int, ...] = ()

    def __post_init__(self):
        choices = {"mode": MODES, "input": INPUTS, "window_mode": WINDOW_MODES, "opset": OPSETS}
        choices |= dict.fromkeys(("uint8", "probe"), (False, True))
        for name, known in choices.items():
            value = getattr(self, name)
            if not any(value == choice and type(value) is type(choice) for choice in known):
                raise InputError(f"{name} {value!r}: expected one of {', '.join(map(str, known))}")
        if not isinstance(self.tower, str) or not self.tower:
            raise InputError(f"tower {self.tower!r}: expected a model_type")
        sides = self.size
        if not isinstance(sides, tuple) or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise InputError(f"size {sides!r}: expected height and width in pixels")

        numbers = self.blocks
        if not isinstance(numbers, tuple) or any(type(number) is not int or number < 0 for number in numbers):
            raise InputError(f"blocks {numbers!r}: expected numbers")

    def stem(self, name: str, sized: bool = False) -> str:
        """The file's name without its ending: NAME_vision[_image][_HxW][_probe][_uint8].

        Args:
            name: the checkpoint's.
            sized: one of several sizes.
        """
        parts = graph_stem(name, self.mode, self.size if sized else None), "_probe" * self.probe, "_uint8" * self.uint8
        return "".join(parts)

    def metadata(self) -> dict[str, Any]:
        """The fields as the graph's metadata has them."""
        return asdict(self) | {"size": list(self.size), "blocks": list(self.blocks)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "GraphSpec":
        """The inverse of `metadata`; other keys are left alone.

        Raises:
            InputError: a field is missing or malformed.
        """
        absent = [name for name in cls.__dataclass_fields__ if name not in metadata]
        if absent:
            raise InputError(f"the metadata of export.py is missing ({', '.join(absent)})")
        fields = {name: metadata[name] for name in cls.__dataclass_fields__}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def graph_stem(name: str, mode: str, size: tuple[int, int] | None = None) -> str:
    """The float graph's file name without its ending: NAME_vision[_image][_HxW]."""
    kind = "_image" if mode == "image" else ""
    return f"{name}_vision{kind}" + (f"_{size[0]}x{size[1]}" if size else "")


def data_file(name: str) -> str:
    """The weights file that all graphs of a checkpoint share."""
    return f"{graph_stem(name, 'video')}.onnx.data"


def shared_place(workdir: Path) -> Path:
    """Where the graphs and the preview of a work directory lie: those of the picture model are a directory above."""
    return workdir.parent if workdir.name == PICTURES else workdir


def layer_file(prefix: str, prefill_len: int | str, layer: int | str) -> str:
    """The name that `pulsar2 llm_build` gives a layer; `prefix` is the tower's `board.layers`."""
    return f"{prefix}_p{prefill_len}_l{layer}_together.axmodel"


def post_file(prefix: str) -> str:
    """The name that it gives what follows the last layer."""
    return f"{prefix}_post.axmodel"
