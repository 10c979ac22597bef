"""The table of export_video.sh: every step with its command, what it reads and what it writes.

What a run does, skips, prints in a dry run or leaves for later, and what is checked before, is derived from it.
The picture model goes through the same steps but for the probe and the last ones: its graph lies beside the video's,
over the same weights, everything else in WORKDIR/pictures.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qwen_vl_axera.chain.options import ROOT, Run, flags
from qwen_vl_axera.chain.pictures import capture_source, with_pictures
from qwen_vl_axera.contract import (
    ARCHIVE,
    AXMODEL_FIDELITY,
    CALIB,
    CALIB_MANIFEST,
    CAPTURE,
    EMBEDDING_FILES,
    EXACT,
    FIDELITY,
    FIDELITY_TOKENS,
    MODES,
    ORACLE,
    PICTURES,
    PIXELS,
    PROBE,
    QUANTIZATION,
    STEP_PATCHES,
    data_file,
    graph_stem,
    layer_file,
    post_file,
)
from qwen_vl_axera.towers import find_tower
from qwen_vl_axera.towers.tower import Tower

FORM = "@form"  # in a command that is left for later: what the probe will find
LENGTHS = ("PREFILL_LEN", "KV_CACHE_LEN", "LAST_KV_CACHE_LEN")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: its own; None: quick, run every time and not recorded.
        title: for the screen.
        command: program and arguments.
        reads: files and directories.
        writes: files and directories; they must be there and new when it has ended.
        keeps: those of `writes` that may stay as they are: the command compares them, byte by byte, before it writes.
        checkpoint: read as a whole, or None.
        compiler: what counts besides data: "" its own code; "asked" also the compiler's version; "run" nothing but
            the compiler's version and command line, whose outputs no line of ours can change.
    """

    name: str | None
    title: str
    command: Sequence[str]
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()
    keeps: Sequence[Path] = ()
    checkpoint: Path | None = None
    compiler: str = ""


def python(script: str, *words: str | Path) -> list[str]:
    """A command of ours: a script of the project, or a module; a path is never taken for a flag."""
    program = [str(ROOT / script)] if script.endswith(".py") else ["-P", "-m", script]
    return [sys.executable, *program, *(f"./{word}" if _like_a_flag(word) else str(word) for word in words)]


def _like_a_flag(word: str | Path) -> bool:
    return isinstance(word, Path) and str(word).startswith("-")


