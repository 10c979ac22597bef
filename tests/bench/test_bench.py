"""The benchmark: how it measures, that its reduced form runs, and that only it writes its figures. No timings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import render, step_cost
from bench import run as bench_run
from bench.make_checkpoint import make_checkpoint
from bench.measure import Row, alternate, copy_seconds, ratio, run
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.conftest import ROOT
from tests.tiny import make_tiny

MEGABYTES = 1_000_000
DOCUMENTS = ["README.md", "README.zh-CN.md", "docs/benchmarks.md"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_script) -> tuple[Path, str]:
    """The reduced run's directory and what it printed; the documents must be as before."""
    workdir = tmp_path_factory.mktemp("bench") / "work dir"
    before = {name: (ROOT / name).read_bytes() for name in DOCUMENTS}
    done = run_script("bench/run.py", "--quick", "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert before == {name: (ROOT / name).read_bytes() for name in DOCUMENTS}
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
    assert fidelity and all(row["met"] and 0 <= row["value"] < 2e-5 for row in fidelity)
    assert (quick[0] / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_quick_run_prints_a_table_and_leaves_no_large_files(quick):
    for heading, _ in render.PARTS.values():
        assert heading.upper() in quick[1]
    assert "None" not in quick[1] and "{" not in quick[1]
    assert not (quick[0] / "calibration").exists() and not list((quick[0] / "export").iterdir())


def test_every_row_reads_in_both_languages(quick):
    result = json.loads((quick[0] / "benchmarks.json").read_text())
    english, chinese = (render.markdown(result, language, "plot.png", False) for language in render.LANGUAGES)
    assert english.count("\n") == chinese.count("\n") and "![" in english and "目标" in chinese
    brief = render.markdown(result, "en", "plot.png", brief=True)
    assert len(brief) < len(english) and "bytes moved" not in brief
    assert all(len(texts) == len(render.LANGUAGES) for texts in render.LABELS.values())
    assert set(render.LABELS) >= render.DETAILS


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


def test_a_brief_table_states_the_worst_of_all_sizes():
    def row(label, size, **fields):
        return Row("chain", label, {"script": "x.py", "shape": "3B", "size": size}, **fields)

    rows = [
        row("fidelity", "308x308", value=1e-6, unit="relative", target=("<=", 2e-5)),
        row("fidelity", "448x448", value=3e-5, unit="relative", target=("<=", 2e-5)),
        row("fidelity", "896x896", unit="relative", target=("<=", 2e-5), note="it broke"),
        row("peak", "308x308", peak=3, peak_limit=4),
        row("peak", "448x448", peak=5, peak_limit=4),
        row("moved", "308x308", value=1.0, unit="MB"),
    ]
    fidelity, peak = render.condensed(rows)
    assert fidelity.params["size"] == "308x308, 448x448, 896x896"
    assert fidelity.met() is False and fidelity.note == "it broke"
    assert peak.peak == 5 and peak.met() is False
    assert list(render.condensed(rows[:1])) == rows[:1]


def test_publish_fills_the_documents(quick, tmp_path):
    result = json.loads((quick[0] / "benchmarks.json").read_text())
    (tmp_path / "docs").mkdir()
    for name in DOCUMENTS:
        (tmp_path / name).write_text(f"before\n{render.BEGIN}\nold figures\n{render.END}\nafter\n")
    documents = bench_run.DOCUMENTS + bench_run.READMES
    assert [name for name, *_ in documents] == ["docs/benchmarks.md", "README.md", "README.zh-CN.md"]
    for _ in range(2):  # the second time changes nothing
        bench_run.publish(result, tmp_path, documents)
        texts = [(tmp_path / name).read_text() for name in DOCUMENTS]
        for text in texts:
            assert text.startswith("before\n") and text.endswith("\nafter\n") and "old figures" not in text
            assert text.count("Random-") == 0 and "export.py" in text
    assert json.loads((tmp_path / "docs" / "benchmarks.json").read_text()) == result


def test_documents_have_their_markers():
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        assert text.count(render.BEGIN) == text.count(render.END) == 1, name


@pytest.mark.parametrize("text", ["none", render.BEGIN, render.END + render.BEGIN, 2 * (render.BEGIN + render.END)])
def test_rewrite_section_refuses_other_documents(tmp_path, text):
    path = tmp_path / "document.md"
    path.write_text(text)
    with pytest.raises(InputError, match="once each, in this order"):
        render.rewrite_section(path, "figures")
    assert path.read_text() == text


PEAKS = """
import json, sys
from bench.measure import run
hold = "data = bytearray(b'x' * 200_000_000)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
print(json.dumps([run([sys.executable, "-c", program]).peak for program in (hold, child, "pass")]))
"""


def test_peak_memory_counts_children():
    # From a small process, as the benchmark is: Linux counts a new program's peak from its parent's.
    output = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    own, child, idle = json.loads(output)
    for peak in (own, child):
        assert peak > 200 * MEGABYTES and peak - idle > 100 * MEGABYTES


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


def test_copy_writes_the_bytes_and_removes_them(tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    assert copy_seconds(tmp_path / "data", tmp_path / "copy") > 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_targets():
    row = Row("export", "peak", value=4.1, target=("<=", 4.0), peak=1, peak_limit=2)
    assert row.met() is False and "**missed**" in render.cells(replace(row, params={"script": "s", "size": "1x1"}))
    assert replace(row, value=4.0).met() is True
    assert replace(row, value=4.0, peak=3).met() is False
    assert replace(row, value=None).met() is False
    assert Row("export", "peak").met() is None
    assert Row.from_json(row.to_json()) == row


def test_a_graph_that_answers_differently_is_named_so():
    def figures(seconds, cosine):
        return {"seconds": [seconds] * 3, "agreement": {"min_token_cosine": cosine, "max_abs_relative": 0.0}}

    compared = {"grouped": figures(1.0, 1.0), "dense": figures(2.0, 1.0), "transformers": figures(2.0, 0.5)}
    dense, transformers = step_cost._step_rows((140, 252), compared, Path("model.onnx"))
    assert dense.value == 2.0 and dense.note is None
    assert "another answer" in transformers.note and "0.500" in transformers.note
    del compared["transformers"]
    _, failed = step_cost._step_rows((308, 308), compared, "RuntimeError: as it came")
    assert failed.value is None and failed.note == "RuntimeError: as it came"


def test_latency_tells_graphs_apart(tiny_dir, tmp_path, run_script):
    """Another checkpoint's graph of the same size is compared with the first, and found different."""
    other = make_tiny(tmp_path / "other", seed=1)
    for name, checkpoint in (("one", tiny_dir), ("two", other)):
        (tmp_path / name).mkdir()
        run(["export.py", checkpoint, "video", "--size", 56, 56, "--workdir", tmp_path / name])
    one = tmp_path / "one" / f"{tiny_dir.name}_vision.onnx"
    two = tmp_path / "two" / f"{other.name}_vision.onnx"
    done = run_script("bench/latency.py", "--rounds", "2", "2", f"one={one}", f"again={one}", f"two={two}")
    figures = json.loads(done.stdout)
    assert figures["again"]["agreement"] == figures["one"]["agreement"]
    assert figures["two"]["agreement"]["min_token_cosine"] < step_cost.SAME
    assert all(len(graph["seconds"]) == 2 and graph["patches"] == 16 for graph in figures.values())
    missing = run_script("bench/latency.py", f"one={tmp_path / 'nothing.onnx'}")
    assert missing.returncode == 2 and "is missing" in missing.stderr


def test_vision_only_checkpoint_is_the_full_one_without_language_model(tiny_dir, tmp_path):
    config = json.loads((tiny_dir / "config.json").read_text())
    make_checkpoint(tmp_path / "vision", config, vision_only=True)
    vision, full = Checkpoint(tmp_path / "vision"), Checkpoint(tiny_dir)
    assert set(vision.tensors) == {name for name in full.tensors if name.startswith("visual.")}
    for name, info in vision.tensors.items():
        assert (vision.read(name, info.shape) == full.read(name, info.shape)).all()


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
def test_bad_input(run_script, tmp_path, argv, message):
    done = run_script("bench/run.py", *argv, "--workdir", tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_readmes_take_all_parts_only(quick, run_script):
    done = run_script("bench/run.py", "--render", "--readme", "--workdir", quick[0])
    assert done.returncode == 2 and "needs all parts" in done.stderr
