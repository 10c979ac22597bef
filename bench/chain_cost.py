"""Part "chain": memory of steps 1 and 3 at true size, and the graph against transformers at several sizes."""

import json
from collections.abc import Iterator
from pathlib import Path

from bench.measure import DEMO_VIDEO, Row, Run, run
from bench.plan import GIGABYTE, Plan, Size, name_of

PEAK = 4 * GIGABYTE
MAX_ABS_RELATIVE = 2e-5  # of the largest output


def measure(plan: Plan) -> Iterator[Row]:
    captures: dict[Size, Run] = {}
    checks: dict[Size, Run] = {}
    for outliers in (False,) if plan.quick else (False, True):
        checkpoint = plan.outliers_checkpoint if outliers else plan.checkpoint
        graphs = plan.directory(f"chain-{checkpoint.name}")
        flags = [word for size in plan.fidelity_sizes for word in ("--size", *size)]
        if len(plan.fidelity_sizes) == 1:
            flags += ["--size", 56, 56]  # with a single size the files would be named without it
        run(["export.py", checkpoint, "video", *flags, "--workdir", graphs])
        for size in plan.fidelity_sizes:
            workdir = plan.directory(f"chain-{checkpoint.name}/{name_of(size)}")
            graph = graphs / f"{checkpoint.name}_vision_{name_of(size)}.onnx"
            # Two steps where memory is stated: that they fit together is checked there, too.
            frames = 4 if size == plan.fidelity_sizes[0] else 2
            clip = ["--video", DEMO_VIDEO, "--num-frames", frames]
            capture = run(["run_video_by_sec.py", checkpoint, *clip, "--size", *size, "--workdir", workdir])
            check = run(["test_onnx_video_by_sec.py", checkpoint, "--onnx", graph, "--workdir", workdir], check=False)
            yield _fidelity_row(plan, size, outliers, workdir, check)
            captures.setdefault(size, capture)
            checks.setdefault(size, check)
        (graphs / f"{checkpoint.name}_vision.onnx.data").unlink()
    for script, runs in (("run_video_by_sec.py", captures), ("test_onnx_video_by_sec.py", checks)):
        for size, one in runs.items():
            params = {"script": script, "size": name_of(size)}
            yield Row("chain", "peak", params, seconds={script: one.seconds}, peak=one.peak, peak_limit=PEAK)


def _fidelity_row(plan: Plan, size: Size, outliers: bool, workdir: Path, check: Run) -> Row:
    params = {"shape": plan.shape, "size": name_of(size)}
    label = "fidelity_outliers" if outliers else "fidelity"
    report = workdir / "fidelity.json"
    if not report.is_file():
        return Row("chain", label, params, target=("<=", MAX_ABS_RELATIVE), note=check.stderr.strip()[-300:])
    steps = [step for graph in json.loads(report.read_text())["graphs"] for step in graph["steps"]]
    worst = max(step["max_abs_relative"] for step in steps)
    return Row("chain", label, params, value=worst, unit="relative", target=("<=", MAX_ABS_RELATIVE))
