"""Tables: for the screen, and between the marks of a document."""

from dataclasses import replace

import pytest

from bench import render
from bench.measure import AHEAD, Row, together
from qwen_vl_axera.errors import InputError
from tests.conftest import ROOT


def test_verdicts_runs_and_costs_are_shown():
    params = {"shape": "3B", "size": "308x308", "gigabytes": 2.68}
    used = {"processor": 6.1, "read": 1e9, "read_disk": 0, "written": 2e9, "written_disk": 1.9e9}
    row = Row("export", "export_to_copy", params, value=5.0, target=("<=", 4.0), peak=10**9, peak_limit=2 * 10**9)
    cells = render.cells(replace(row, costs={"export.py": used, "copy": {"processor": 0.5}}))
    assert "**missed**" in cells and "1.00 GB (≤ 2.00 GB)" in cells
    assert "export.py 6.10 s, 0 % of 1.00 GB, 95 % of 2.00 GB; copy 0.50 s" in cells

    step = Row("steps", "step_dense", {"size": "1x1"}, value=1.1, range=(1.05, 1.2), rounds=3, target=AHEAD)
    assert render.cells(step)[2:5] == ["1.05× – 1.20×, 3", "> 1.00×", "equal"]
    assert render.cells(together([step, step]))[2:5] == ["1.05× – 1.20×, 3 + 3", "> 1.00×", "ahead"]


def test_the_document_has_its_markers():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.count(render.BEGIN) == text.count(render.END) == 1


@pytest.mark.parametrize("text", ["none", render.BEGIN, render.END + render.BEGIN, 2 * (render.BEGIN + render.END)])
def test_rewrite_section_refuses_other_documents(tmp_path, text):
    path = tmp_path / "document.md"
    path.write_text(text)
    with pytest.raises(InputError, match="once each, in this order"):
        render.rewrite_section(path, "figures")
    assert path.read_text() == text
