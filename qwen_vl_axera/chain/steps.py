"""What each step of export_video.sh reads and writes, by its name. Nothing else declares it.

    name            code                          reads                          writes
    capture         run_video_by_sec.py           checkpoint, first clip         the capture's nine files
    export          export.py                     checkpoint, layout             the graphs and their weights
    fidelity        test_onnx_video_by_sec.py     checkpoint, capture, graphs    fidelity.json
    calibration     get_calib.py                  clips, the capture's size      calib/
    npu-probe       probe_build.py                checkpoint, capture, archive   probe.json
    npu-vision      pulsar2 build                 graph, archive, configuration  the vision axmodel
    npu-fidelity    compiled.axmodel              that model, capture, graph     axmodel_fidelity.json
    npu-language    pulsar2 llm_build             checkpoint                     the layers and the head
    embedding       extract_embedding.py          checkpoint                     the embeddings

The picture model goes through the same steps but for the probe and the last two: its graph lies beside the video's,
over the same weights, everything else in WORKDIR/pictures. Packaging and the report are quick and always run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl_axera.checkpoint.config import model_name
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
    LAYOUT_TENSORS,
    MODES,
    ORACLE,
    PICTURES,
    PIXELS,
    POST_MODEL,
    PROBE,
    QUANTIZATION,
    STEP_PATCHES,
    data_file,
    graph_stem,
    layer_file,
)


@dataclass(frozen=True)
class Place:
    """What one run of the chain is about.

    Attributes:
        checkpoint, workdir, out: directories.
        videos: what the model is captured and calibrated with; only the first is captured.
        config: Pulsar2's build configuration.
        prefill_len: part of the layers' names.
        mode: which vision model, one of MODES.
    """

    checkpoint: Path
    workdir: Path
    out: Path
    videos: Sequence[Path]
    config: Path
    prefill_len: int
    mode: str = MODES[0]

    @property
    def name(self) -> str:
        return model_name(self.checkpoint)

    @property
    def graph(self) -> str:
        return graph_stem(self.name, self.mode)

    @property
    def axmodel(self) -> Path:
        return self.out / f"{self.graph}.axmodel"

    @property
    def here(self) -> Path:
        """The work directory of this vision model."""
        return self.workdir / PICTURES if self.mode == "image" else self.workdir

    def work(self, *names: str) -> list[Path]:
        """Files of this vision model's work directory."""
        return [self.here / name for name in names]

    def graphs(self, *names: str) -> list[Path]:
        """Graphs, and the weights that they share."""
        return [self.workdir / name for name in names]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: its own.
        reads: files and directories.
        writes: files and directories; they must be there and new when it has ended.
        keeps: those of `writes` that may stay as they are: the command compares them, byte by byte, before it writes.
        checkpoint: read as a whole, or None.
        compiler: what counts besides data: "" its own code; "asked" also the compiler's version; "run" nothing but
            the compiler's version and command line, whose outputs no line of ours can change.
    """

    name: str
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()
    checkpoint: Path | None = None
    compiler: str = ""
    command: Sequence[str] = field(default=())
    keeps: Sequence[Path] = ()


HOST_STEPS = ("capture", "export", "fidelity", "calibration")
NAMES = (*HOST_STEPS, "npu-probe", "npu-vision", "npu-fidelity", "npu-language", "embedding")


def declared(name: str, place: Place, command: Sequence[str] = ()) -> Step:
    """A step by its name.

    Args:
        name: one of NAMES.
        place: what this run is about.
        command: what export_video.sh runs for it.
    """
    work, checkpoint = place.work, place.checkpoint
    layout = work(*(f"{name}.pth" for name in LAYOUT_TENSORS))
    capture = [*work(CAPTURE, PIXELS, ORACLE, EXACT, f"{STEP_PATCHES}.pth"), *layout]
    graph, uint8, weights = place.graphs(f"{place.graph}.onnx", f"{place.graph}_uint8.onnx", data_file(place.name))
    archive = work(f"{CALIB}/{ARCHIVE}")
    match name:
        case "capture":
            return Step(name, place.videos[:1], capture, checkpoint, command=command)
        case "export":
            writes = [graph, uint8, weights]
            return Step(name, [*work(CAPTURE), *layout], writes, checkpoint, command=command, keeps=[weights])
        case "fidelity":
            reads = [*work(CAPTURE, PIXELS, ORACLE, EXACT), graph, uint8, weights]
            return Step(name, reads, work(FIDELITY, FIDELITY_TOKENS), checkpoint, command=command)
        case "calibration":
            writes = [*archive, *work(f"{CALIB}/{CALIB_MANIFEST}")]
            return Step(name, [*place.videos, *work(CAPTURE)], writes, command=command)
        case "npu-probe":  # not the graph: that is exported once more in the form which the probe chooses
            reads = [*work(CAPTURE, PIXELS), *archive, place.config]
            return Step(name, reads, work(PROBE), checkpoint, compiler="asked", command=command)
        case "npu-vision":
            reads = [graph, weights, *archive, place.config]
            return Step(name, reads, [place.axmodel], compiler="run", command=command)
        case "npu-fidelity":
            reads = [place.axmodel, *work(CAPTURE, PIXELS), uint8, weights, place.config]
            reads += filter(Path.is_file, [place.workdir / QUANTIZATION])  # a preview sets the limits
            return Step(name, reads, work(AXMODEL_FIDELITY), compiler="asked", command=command)
        case "npu-language":
            return Step(name, (), language_models(place), checkpoint, compiler="run", command=command)
        case "embedding":
            return Step(name, (), [place.out / EMBEDDING_FILES["bfloat16"]], checkpoint, command=command)
    raise ValueError(f"no step is named {name!r}: expected one of {', '.join(NAMES)}")


def language_models(place: Place) -> list[Path]:
    """What `pulsar2 llm_build` makes of the checkpoint's language model."""
    from qwen_vl_axera.checkpoint.config import load_config

    layers = load_config(place.checkpoint).text.num_hidden_layers
    names = [layer_file(place.prefill_len, number) for number in range(layers)]
    return [place.out / name for name in (*names, POST_MODEL)]
