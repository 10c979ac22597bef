"""Error metrics against numpy and torch, thresholds, and what the screen shows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, graph_report, table, text_table, within


def tokens(seed: int, shape=(30, 48)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_metrics_are_torchs():
    reference, actual = tokens(1), tokens(1) + 0.01 * tokens(2)
    figures = compare(reference, actual)
    one, other = torch.from_numpy(reference).double(), torch.from_numpy(actual).double()
    error = (one - other).abs()
    expected = {
        "max_abs": error.max(),
        "mean_abs": error.mean(),
        "max_abs_relative": error.max() / one.abs().max(),
        "cosine": torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0),
        "min_token_cosine": torch.nn.functional.cosine_similarity(one, other, dim=1).min(),
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(float(value), rel=1e-12), name


def test_equal_tokens():
    assert compare(tokens(1), tokens(1)) == {
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "max_abs_relative": 0.0,
        "cosine": pytest.approx(1.0),
        "min_token_cosine": pytest.approx(1.0),
    }


def test_one_bad_token_among_many_shows_in_the_lowest_cosine_only():
    """Why the overall cosine is not enough: the one token that is wrong is hidden by all the others."""
    reference = tokens(1, (2000, 48))
    actual = reference.copy()
    actual[1234] = actual[1234, ::-1]
    figures = compare(reference, actual)
    assert figures["cosine"] > 0.999
    assert figures["min_token_cosine"] < 0.9
    assert not within(figures, THRESHOLDS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_fails(value):
    actual = tokens(1)
    actual[3, 4] = value
    figures = compare(tokens(1), actual)
    assert all(np.isfinite(list(figures.values())))  # fidelity.json is strict JSON
    assert not within(figures, THRESHOLDS)


def test_zero_vectors():
    zero = np.zeros((2, 4), np.float32)
    assert within(compare(zero, zero), THRESHOLDS)
    figures = compare(np.ones((2, 4), np.float32), zero)
    assert figures["min_token_cosine"] == 0
    assert not within(figures, THRESHOLDS)
    assert not within(compare(zero, np.ones((2, 4), np.float32)), THRESHOLDS)


def test_a_scaled_answer_fails_though_its_direction_is_right():
    figures = compare(tokens(1), tokens(1) * np.float32(1.01))
    assert figures["min_token_cosine"] >= THRESHOLDS["min_token_cosine"]
    assert not within(figures, THRESHOLDS)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"expected tokens of shape \(30, 48\), got \(29, 48\)"):
        compare(tokens(1), tokens(1)[:29])


@pytest.mark.parametrize(
    ("figures", "passes"),
    [
        ({"min_token_cosine": 0.99999, "max_abs_relative": 2e-5}, True),
        ({"min_token_cosine": 0.999989, "max_abs_relative": 0.0}, False),
        ({"min_token_cosine": 1.0, "max_abs_relative": 2.1e-5}, False),
        ({"min_token_cosine": float("nan"), "max_abs_relative": 0.0}, False),
    ],
)
def test_thresholds(figures, passes):
    assert THRESHOLDS["min_token_cosine"] == 0.99999  # the documented one
    assert within(figures, THRESHOLDS) is passes


def test_one_failing_step_fails_the_graph():
    good, bad = compare(tokens(1), tokens(1)), compare(tokens(1), tokens(2))
    assert graph_report("a.onnx", [good, good], THRESHOLDS)["passed"] is True
    assert graph_report("a.onnx", [good, bad], THRESHOLDS)["passed"] is False
    assert graph_report("a.onnx", [], THRESHOLDS)["passed"] is False


def test_the_table_has_a_row_per_step():
    good, bad = compare(tokens(1), tokens(1)), compare(tokens(1), tokens(2))
    graphs = [graph_report("a.onnx", [good, bad], THRESHOLDS), graph_report("b.onnx", [good], THRESHOLDS)]
    head, *rows, limits = table({"graphs": graphs, "thresholds": THRESHOLDS}).splitlines()
    assert "lowest token" in head
    assert [row.split()[0] for row in rows] == ["a.onnx", "a.onnx", "b.onnx"]
    assert [row.split()[-1] for row in rows] == ["ok", "FAILED", "ok"]
    assert "min_token_cosine ≥ 0.99999" in limits
    assert "max_abs_relative ≤ 2e-05" in limits


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


@given(st.integers(1, 20), st.integers(1, 20), st.floats(1e-3, 1e3))
def test_a_perfect_copy_has_no_error_and_a_scaled_one_its_own(tokens, channels, scale):
    values = np.random.default_rng(tokens * channels).normal(size=(tokens, channels)).astype(np.float32)
    assert compare(values, values)["max_abs"] == 0
    figures = compare(values, (values * np.float32(scale)).astype(np.float32))
    assert figures["min_token_cosine"] > 0.999999
    assert abs(figures["max_abs_relative"] - abs(scale - 1)) < 1e-3 * (1 + scale)
