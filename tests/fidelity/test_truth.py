"""The judge: ratios of errors, when transformers runs again, and what a step without an exact answer may show."""

import numpy as np
import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import WORST, rms
from qwen_vl_axera.fidelity.truth import MORE_RUNS, THRESHOLDS, Judge, Truth, keeps

SHAPE = (2, 30, 48)  # exact steps, tokens, channels
FLOAT32 = 1e-6  # transformers' error


def noise(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


EXACT = noise(0)


def answer(error: float, seed: int = 1) -> np.ndarray:
    """float32 answers with this root mean square error."""
    return (EXACT + error * noise(seed)).astype(np.float32)


class Tower:
    """Counts how often it runs; its float32 error is `error`, its exact answers are `exact`."""

    def __init__(self, error: float = FLOAT32, exact: np.ndarray = EXACT):
        self.error, self.exact, self.runs = error, exact, 0

    def run_moved(self, patches, grid, seed):
        self.runs += 1
        return answer(self.error, 100 + seed)

    def run_exact(self, patches, grid):
        self.runs += 1
        return self.exact[: len(patches)]


def judge(tower: Tower | None = None, oracle: np.ndarray | None = None) -> Judge:
    """Two exact steps, 0 and 1, and a third one without an exact answer."""
    oracle = np.concatenate([answer(FLOAT32), answer(FLOAT32)[:1]]) if oracle is None else oracle
    pixels = np.zeros((3, 120, 392, 3), np.uint8)
    return Judge(pixels, oracle, Truth([0, 1], EXACT, [oracle[:2]]), (10, 12), lambda: tower)


def test_the_ratio_is_of_root_mean_squares():
    figures = Truth([0, 1], EXACT, [answer(FLOAT32)]).figures(answer(4 * FLOAT32, 2))
    assert figures["reference_error"] == pytest.approx(rms(answer(FLOAT32) - EXACT), rel=1e-9)
    assert figures["graph_error"] == pytest.approx(rms(answer(4 * FLOAT32, 2) - EXACT), rel=1e-9)
    assert figures["ratio"] == pytest.approx(4, rel=0.1)
    assert figures["ratio"] < figures["token_ratio"] < 10
    assert figures["typical_ratio"] == pytest.approx(4, rel=0.1)
    assert figures["float32_runs"] == 1


def test_a_steps_figures_are_its_own():
    tokens = answer(FLOAT32, 2)
    tokens[1] = answer(3 * FLOAT32, 2)[1]
    truth = Truth([4, 7], EXACT, [answer(FLOAT32)])
    assert truth.step_figures(0, tokens)["ratio"] == pytest.approx(1, rel=0.1)
    assert truth.step_figures(1, tokens)["ratio"] == pytest.approx(3, rel=0.1)


def test_one_bad_token_among_many_fails():
    tokens = answer(FLOAT32, 2)
    tokens[1, 17] = EXACT[1, 17] + 2000 * FLOAT32 * noise(3)[1, 17]
    truth = Truth([0, 1], EXACT, [answer(FLOAT32)])
    figures = truth.figures(tokens)
    assert figures["token_ratio"] > THRESHOLDS["token_error_ratio"]
    assert figures["typical_ratio"] == pytest.approx(1, rel=0.1)
    assert not keeps(figures)
    assert np.unravel_index(truth.token_ratios(tokens).argmax(), SHAPE[:2]) == (1, 17)


def test_luck_in_one_token_does_not_hide_an_error_of_all():
    """transformers misses one token by far, which makes the error of all together large; the other tokens tell."""
    reference, tokens = answer(FLOAT32), answer(4 * FLOAT32, 2)
    reference[0, 3] = EXACT[0, 3] + 30 * FLOAT32 * noise(4)[0, 3]
    figures = Truth([0, 1], EXACT, [reference]).figures(tokens)
    assert figures["ratio"] < 1.5
    assert figures["typical_ratio"] == pytest.approx(4, rel=0.1)
    assert not keeps(figures)


def test_a_token_that_transformers_hits_by_luck_is_no_measure():
    reference = answer(FLOAT32).astype(np.float64)
    reference[0, 5] = EXACT[0, 5]
    ratios = Truth([0, 1], EXACT, [reference]).token_ratios(answer(FLOAT32, 2))
    assert ratios[0, 5] < 2


def test_no_float32_answer_is_expected_nearer_than_its_own_rounding():
    rounded = EXACT.astype(np.float32)
    truth = Truth([0, 1], EXACT, [rounded])
    assert truth.figures(answer(3e-8, 2))["ratio"] < 2
    perfect = Truth([0, 1], EXACT, [EXACT])
    assert keeps(perfect.figures(rounded))


def test_zeros():
    zero = np.zeros(SHAPE)
    assert keeps(Truth([0, 1], zero, [zero]).figures(zero))
    figures = Truth([0, 1], zero, [zero]).figures(answer(FLOAT32))
    assert figures["ratio"] == figures["token_ratio"] == figures["typical_ratio"] == WORST


def test_a_good_graph_lets_transformers_rest():
    tower = Tower()
    figures = judge(tower).figures(judge(tower).truth, answer(FLOAT32, 2))
    assert keeps(figures)
    assert tower.runs == 0


def test_luck_of_transformers_is_found_out():
    """Its one run came ten times nearer than float32 does as a rule: the graph is not to blame."""
    oracle = np.concatenate([answer(FLOAT32 / 10), answer(FLOAT32)[:1]])
    tower = Tower()
    one = judge(tower, oracle)
    assert not keeps(one.truth.figures(answer(FLOAT32, 2)))
    figures = one.figures(one.truth, answer(FLOAT32, 2))
    assert keeps(figures)
    assert figures["float32_runs"] == 2
    assert tower.runs == 1


def test_a_wrong_graph_is_refused_after_more_runs():
    tower = Tower()
    one = judge(tower)
    figures = one.figures(one.truth, answer(12.9 * FLOAT32, 2))
    assert not keeps(figures)
    assert figures["ratio"] == pytest.approx(12.9, rel=0.1)
    assert tower.runs == MORE_RUNS
    again = one.figures(one.truth, answer(12.9 * FLOAT32, 3))  # the next graph: the runs are there
    assert not keeps(again)
    assert tower.runs == MORE_RUNS


def test_a_hopeless_graph_costs_no_more_runs():
    tower = Tower()
    one = judge(tower)
    assert not keeps(one.figures(one.truth, answer(0.1, 2)))
    assert tower.runs == 0


def test_the_bound_of_a_step_without_an_exact_answer():
    one = judge()
    limit = one.bound()
    assert limit == pytest.approx((1 + THRESHOLDS["typical_error_ratio"]) * FLOAT32, rel=0.1)
    assert one.distance(2, answer(FLOAT32, 2)[0]) < limit
    assert one.distance(2, answer(10 * FLOAT32, 2)[0]) > limit
    # By the triangle inequality: what exceeds it has a ratio above the limit, if transformers' error is alike.
    worst = EXACT[0] - THRESHOLDS["typical_error_ratio"] * (one.oracle[2] - EXACT[0])
    assert one.distance(2, worst) <= limit * 1.1


def test_a_suspicious_step_gets_its_exact_answer_once():
    tower = Tower()
    one = judge(tower)
    truth = one.truth_of(2)
    assert one.truth_of(2) is truth
    assert (truth.steps, tower.runs) == ([2], 1)
    np.testing.assert_array_equal(truth.exact, EXACT[:1])


def test_an_exact_answer_that_is_not_this_clips_is_refused():
    one = judge()
    one.check_truth(np.concatenate([answer(FLOAT32, 2), answer(FLOAT32, 2)[:1]]))
    foreign = Judge(one.pixels, one.oracle, Truth([0, 1], noise(7), [one.oracle[:2]]), one.grid, lambda: None)
    with pytest.raises(InputError, match=r"not this clip's.*run run_video_by_sec\.py again"):
        foreign.check_truth(np.concatenate([answer(FLOAT32, 2), answer(FLOAT32, 2)[:1]]))
