"""Part "export": what export.py costs, beside copying the data file that it writes."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.measure import Row, alternate, costs, ratio, run
from bench.plan import GIGABYTE, Plan, Size, name_of

COPIES = 4.0  # export.py takes at most so many times as long as the copy
PEAK = GIGABYTE


def measure(plan: Plan) -> Iterator[Row]:
    default, largest = plan.fidelity_sizes[0], plan.sizes[-1]
    for size in dict.fromkeys([default, largest]):
        yield _against_copy(plan, plan.checkpoint, plan.shape, size)
    if not plan.quick:
        yield _against_copy(plan, plan.largest_checkpoint, "72B", default)


def _against_copy(plan: Plan, checkpoint: Path, shape: str, size: Size) -> Row:
    workdir = plan.directory("export")
    data = workdir / f"{checkpoint.name}_vision.onnx.data"
    runs = alternate(
        {
            "export.py": lambda: run(["export.py", checkpoint, "video", "--size", *size, "--workdir", workdir]),
            "copy": lambda: run(["bench/copy_file.py", data, data.with_suffix(".copy")]),
        },
        plan.rounds,
        plan.settle,
    )
    seconds = {name: [one.seconds for one in ran] for name, ran in runs.items()}
    nbytes = data.stat().st_size
    for path in workdir.iterdir():
        path.unlink()
    return Row(
        "export",
        "export_to_copy",
        {"shape": shape, "size": name_of(size), "gigabytes": nbytes / GIGABYTE},
        target=("<=", COPIES),
        seconds={name: median(taken) for name, taken in seconds.items()},
        costs=costs(runs),
        peak=max(one.peak for one in runs["export.py"]),
        peak_limit=PEAK,
        **ratio(seconds["export.py"], seconds["copy"]),
    )
