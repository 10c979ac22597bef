"""What the screen shows of a report."""

import numpy as np

from qwen_vl_axera.fidelity import truth
from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, graph_report
from qwen_vl_axera.fidelity.tables import fidelity_table, table, text_table


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((30, 48)).astype(np.float32)


def test_the_table_has_a_row_per_step():
    good, bad = compare(tokens(1), tokens(1)), compare(tokens(1), tokens(2))
    graphs = [graph_report("a.onnx", [good, bad], THRESHOLDS), graph_report("b.onnx", [good], THRESHOLDS)]
    head, *rows, limits = table({"graphs": graphs, "thresholds": THRESHOLDS}).splitlines()
    assert "lowest token" in head
    assert [row.split()[0] for row in rows] == ["a.onnx", "a.onnx", "b.onnx"]
    assert [row.split()[-1] for row in rows] == ["ok", "FAILED", "ok"]
    assert "min_token_cosine ≥ 0.99999" in limits
    assert "max_abs_relative ≤ 2e-05" in limits


def test_the_fidelity_table_shows_the_ratio_and_what_is_wrong():
    exact = {"reference_error": 1e-6, "graph_error": 1.29e-5, "ratio": 12.9}
    good, bad = compare(tokens(1), tokens(1)), compare(tokens(1), tokens(2))
    graph = {
        "file": "a.onnx",
        "passed": False,
        "steps": [good | {"passed": True}, bad | {"passed": False, "exact": exact}],
        "exact": exact | {"typical_ratio": 12.0, "token_ratio": 20.0, "float32_runs": 9},
        "problems": ["the error is 12.9 times transformers' own (at most 3), first seen in block 5"],
    }
    broken = graph | {"file": "b.onnx", "exact": None, "problems": ["NaN or infinite values in step 0"]}
    shown = fidelity_table({"graphs": [graph, broken], "thresholds": truth.THRESHOLDS})
    head, *rows = shown.splitlines()
    assert head.split()[-1] == "ratio"
    assert [row.split()[-2:] for row in rows[:4]] == [["–", "ok"], ["12.9", "FAILED"]] * 2
    assert (
        "a.onnx: error 1.29e-05, transformers' own 1.00e-06: ratio 12.9, of a typical token 12, of the worst 20" in rows
    )
    limits = "of a typical token {typical_error_ratio:g}, of all {error_ratio:g}, of the worst {token_error_ratio:g}"
    assert f"limits of the ratio: {limits.format(**truth.THRESHOLDS)}" in shown
    assert rows[-2:] == [
        "a.onnx: the error is 12.9 times transformers' own (at most 3), first seen in block 5",
        "b.onnx: NaN or infinite values in step 0",
    ]


def test_the_first_difference_is_shown_with_both_probabilities():
    entry = {"prompt": "q?", "reference": "red", "onnx": "blue", "tokens": 3, "equal": False}
    sides = {"reference": {"text": "red", "probability": 0.5}, "onnx": {"text": "blue", "probability": 0.25}}
    shown = text_table([entry | {"first_difference": {"token": 1} | sides}])
    assert "DIFFERENT" in shown
    assert "token 1" in shown
    assert "'red' (p 0.500)" in shown
    assert "'blue' (p 0.250)" in shown
    same = text_table([entry | {"equal": True, "onnx": "red"}])
    assert "equal, 3 tokens" in same
    assert "difference" not in same
