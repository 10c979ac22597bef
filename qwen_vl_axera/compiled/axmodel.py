"""The compiled vision model against the ONNX graph, by Pulsar2's own simulator; and which precision it was built with.

    python -m qwen_vl_axera.compiled.axmodel MODEL.axmodel NAME_vision_uint8.onnx [--config FILE] [--workdir DIR]

Reads:  pixels.npy of run_video_by_sec.py; with --config also build-output/quant/quant_axmodel.json of the build.
Writes: axmodel_fidelity.json. Exit code 1 when a cosine is below the threshold, over a step or of any token, or when
an entry of the configuration's layer_configs had no effect. What the simulator reads and writes (`TENSOR.bin`, raw
values) is as the manual describes it; it was not run here.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import cli
from qwen_vl_axera.contract import AXMODEL_FIDELITY, BUILD_OUTPUT, INPUT_NAME, OUTPUT_NAME, QUANTIZATION, shared_place
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS, compare, graph_report
from qwen_vl_axera.fidelity.record import AxmodelFidelity
from qwen_vl_axera.fidelity.tables import table
from qwen_vl_axera.files import read_json, write_record
from qwen_vl_axera.oracle.record import read_capture, read_pixels

LEAST_GROWTH = 0.01  # of a predicted loss of cosine
NAMED = 8  # files in a message


def check_axmodel(axmodel: Path, graph: Path, workdir: Path, config: Path | None = None) -> dict[str, Any]:
    """Simulates the axmodel on every captured step and compares it with ONNX Runtime.

    Args:
        axmodel: the compiled model; its input is uint8 (1, S, 392, 3).
        graph: the uint8 graph.
        workdir: holds the capture; the simulator's files go to WORKDIR/axmodel-check.
        config: of the build; None: only numbers are compared.

    Returns:
        A report like `fidelity.json`, with `limits`, and `precision` with `config`.

    Raises:
        InputError, CheckFailed: as of `compare_axmodel`.
    """
    steps = compare_axmodel(axmodel, graph, workdir, Path(workdir) / "axmodel-check")
    thresholds = limits(Path(workdir), config)
    entry = graph_report(axmodel.name, steps, thresholds)
    report = {"passed": entry["passed"], "thresholds": thresholds, "graphs": [entry], "text": []}
    if config is not None and (precision := read_precision(config, graph, Path(workdir) / BUILD_OUTPUT)):
        report |= {"passed": entry["passed"] and precision["passed"], "precision": precision}
    return report


def limits(workdir: Path, config: Path | None) -> dict[str, float]:
    """How low cosines may be: as a preview of this configuration predicts, else the manual's own limit.

    A predicted loss may double, and grow by 0.01 at least: an inference, since no prediction was held against a board.
    So is that what a preview says of the video's model holds for the picture model.

    Raises:
        InputError: `quantization.json` is not what a preview writes.
    """
    from qwen_vl_axera.quantization.record import read_quantization

    place = shared_place(workdir)
    if config is None or not (place / QUANTIZATION).is_file():
        return AXMODEL_THRESHOLDS
    wanted = read_json(config)["quant"].get("layer_configs", [])
    predicted = next((entry for entry in read_quantization(place).settings if entry.config == wanted), None)
    if predicted is None:
        return AXMODEL_THRESHOLDS
    losses = 1 - predicted.mean_token_cosine, 1 - predicted.min_token_cosine
    return {name: 1 - loss - max(loss, LEAST_GROWTH) for name, loss in zip(AXMODEL_THRESHOLDS, losses, strict=True)}


def read_precision(config: Path, graph: Path, build_output: Path) -> dict[str, Any] | None:
    """Which precision a build really used; None where the compiler left no record of it.

    Args:
        config: of the build.
        graph: that was built, or its uint8 twin: the names are the same.
        build_output: where the build wrote to.
    """
    from qwen_vl_axera.compiled.precision import QUANTIZED, precision_report
    from qwen_vl_axera.compiler.schema import load_config
    from qwen_vl_axera.graph.files import load_graph

    path = build_output / QUANTIZED
    return precision_report(load_config(config), load_graph(graph).graph, path) if path.is_file() else None


def compare_axmodel(axmodel: Path, graph: Path, workdir: Path, place: Path) -> list[dict[str, float]]:
    """The distance of an axmodel from its graph at every captured step.

    Args:
        axmodel: the compiled model; its input is uint8 (1, S, 392, 3).
        graph: the uint8 graph.
        workdir: holds the capture.
        place: for the simulator's files.

    Returns:
        Figures as of `metrics.compare`, one dictionary a step.

    Raises:
        InputError: the compiler or a file is missing.
        CheckFailed: the simulator failed or wrote something else than the tokens.
    """
    from qwen_vl_axera.compiler.pulsar2 import run_command
    from qwen_vl_axera.compiler.tool import VARIABLE, execute, find_tool
    from qwen_vl_axera.fidelity.runtime import OnnxTower

    tool = find_tool(os.environ.get(VARIABLE))
    if not tool:
        raise InputError(f"{tool.name}: the simulator is the compiler's; set {VARIABLE} to a command or docker:IMAGE")
    if not axmodel.is_file():
        raise InputError(f"{axmodel} is missing: build it first")
    capture = read_capture(workdir)
    pixels = read_pixels(workdir, capture)
    tower = OnnxTower(graph)
    shutil.rmtree(place, ignore_errors=True)
    names = [f"step{number}" for number in range(len(pixels))]
    for name, patches in zip(names, pixels, strict=True):
        (place / "input" / name).mkdir(parents=True)
        np.ascontiguousarray(patches).tofile(place / "input" / name / f"{INPUT_NAME}.bin")
    (place / "output").mkdir()
    (place / "steps.txt").write_text("".join(f"{name}\n" for name in names))
    # One call for all steps: the simulator loads the model once.
    execute(run_command(tool, axmodel, place / "input", place / "output", place / "steps.txt", workdir))
    steps = []
    for name, patches in zip(names, pixels, strict=True):
        expected = tower.step(np.ascontiguousarray(patches))
        steps.append(compare(expected, read_tokens(place / "output" / name, expected)))
    return steps


def precision_text(precision: dict[str, Any] | None) -> str:
    """Which precision a build used, for the screen."""
    from qwen_vl_axera.compiled.precision import QUANTIZED, precision_lines

    if precision is None:
        return f"precision: not known, the compiler left no {QUANTIZED}"
    return "\n".join(f"precision: {line}" for line in precision_lines(precision))


def read_tokens(directory: Path, expected: np.ndarray) -> np.ndarray:
    """The simulator's output as float32 of the expected shape.

    Raises:
        CheckFailed: no such file, or of another size.
    """
    path = directory / f"{OUTPUT_NAME}.bin"
    if not path.is_file():
        names = sorted(item.name for item in directory.iterdir() if item.is_file()) if directory.is_dir() else []
        found = ", ".join(names[:NAMED]) or "no files"
        raise CheckFailed(f"pulsar2 run wrote no {OUTPUT_NAME}.bin into {directory}; it wrote {found}")
    size = path.stat().st_size
    if size != expected.size * np.dtype(np.float32).itemsize:
        raise CheckFailed(f"{path}: {size / 4:g} float32 values, expected {expected.size}")
    return np.fromfile(path, np.float32).reshape(expected.shape)


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("axmodel", metavar="MODEL.axmodel", type=Path)
    parser.add_argument("graph", metavar="GRAPH.onnx", type=Path)
    parser.add_argument("--config", type=Path, metavar="FILE", help="of the build: did its layer_configs take effect?")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    report = check_axmodel(args.axmodel, args.graph, args.workdir, args.config)
    write_record(args.workdir / AXMODEL_FIDELITY, AxmodelFidelity, report)
    print(table(report))
    if args.config is not None:
        print(precision_text(report.get("precision")))
    return cli.EXIT_OK if report["passed"] else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
