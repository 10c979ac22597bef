"""What the screen shows of a report."""

import numpy as np

from qwen_vl_axera.fidelity import record
from qwen_vl_axera.fidelity.metrics import compare
from qwen_vl_axera.fidelity.record import Bound, Fidelity, Graph, GraphErrors, Step, StepErrors
from qwen_vl_axera.fidelity.tables import fidelity_table, text_table
from qwen_vl_axera.language.record import Answer, AnswerToken, Difference


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((30, 48)).astype(np.float32)


def test_the_fidelity_table_shows_the_ratios_with_their_limits_and_what_is_wrong():
    exact = StepErrors(1e-6, 1.29e-5, 12.9)
    errors = GraphErrors(1e-6, 1.29e-5, 12.9, 12.0, 12.5, 14.0, 20.0, 9)
    bound = Bound(1e-6, 2e-6, 1e-6, 2e-6)
    good = Step(**compare(tokens(1), tokens(1)), passed=True, bound=bound)
    bad = Step(**compare(tokens(1), tokens(2)), passed=False, exact=exact)
    graphs = [
        Graph("a.onnx", False, [good, bad], errors, ["the error is 12 times transformers' own (at most 3)"]),
        Graph("b.onnx", False, [good, bad], None, ["NaN or infinite values in step 0"]),
        Graph("c.onnx", False, [], None, ["3 nodes, expected 4"]),
        Graph("d.onnx", True, [good], errors, [], same_as="a.onnx"),
    ]
    head, *rows = fidelity_table(Fidelity(False, record.THRESHOLDS, graphs, [], {})).splitlines()
    assert head.split()[-1] == "ratio"
    assert [row.split()[-2:] for row in rows[:4]] == [["–", "ok"], ["12.9", "FAILED"]] * 2
    line = (
        "typical token 12 (limit 3) · worst windows 12.5 (limit 5) · nine of ten 14 (limit 5) · all 12.9 (limit 30) · "
        "worst token 20 (limit 100); 1 = as exact as transformers"
    )
    assert rows[4:] == [
        f"a.onnx: {line}",
        "b.onnx: no error can be measured: its answer is not finite",
        "c.onnx: not run: it is built otherwise than export.py builds it",
        f"d.onnx: {line}; the same nodes, weights and values as a.onnx",
        "a.onnx: the error is 12 times transformers' own (at most 3)",
        "b.onnx: NaN or infinite values in step 0",
        "c.onnx: 3 nodes, expected 4",
    ]


def test_the_first_difference_is_shown_with_both_probabilities():
    difference = Difference(1, AnswerToken(7, "red", 0.5), AnswerToken(8, "blue", 0.25))
    shown = text_table([Answer("q?", "red", "blue", 2, False, [1, 7], [1, 8], True, difference)])
    assert "DIFFERENT" in shown
    assert "token 1" in shown
    assert "'red' (p 0.500)" in shown
    assert "'blue' (p 0.250)" in shown
    same = text_table([Answer("q?", "red", "red", 3, True, [1, 7, 2], [1, 7, 2], True)])
    assert "equal, 3 tokens" in same
    assert "difference" not in same
