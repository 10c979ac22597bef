"""Part "export": the seconds and memory of export.py against copying the data file it writes."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.measure import Row, alternate, copy_seconds, ratio, run
from bench.plan import GIGABYTE, Plan, Size, name_of

COPIES = 4.0  # export.py takes at most so many times as long as the copy
PEAK = GIGABYTE


def measure(plan: Plan) -> Iterator[Row]:
    size = plan.fidelity_sizes[0]
    yield _against_copy(plan, plan.checkpoint, plan.shape, size)
    largest = plan.sizes[-1]
    yield _against_copy(plan, plan.checkpoint, plan.shape, largest)
    if not plan.quick:
        yield _against_copy(plan, plan.largest_checkpoint, "72B", size)


def _against_copy(plan: Plan, checkpoint: Path, shape: str, size: Size) -> Row:
    workdir = plan.directory("export")
    data = workdir / f"{checkpoint.name}_vision.onnx.data"
    runs = alternate(
        {
            "export.py": lambda: run(["export.py", checkpoint, "video", "--size", *size, "--workdir", workdir]),
            "copy": lambda: copy_seconds(data, data.with_suffix(".copy")),
        },
        plan.rounds,
        plan.settle,
    )
    exports = [one.seconds for one in runs["export.py"]]
    nbytes = data.stat().st_size
    for path in workdir.iterdir():
        path.unlink()
    return Row(
        "export",
        "export_to_copy",
        {"shape": shape, "size": name_of(size), "gigabytes": nbytes / GIGABYTE},
        target=("<=", COPIES),
        seconds={"export.py": median(exports), "copy": median(runs["copy"])},
        peak=max(one.peak for one in runs["export.py"]),
        peak_limit=PEAK,
        **ratio(exports, runs["copy"]),
    )