@dataclass(frozen=True)
class Model:
    """One vision model of a run.

    Attributes:
        run: the run.
        mode: one of MODES.
    """

    run: Run
    mode: str = MODES[0]

    @cached_property
    def here(self) -> Path:
        """What belongs to this model alone."""
        return self.run.workdir / PICTURES if self.mode == "image" else self.run.workdir

    @cached_property
    def graph(self) -> Path:
        return self.run.workdir / f"{graph_stem(self.run.name, self.mode)}.onnx"

    @cached_property
    def uint8(self) -> Path:
        return self.graph.with_name(f"{self.graph.stem}_uint8.onnx")

    @cached_property
    def weights(self) -> Path:
        return self.run.workdir / data_file(self.run.name)

    @cached_property
    def axmodel(self) -> Path:
        return self.run.out / f"{self.graph.stem}.axmodel"

    @cached_property
    def archive(self) -> Path:
        return self.here / CALIB / ARCHIVE

    @cached_property
    def inputs(self) -> Sequence[Path]:
        """What it is calibrated with."""
        return (self.mode == "image" and with_pictures(self.run.videos)) or self.run.videos

    def work(self, *names: str) -> list[Path]:
        return [self.here / name for name in names]

    def _title(self, text: str) -> str:
        return text + " (pictures)" * (self.mode == "image")

    def _flags(self, *names: str) -> list[str]:
        return flags(self.run.values, *names)

    def capture(self) -> Step:
        source, frames = capture_source(self.run.videos) if self.mode == "image" else (self.run.videos[0], None)
        words = ["--num-frames", str(frames)] if frames else []
        words += self._flags("IMAGE_SIZE") if self.mode == "image" else self._flags("NUM_FRAMES", "FPS", "SIZE")
        layout = [f"{name}.pth" for name in (STEP_PATCHES, *tower_of(self.run).layout_tensors)]
        return Step(
            "capture",
            self._title("1 transformers' vision tower, step by step"),
            python("run_video_by_sec.py", self.run.checkpoint, "--video", source, *words, "--workdir", self.here),
            reads=[source],
            writes=self.work(CAPTURE, PIXELS, ORACLE, EXACT, *layout),
            checkpoint=self.run.checkpoint,
        )

    def export(self, form: str) -> Step:
        words = [f"--window-mode={form}", *(self._flags("IMAGE_SIZE") if self.mode == "image" else [])]
        words += [*self._flags("INPUT", "OPSET"), "--workdir", self.run.workdir]
        return Step(
            "export",
            self._title("2 PyTorch -> ONNX"),
            python("export.py", self.run.checkpoint, self.mode, *words),
            reads=self.work(CAPTURE, *(f"{name}.pth" for name in tower_of(self.run).layout_tensors)),
            writes=[self.graph, self.uint8, self.weights],
            keeps=[self.weights],
            checkpoint=self.run.checkpoint,
        )

    def fidelity(self) -> Step:
        words = self._flags("GENERATE") if self.mode == "video" else []
        graphs = "--onnx", self.graph, self.uint8
        return Step(
            "fidelity",
            self._title("3 ONNX in the vision tower's place"),
            python("test_onnx_video_by_sec.py", self.run.checkpoint, *graphs, *words, "--workdir", self.here),
            reads=[*self.work(CAPTURE, PIXELS, ORACLE, EXACT), self.graph, self.uint8, self.weights],
            writes=self.work(FIDELITY, FIDELITY_TOKENS),
            checkpoint=self.run.checkpoint,
        )

    def calibration(self) -> Step:
        words = self._flags("NUM_SAMPLES")
        words += (
            ["--format", "image"] if self.run.values["INPUT"] == "normalized" else []
        )  # as its configuration has it
        return Step(
            "calibration",
            self._title("4 calibration set"),
            python("get_calib.py", "--inputs", *self.inputs, *words, "--workdir", self.here),
            reads=[*self.inputs, *self.work(CAPTURE)],
            writes=[self.archive, *self.work(f"{CALIB}/{CALIB_MANIFEST}")],
        )

    def preflight(self) -> Step:
        words = ["--config", self.run.config, "--onnx", self.graph, "--out", self.run.out, "--workdir", self.here]
        words += self._flags(*LENGTHS, "WEIGHT_TYPE", "CHIP")
        title = self._title("is everything in place for the compiler?")
        return Step(None, title, python("preflight.py", self.run.checkpoint, *words))

    def probe(self) -> Step:
        fallback = ["--fallback", self.run.fallback] if self.run.fallback else []
        words = ["--config", self.run.config, *fallback, *self._flags("WINDOW_MODE", "OPSET", "CHIP", "BUILD_FLAGS")]
        return Step(
            "npu-probe",
            "two blocks of the tower -> NPU: which form compiles, and computes the same?",
            python("probe_build.py", self.run.checkpoint, *words, "--workdir", self.here),
            # Not the graph: that is exported once more in the form which the probe chooses.
            reads=[
                *self.work(CAPTURE, PIXELS),
                self.weights,
                self.archive,
                self.run.config,
                *filter(None, [self.run.fallback]),
            ],
            writes=self.work(PROBE),
            checkpoint=self.run.checkpoint,
            compiler="asked",
        )

    def build(self, config: Path) -> Step:
        words = ["--config", config, "--workdir", self.here, *self._flags("CHIP", "BUILD_FLAGS")]
        return Step(
            "npu-vision",
            self._title("vision graph -> NPU"),
            python("qwen_vl_axera.compiler", "build", self.graph, *words, "--deliver", self.axmodel),
            reads=[self.graph, self.weights, self.archive, config],
            writes=[self.axmodel],
            compiler="run",
        )

    def compare(self, config: Path) -> Step:
        words = ["--config", config, "--workdir", self.here]
        preview = filter(Path.is_file, [self.run.workdir / QUANTIZATION])  # it sets the limits
        return Step(
            "npu-fidelity",
            self._title("compiled model against ONNX"),
            python("qwen_vl_axera.compiled.axmodel", self.axmodel, self.uint8, *words),
            reads=[self.axmodel, *self.work(CAPTURE, PIXELS), self.uint8, self.weights, config, *preview],
            writes=self.work(AXMODEL_FIDELITY),
            compiler="asked",
        )

    def report(self) -> Step:
        return Step(None, "", python("make_report.py", self.run.checkpoint, "--workdir", self.here))


def language(run: Run) -> Step:
    words = flags(run.values, *LENGTHS, "WEIGHT_TYPE", "POST_WEIGHT_TYPE", "PARALLEL", "LLM_BUILD2", "CHIP")
    words += flags(run.values, "LLM_BUILD_FLAGS")
    return Step(
        "npu-language",
        "language model -> NPU",
        python("qwen_vl_axera.compiler", "llm_build", run.checkpoint, run.out, *words),
        writes=language_models(run),
        checkpoint=run.checkpoint,
        compiler="run",
    )


def language_models(run: Run) -> list[Path]:
    """What `pulsar2 llm_build` makes of the checkpoint's language model; [] before there is an environment."""
    try:
        from qwen_vl_axera.checkpoint.config import load_config

        layers = load_config(run.checkpoint).text.num_hidden_layers
    except ImportError:
        return []
    prefix = tower_of(run).board.layers
    names = [layer_file(prefix, run.values["PREFILL_LEN"], number) for number in range(layers)]
    return [run.out / name for name in (*names, post_file(prefix))]


def tower_of(run: Run) -> Tower:
    """The checkpoint's tower; Qwen2.5-VL's before there is an environment that reads config.json."""
    try:
        from qwen_vl_axera.checkpoint.config import load_config

        return find_tower(load_config(run.checkpoint).model_type)
    except ImportError:
        return find_tower("qwen2_5_vl")


def embedding(run: Run) -> Step:
    return Step(
        "embedding",
        "5 token embeddings",
        python("extract_embedding.py", run.checkpoint, run.out),
        writes=[run.out / EMBEDDING_FILES["bfloat16"]],
        checkpoint=run.checkpoint,
    )


def package(run: Run, complete: bool) -> Step:
    words = [*flags(run.values, "PREFILL_LEN"), "--workdir", run.workdir, *(["--require-complete"] if complete else [])]
    return Step(None, "6 the directory for the board", python("package_model.py", run.checkpoint, run.out, *words))


def advice(run: Run) -> Step:
    return Step(None, "", python("qwen_vl_axera.quantization.advice", "--workdir", run.workdir))
