"""quantization_true_size.py: what it measures and how it is shown; the search itself has tests of its own."""

import json

import preview_quantization
from bench import quantization_true_size as true_size
from qwen_vl_axera import progress
from tests.conftest import ROOT

STAGES = [
    ("calibration", 90.0),
    (true_size.COMPARED, 4.0),
    ("search", 200.0),
    ("0 layers wide", 5),
    ("3 layers wide", 6),
]


def test_stages_are_timed_and_an_earlier_search_is_not_taken_over(tmp_path, monkeypatch):
    given = []

    def preview(argv):
        given.append(argv)
        for name in ("calibration", "search"):
            with progress.stage(name, 2, unit="sample") as stage:
                stage.advance()

    monkeypatch.setattr(preview_quantization, "main", preview)
    monkeypatch.setattr(progress, "stage", progress.stage)  # to be put back
    (tmp_path / "work-massive").mkdir()
    (progress_file := tmp_path / "work-massive" / "quantization_search.json").write_text("{}")
    true_size.search(tmp_path, "massive", tmp_path / "film.mp4")
    assert not progress_file.exists()
    assert given[0][0] == str(tmp_path / "massive") and given[0][-1] == "--search"
    stages = json.loads((tmp_path / "massive.json").read_text())["stages"]
    assert [name for name, _ in stages] == ["calibration", "search"]
    assert all(0 <= seconds < 1 for _, seconds in stages)


def test_costs_are_added_up():
    assert true_size.costs(STAGES) == {"calibration": 90, true_size.COMPARED: 4, "search": 211}


def test_the_section_has_a_table_for_each_witness_and_the_costs():
    result = {"table": "setting  mean\n", "seconds": 400.4, "peak": 5.1e9, "stages": STAGES}
    text = true_size.section(dict.fromkeys(true_size.KINDS, result), "ours  1 s\n")
    assert text.count("setting  mean") == 2
    assert "| massive tokens | 90 s | 4 s | 211 s | 400 s | 5.1 GB |" in text
    assert "ours  1 s" in text and "ours" not in true_size.section({"massive": result}, None)


def test_the_document_has_its_markers():
    text = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    assert text.index(true_size.BEGIN) < text.index(true_size.END)
