"""Seconds, memory, bytes, ratios and verdicts. No timings that a busy machine could change."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from bench.measure import AHEAD, Row, Run, alternate, costs, ratio, run, together
from qwen_vl_axera.errors import CheckFailed
from tests.conftest import ROOT

MEGABYTES = 1_000_000


PEAKS = """
import json, sys
from bench.measure import run
hold = "data = bytearray(b'x' * 200_000_000)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
print(json.dumps([run([sys.executable, "-c", program]).peak for program in (hold, child, "pass")]))
"""
COPY = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"


def test_peak_memory_counts_children():
    # From a small process, as the benchmark is: Linux counts a new program's peak from its parent's.
    output = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    own, child, idle = json.loads(output)
    for peak in (own, child):
        assert peak > 200 * MEGABYTES and peak - idle > 100 * MEGABYTES


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="this system does not count them")
def test_bytes_and_processor_time_count_children(tmp_path):
    """A copy made by a child: read and written is at least the file, written to the disk, too, by its fsync."""
    size = 20 * MEGABYTES
    (tmp_path / "data").write_bytes(bytes(size))
    paths = tmp_path / "data", tmp_path / "copy"
    copy = run([sys.executable, "-c", COPY, ROOT / "bench" / "copy_file.py", *paths])
    assert size <= copy.read < 2 * size and size <= copy.written < 2 * size
    assert copy.read_disk <= copy.read
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    busy = run([sys.executable, "-c", COPY, "-c", "sum(range(10_000_000))"])
    idle = run([sys.executable, "-c", COPY, "-c", "import time; time.sleep(0.3)"])
    assert busy.processor > 2 * idle.processor and idle.seconds > 0.3
    assert copy.written > 100 * busy.written


def test_costs_are_medians_and_leave_out_what_is_not_counted():
    def one(processor, **disk):
        return Run(1.0, processor, 1, 0, "", "", **disk)

    ran = {"a": [one(1, read=10), one(2, read=20), one(9, read=90)], "b": [one(4)]}
    assert costs(ran) == {"a": {"processor": 2, "read": 20}, "b": {"processor": 4}}


def test_failing_process_is_an_error_with_its_stderr():
    program = [sys.executable, "-c", "import sys; sys.exit('the reason')"]
    with pytest.raises(CheckFailed, match="the reason"):
        run(program)
    assert run(program, check=False).code == 1


def test_alternation_is_a_b_b_a_and_ratios_are_by_round():
    order = []
    results = alternate({"a": lambda: order.append("a") or 1, "b": lambda: order.append("b") or 2}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"] and results == {"a": [1, 1, 1], "b": [2, 2, 2]}
    # The machine slows down tenfold; the ratios don't see it.
    assert ratio([2, 20, 30], [1, 10, 10]) == {"value": 2, "range": (2, 3), "rounds": 3}


def test_targets():
    row = Row("export", "peak", value=4.1, target=("<=", 4.0), peak=1, peak_limit=2)
    assert row.verdict() == "missed"
    assert replace(row, value=4.0).verdict() == "met"
    assert replace(row, value=4.0, peak=3).verdict() == "missed"
    assert replace(row, value=None).verdict() == "missed"
    assert replace(row, target=(">=", 4.1)).verdict() == "met"
    assert replace(row, target=None).verdict() == "met"
    assert Row("export", "peak").verdict() is None
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == replace(row, target=["<=", 4.0])


@pytest.mark.parametrize(
    ("ranges", "verdict"),
    [
        ([(1.01, 1.09), (1.02, 1.2)], "ahead"),
        ([(1.01, 1.09)], "equal"),  # one run shows nothing
        ([(1.01, 1.09), (0.9, 1.08)], "equal"),
        ([(1.0, 1.09), (1.02, 1.2)], "equal"),
        ([(0.7, 0.9), (0.8, 1.1)], "equal"),
        ([(0.7, 0.9), (0.8, 0.99)], "behind"),
        ([(0.7, 0.9)], "equal"),
    ],
)
def test_ahead_is_what_stays_above_1_in_separate_runs(ranges, verdict):
    rows = [
        Row("steps", "x", value=sum(one) / 2, range=one, rounds=3, target=AHEAD, seconds={"a": one[0]}, peak=number)
        for number, one in enumerate(ranges)
    ]
    row = together(rows)
    assert row.verdict() == verdict
    assert row.range == (min(low for low, _ in ranges), max(high for _, high in ranges))
    assert (row.rounds, row.peak) == (3 * len(rows), len(rows) - 1)
    assert [run["range"] for run in row.runs] == ranges and row.seconds == {"a": median(low for low, _ in ranges)}
    assert Row.from_json(json.loads(json.dumps(row.to_json()))).verdict() == verdict


def test_an_error_in_one_run_is_not_forgotten():
    rows = [Row("steps", "x", value=1.2, range=(1.1, 1.3), rounds=3, target=AHEAD), Row("steps", "x", note="it broke")]
    assert (together(rows).note, together(rows).verdict()) == ("it broke", "equal")
    assert together(rows[1:]).value is None
