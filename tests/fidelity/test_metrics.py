"""Error metrics against numpy and torch, and thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_axera.fidelity.metrics import (
    THRESHOLDS,
    WORST,
    compare,
    rms,
    token_cosine_distances,
    token_cosines,
    token_rms,
    within,
)


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
    for figures in (compare(tokens(1), actual), compare(actual, tokens(1)), compare(actual, actual)):
        assert all(np.isfinite(list(figures.values())))  # fidelity.json is strict JSON
        assert not within(figures, THRESHOLDS)
        assert figures["max_abs"] == WORST


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


def test_root_mean_squares():
    errors = tokens(3, (2, 5, 48))
    assert rms(errors) == pytest.approx(float(torch.from_numpy(errors).double().square().mean().sqrt()), rel=1e-12)
    assert token_rms(errors).shape == (2, 5)
    assert token_rms(errors)[1, 3] == pytest.approx(rms(errors[1, 3]), rel=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(1e-3, 1e3))
def test_a_perfect_copy_has_no_error_and_a_scaled_one_its_own(tokens, channels, scale):
    values = np.random.default_rng(tokens * channels).normal(size=(tokens, channels)).astype(np.float32)
    assert compare(values, values)["max_abs"] == 0
    figures = compare(values, (values * np.float32(scale)).astype(np.float32))
    assert figures["min_token_cosine"] > 0.999999
    assert abs(figures["max_abs_relative"] - abs(scale - 1)) < 1e-3 * (1 + scale)


def test_a_token_cosine_distance_is_exact_where_the_cosine_rounds_to_one():
    reference = tokens(1).astype(np.float64)
    actual = reference + 1e-9 * tokens(2)
    across = actual - reference * ((actual * reference).sum(-1) / np.square(reference).sum(-1))[:, None]
    expected = np.square(across).sum(-1) / np.square(reference).sum(-1) / 2  # 1 - cos of a small angle
    np.testing.assert_allclose(token_cosine_distances(reference, actual), expected, rtol=1e-5)
    far = tokens(1), tokens(2)
    np.testing.assert_allclose(token_cosine_distances(*far), 1 - token_cosines(*far), rtol=1e-5)
    assert token_cosine_distances(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0]
    assert token_cosine_distances(np.zeros((1, 4)), np.ones((1, 4))).tolist() == [1]
    assert token_cosine_distances(np.full((1, 4), np.nan), np.ones((1, 4))).tolist() == [2]
