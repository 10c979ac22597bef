"""The compiled vision model against the ONNX graph, by Pulsar2's own simulator; and what its build says.

    python -m qwen_vl_axera.compiled.axmodel MODEL.axmodel NAME_vision_uint8.onnx [--config FILE] [--build-output DIR]
                                             [--accept-precision] [--workdir DIR]

Reads:  pixels.npy of run_video_by_sec.py; with --config also what the build left in WORKDIR/build-output.
Writes: axmodel_fidelity.json. Exit code 1 when a step misses a limit, when the build made more than one subgraph, or
when nodes are known to have another width than layer_configs ask for; with --accept-precision the last is no reason.
"""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen_vl_axera import cli
from qwen_vl_axera.compiled.build import read_build
from qwen_vl_axera.compiled.record import LARGEST_ERROR, AxmodelFidelity, CompiledModel, CompiledStep, Limits
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.contract import (
    AXMODEL_FIDELITY,
    BUILD_OUTPUT,
    INPUT_NAME,
    OUTPUT_NAME,
    PIXELS,
    QUANTIZATION,
    shared_place,
)
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS, WORST, compare, token_rms
from qwen_vl_axera.fidelity.tables import columns
from qwen_vl_axera.files import read_json, write_record
from qwen_vl_axera.graph.files import load_graph
from qwen_vl_axera.made_from import made_from, stale
from qwen_vl_axera.oracle.record import read_capture, read_pixels

LEAST_GROWTH = 0.01  # of a predicted loss of cosine
# A token's error, relative to its size, is sqrt(1/c^2 - 1) where rounding turned it by an angle of cosine c. A cosine
# does not see a wrong scale: the error may be somewhat larger than that, and never as large as the token.
ERROR_GROWTH = 1.25
NAMED = 8  # files in a message


def check_axmodel(
    axmodel: Path,
    graph: Path,
    workdir: Path,
    config: Path | None = None,
    output: Path | None = None,
    accept_precision: bool = False,
) -> AxmodelFidelity:
    """Simulates the axmodel on every captured step, compares it with ONNX Runtime, and reads its build.

    Args:
        axmodel: the compiled model; its input is uint8 (1, S, 392, 3).
        graph: the uint8 graph.
        workdir: holds the capture; the simulator's files go to WORKDIR/axmodel-check.
        config: of the build; None: only numbers are compared.
        output: the build's output directory (default: WORKDIR/build-output).
        accept_precision: another width than the one asked for is no reason to fail.

    Raises:
        InputError, CheckFailed: as of `compare_axmodel`.
    """
    workdir = Path(workdir)
    steps = compare_axmodel(axmodel, graph, workdir, workdir / "axmodel-check")
    compared = CompiledModel(axmodel.name, *limits(workdir, config), steps)
    files, build = [axmodel, graph, workdir / PIXELS], None
    if config is not None:
        build = read_build(output or workdir / BUILD_OUTPUT, load_config(config), load_graph(graph))
        files.append(config)
    report = AxmodelFidelity(True, accept_precision, [compared], made_from(files, workdir), build)
    return AxmodelFidelity(report.holds, accept_precision, [compared], report.made_from, build)


def limits(workdir: Path, config: Path | None) -> tuple[Limits, str]:
    """How low cosines and how large errors may be, and where these limits come from, in words.

    As a preview of this configuration predicts, else the manual's own limit. A predicted loss may double, and grow by
    0.01 at least: an inference, since no prediction was held against a board. So is that what a preview says of the
    video's model holds for the picture model.

    Raises:
        InputError: `quantization.json` is not what a preview writes.
    """
    from qwen_vl_axera.quantization.record import read_quantization

    place, predicted = shared_place(workdir), None
    if config is not None and (place / QUANTIZATION).is_file():
        wanted = read_json(config)["quant"].get("layer_configs", [])
        found = read_quantization(place)
        if stale(found.made_from, place) is None:
            predicted = next((entry for entry in found.settings if entry.config == wanted), None)
    if predicted is None:
        words = "the manual's own limit for a quantised model: no preview of these files has this configuration"
        return with_error(AXMODEL_THRESHOLDS), words
    losses = 1 - predicted.mean_token_cosine, 1 - predicted.min_token_cosine
    lowest = {name: 1 - loss - max(loss, LEAST_GROWTH) for name, loss in zip(AXMODEL_THRESHOLDS, losses, strict=True)}
    words = f"as the preview predicts for {config.name}, whose loss may double and grow by {LEAST_GROWTH:g} at least"
    return with_error({name: max(limit, 0.0) for name, limit in lowest.items()}), words


