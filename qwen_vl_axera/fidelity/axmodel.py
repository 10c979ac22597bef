"""The compiled vision model against the ONNX graph, by Pulsar2's own simulator.

    python -m qwen_vl_axera.fidelity.axmodel MODEL.axmodel NAME_vision_uint8.onnx [--workdir DIR]

Reads:  pixels.npy of run_video_by_sec.py. Writes: axmodel_fidelity.json. Exit code 1 when a cosine is below the
threshold, over a step or of any token. What the simulator reads and writes (`TENSOR.bin`, raw values) is as the
manual describes it; it was not run here.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import cli
from qwen_vl_axera.contract import AXMODEL_FIDELITY, INPUT_NAME, OUTPUT_NAME
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS, compare, graph_report
from qwen_vl_axera.fidelity.record import AxmodelFidelity
from qwen_vl_axera.fidelity.tables import table
from qwen_vl_axera.files import write_record
from qwen_vl_axera.oracle.record import read_capture, read_pixels


def check_axmodel(axmodel: Path, graph: Path, workdir: Path) -> dict[str, Any]:
    """Simulates the axmodel on every captured step and compares it with ONNX Runtime.

    Args:
        axmodel: the compiled model; its input is uint8 (1, S, 392, 3).
        graph: the uint8 graph.
        workdir: holds the capture; the simulator's files go to WORKDIR/axmodel-check.

    Returns:
        A report like `fidelity.json`, with AXMODEL_THRESHOLDS.

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
    place = Path(workdir) / "axmodel-check"
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
    report = graph_report(axmodel.name, steps, AXMODEL_THRESHOLDS)
    return {"passed": report["passed"], "thresholds": AXMODEL_THRESHOLDS, "graphs": [report], "text": []}


def read_tokens(directory: Path, expected: np.ndarray) -> np.ndarray:
    """The simulator's output as float32 of the expected shape.

    Raises:
        CheckFailed: no such file, or of another size.
    """
    path = directory / f"{OUTPUT_NAME}.bin"
    if not path.is_file():
        found = ", ".join(sorted(item.name for item in directory.iterdir())) or "nothing"
        raise CheckFailed(f"pulsar2 run wrote no {OUTPUT_NAME}.bin into {directory}; it wrote {found}")
    values = np.fromfile(path, np.float32)
    if values.size != expected.size:
        raise CheckFailed(f"{path}: {values.size} float32 values, expected {expected.size}")
    return values.reshape(expected.shape)


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("axmodel", metavar="MODEL.axmodel", type=Path)
    parser.add_argument("graph", metavar="GRAPH.onnx", type=Path)
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    report = check_axmodel(args.axmodel, args.graph, args.workdir)
    write_record(args.workdir / AXMODEL_FIDELITY, AxmodelFidelity, report)
    print(table(report))
    return cli.EXIT_OK if report["passed"] else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main, unexpected=cli.EXIT_CHECK_FAILED))
