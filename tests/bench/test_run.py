"""The benchmark's reduced form runs, and only a whole run writes the documents' figures. No timings."""

import json
from functools import partial
from pathlib import Path

import pytest

from bench import render
from bench import run as bench_run
from bench.measure import AHEAD, Row
from bench.plan import full_plan, quick_plan
from tests.conftest import ROOT, run_main

run = partial(run_main, bench_run.main)
DOCUMENT = "docs/benchmarks.md"


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_script) -> tuple[Path, str]:
    """The reduced run's directory and what it printed; the document must be as before."""
    workdir = tmp_path_factory.mktemp("bench") / "work dir"
    before = (ROOT / DOCUMENT).read_bytes()
    done = run_script("bench/run.py", "--quick", "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert before == (ROOT / DOCUMENT).read_bytes()
    return workdir, done.stdout


def test_quick_run_measures_every_part(quick):
    result = json.loads((quick[0] / "benchmarks.json").read_text())
    assert result["quick"] and result["parts"] == list(bench_run.PARTS)
    labels = {row["label"] for row in result["rows"]}
    assert labels >= {
        "export_to_copy",
        "step_dense",
        "cost_per_patch",
        "flatness",
        "nodes",
        "moved",
        "fidelity",
        "peak",
        "preprocess_to_resize_pillow",
        "calibration_rate",
        "calibration_to_decode",
        "embedding_to_copy",
    }
    for row in result["rows"]:
        assert row["value"] is not None or row["peak"] is not None, row
        assert row["note"] is None, row
    fidelity = [row for row in result["rows"] if row["label"] == "fidelity"]
    assert fidelity and all(row["verdict"] == "met" and 0 <= row["value"] < 2e-5 for row in fidelity)
    assert (quick[0] / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_quick_run_prints_a_table_and_leaves_no_large_files(quick):
    for heading in render.PARTS.values():
        assert heading.upper() in quick[1]
    assert "None" not in quick[1] and "{" not in quick[1]
    assert not (quick[0] / "calibration").exists() and not list((quick[0] / "export").iterdir())


def test_parts_that_compare_are_run_twice(monkeypatch, tmp_path):
    """Once through all parts, then again: a run's rows are put together line by line."""
    order = []

    class Part:
        def __init__(self, name):
            self.name = name

        def measure(self, plan):
            order.append(self.name)
            value = 1.0 + len(order) / 10
            yield Row(self.name, "a", {"size": 1}, value=value, range=(value, value), rounds=1, target=AHEAD)
            yield Row(self.name, "a", {"size": 2}, value=2.0, unit="nodes")

    monkeypatch.setattr(bench_run, "PARTS", {name: Part(name) for name in bench_run.PARTS})
    rows = list(bench_run._rows(full_plan(tmp_path, "3B", [(308, 308)]), ["export", "steps", "frames"]))
    assert order == ["export", "steps", "frames", "steps", "frames"]
    assert [(row.part, row.params["size"]) for row in rows] == [(part, size) for part in order[:3] for size in (1, 2)]
    assert [len(row.runs) for row in rows] == [1, 0, 2, 0, 2, 0]
    assert [row.verdict() for row in rows[::2]] == ["equal", "ahead", "ahead"]
    assert rows[2].range == (1.2, 1.4)
    assert quick_plan(tmp_path).runs == 1


def test_a_part_measured_anew_replaces_its_rows_only():
    def result(*parts, date, **conditions):
        rows = [{"part": part, "date": date} for part in parts]
        rows += [{"part": "graph", "date": date}] if "steps" in parts else []
        same = {"shape": "3B", "processor": "x", "cores": 2, "memory": 1, "versions": {"numpy": "2"}, "minutes": 5}
        return {"quick": False, "parts": list(parts), "conditions": same | conditions, "rows": rows}

    whole = result("export", "steps", "chain", "frames", date=1)
    merged = bench_run.with_earlier_parts(result("steps", date=2), whole)
    assert merged["parts"] == list(bench_run.PARTS) and merged["conditions"]["minutes"] == 10
    dates = {row["part"]: row["date"] for row in merged["rows"]}
    assert list(dates.items()) == [("export", 1), ("steps", 2), ("graph", 2), ("chain", 1), ("frames", 1)]
    for other in ({"cores": 4}, {"versions": {"numpy": "3"}}):
        alone = result("steps", date=2, **other)
        assert bench_run.with_earlier_parts(alone, whole) == alone
    anew = result("export", "steps", "chain", "frames", date=2)
    assert bench_run.with_earlier_parts(anew, whole)["conditions"]["minutes"] == 5


def test_publish_fills_the_document(quick, tmp_path):
    result = json.loads((quick[0] / "benchmarks.json").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / DOCUMENT).write_text(f"before\n{render.BEGIN}\nold figures\n{render.END}\nafter\n")
    for _ in range(2):  # the second time changes nothing
        bench_run.publish(result, tmp_path)
        text = (tmp_path / DOCUMENT).read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old figures" not in text
        assert text.count("Random-") == 0 and "export.py" in text and "bytes moved" in text and "![" in text
    assert json.loads((tmp_path / "docs" / "benchmarks.json").read_text()) == result


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sizes", "308"], "expected HxW"),
        (["--sizes", "300x308"], "multiples of 28"),
        (["--shape", "4B"], "invalid choice"),
        (["--parts", "speed"], "invalid choice"),
        (["--render"], "no such file"),
    ],
)
def test_bad_input(capsys, tmp_path, argv, message):
    code, _, error = run(capsys, *argv, "--workdir", tmp_path)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