def with_error(cosines: Limits) -> Limits:
    """The limits of cosines, and that of a token's error which belongs to them (inferred)."""
    cosine = max(cosines["min_token_cosine"], 1e-3)
    error = ERROR_GROWTH * math.sqrt(max(1 / cosine**2 - 1, 0.0))
    return {**cosines, "token_error": min(error, LARGEST_ERROR)}


def compare_axmodel(axmodel: Path, graph: Path, workdir: Path, place: Path) -> list[CompiledStep]:
    """The distance of an axmodel from its graph at every captured step.

    Args:
        axmodel: the compiled model; its input is uint8 (1, S, 392, 3).
        graph: the uint8 graph.
        workdir: holds the capture.
        place: for the simulator's files.

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
        steps.append(measure(expected, read_tokens(place / "output" / name, expected)))
    return steps


def measure(expected: np.ndarray, tokens: np.ndarray) -> CompiledStep:
    """The distance of one step's tokens, float32 (N, C) both."""
    figures = compare(expected, tokens)
    error = WORST
    if figures["max_abs"] < WORST:
        sizes = np.maximum(token_rms(expected), np.finfo(np.float32).tiny)
        error = float((token_rms(tokens.astype(np.float64) - expected) / sizes).max())
    return CompiledStep(**figures, token_error=min(error, WORST))


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


def table(report: AxmodelFidelity) -> str:
    """The comparison for the screen, a row a step; then the build, a line a finding."""
    rows = [("model", "step", "mean abs", "cosine", "lowest token", "worst token's error", "")]
    lines = []
    for model in report.graphs:
        for number, step in enumerate(model.steps):
            figures = f"{step.mean_abs:.2e}", f"{step.cosine:.8f}", f"{step.min_token_cosine:.8f}"
            verdict = "ok" if model.keeps(step) else "FAILED"
            rows.append((model.file, str(number), *figures, f"{step.token_error:.2e}", verdict))
        signs = {name: "≥" if name.endswith("cosine") else "≤" for name in model.thresholds}
        limits = ", ".join(f"{name} {signs[name]} {limit:g}" for name, limit in model.thresholds.items())
        lines.append(f"limits: {limits}: {model.source}")
    if report.build:
        lines += report.build.lines()
        if report.build.precision == "failed":
            lines.append("--accept-precision goes on with a precision that is not the one asked for")
    return "\n".join([*columns(rows), *lines])


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("axmodel", metavar="MODEL.axmodel", type=Path)
    parser.add_argument("graph", metavar="GRAPH.onnx", type=Path)
    parser.add_argument("--config", type=Path, metavar="FILE", help="of the build: did its layer_configs take effect?")
    parser.add_argument("--build-output", type=Path, metavar="DIR", help="of the build (default: WORKDIR/build-output)")
    add_accept_precision(parser)
    cli.add_workdir(parser)
    return parser


def add_accept_precision(parser) -> None:
    parser.add_argument(
        "--accept-precision", action="store_true", help="another width than layer_configs ask for is no reason to stop"
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    report = check_axmodel(
        args.axmodel, args.graph, args.workdir, args.config, args.build_output, args.accept_precision
    )
    write_record(args.workdir / AXMODEL_FIDELITY, AxmodelFidelity, report)
    print(table(report))
    return cli.EXIT_OK if report.passed else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
