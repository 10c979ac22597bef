"""The judge: ratios of errors, when transformers runs again, and what a step without an exact answer may show."""

import numpy as np
import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import WORST, rms
from qwen_vl_axera.fidelity.record import THRESHOLDS, GraphErrors
from qwen_vl_axera.fidelity.truth import LOOSEST, MORE_RUNS, Judge, Truth
from qwen_vl_axera.oracle.rounding import RUNS

SHAPE = (2, 30, 48)  # exact steps, tokens, channels
FLOAT32 = 1e-6  # transformers' error
WINDOWS = [np.arange(24), np.arange(24, 30)]


def noise(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


EXACT = noise(0)


def answer(error: float, seed: int = 1) -> np.ndarray:
    """float32 answers with this root mean square error."""
    return (EXACT + error * noise(seed)).astype(np.float32)


def figures(truth: Truth, tokens: np.ndarray) -> GraphErrors:
    return truth.errors(tokens, WINDOWS)


class Tower:
    """Counts how often it runs; its float32 error is `error`, its exact answers are `exact`."""

    def __init__(self, error: float = FLOAT32, exact: np.ndarray = EXACT):
        self.error, self.exact, self.runs = error, exact, 0

    def run_moved(self, patches, grid, seed):
        self.runs += 1
        return answer(self.error, 100 + seed)[: len(patches)]

    def run_exact(self, patches, grid):
        self.runs += 1
        return self.exact[: len(patches)]


def judge(tower: Tower | None = None, oracle: np.ndarray | None = None) -> Judge:
    """Two exact steps, 0 and 1, and a third one without an exact answer."""
    oracle = np.concatenate([answer(FLOAT32), answer(FLOAT32)[:1]]) if oracle is None else oracle
    pixels = np.zeros((3, 120, 392, 3), np.uint8)
    return Judge(pixels, oracle, Truth([0, 1], EXACT, [oracle[:2]]), (10, 12), WINDOWS, lambda: tower)


def test_the_ratio_is_of_root_mean_squares():
    errors = figures(Truth([0, 1], EXACT, [answer(FLOAT32)]), answer(4 * FLOAT32, 2))
    assert errors.reference_error == pytest.approx(rms(answer(FLOAT32) - EXACT), rel=1e-9)
    assert errors.graph_error == pytest.approx(rms(answer(4 * FLOAT32, 2) - EXACT), rel=1e-9)
    assert errors.ratio == pytest.approx(4, rel=0.1)
    assert errors.ratio < errors.most_ratio < 10 and errors.ratio < errors.token_ratio < 10
    assert errors.typical_ratio == pytest.approx(4, rel=0.1)
    assert errors.typical_ratio < errors.window_ratio < 5
    assert errors.float32_runs == 1


def test_a_steps_figures_are_its_own():
    tokens = answer(FLOAT32, 2)
    tokens[1] = answer(3 * FLOAT32, 2)[1]
    first, second = Truth([4, 7], EXACT, [answer(FLOAT32)]).step_errors(tokens)
    assert first.ratio == pytest.approx(1, rel=0.1)
    assert second.ratio == pytest.approx(3, rel=0.1)


# A mistake of this many times rounding, in these tokens of the two steps, and the first threshold that it exceeds.
PARTS = {
    "every token": (4, np.s_[:, :], "typical_ratio"),
    "the tokens of one step": (6, np.s_[1], "window_ratio"),
    "one group of windows": (6, np.s_[:, 24:], "window_ratio"),
    "one group of windows in one step": (6, np.s_[1, 24:], "window_ratio"),
    "just under half of the tokens": (8, np.s_[:, 1:24:2], "most_ratio"),
    "one token in nine": (8, np.s_[:, ::9], "most_ratio"),
    "one token": (180, np.s_[1, 17], "token_ratio"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_mistake_in_a_part_of_the_tokens(part):
    size, where, name = PARTS[part]
    tokens = answer(FLOAT32, 2)
    tokens[where] = answer(size * FLOAT32, 3)[where]
    assert figures(Truth([0, 1], EXACT, [answer(FLOAT32)]), tokens).exceeded == name
    assert figures(Truth([0, 1], EXACT, [answer(FLOAT32)]), answer(FLOAT32, 2)).exceeded is None


def test_the_worst_token_is_found():
    tokens = answer(FLOAT32, 2)
    tokens[1, 17] = EXACT[1, 17] + 2000 * FLOAT32 * noise(3)[1, 17]
    ratios = Truth([0, 1], EXACT, [answer(FLOAT32)]).token_ratios(tokens)
    assert np.unravel_index(ratios.argmax(), SHAPE[:2]) == (1, 17)


def test_luck_in_one_token_does_not_hide_an_error_of_all():
    """transformers misses one token by far, which makes the error of all together large; the other tokens tell."""
    reference, tokens = answer(FLOAT32), answer(4 * FLOAT32, 2)
    reference[0, 3] = EXACT[0, 3] + 30 * FLOAT32 * noise(4)[0, 3]
    errors = figures(Truth([0, 1], EXACT, [reference]), tokens)
    assert errors.ratio < 1.5
    assert errors.typical_ratio == pytest.approx(4, rel=0.1)
    assert errors.exceeded == "typical_ratio"


def test_a_token_that_transformers_hits_by_luck_is_no_measure():
    reference = answer(FLOAT32).astype(np.float64)
    reference[0, 5] = EXACT[0, 5]
    ratios = Truth([0, 1], EXACT, [reference]).token_ratios(answer(FLOAT32, 2))
    assert ratios[0, 5] < 2


def test_no_float32_answer_is_expected_nearer_than_its_own_rounding():
    rounded = EXACT.astype(np.float32)
    truth = Truth([0, 1], EXACT, [rounded])
    assert figures(truth, answer(3e-8, 2)).ratio < 2
    perfect = Truth([0, 1], EXACT, [EXACT])
    assert not figures(perfect, rounded).exceeded


def test_zeros():
    zero = np.zeros(SHAPE)
    assert not figures(Truth([0, 1], zero, [zero]), zero).exceeded
    errors = figures(Truth([0, 1], zero, [zero]), answer(FLOAT32))
    assert errors.ratio == errors.token_ratio == errors.typical_ratio == errors.most_ratio == WORST


def test_a_good_graph_lets_transformers_rest():
    tower = Tower()
    one = judge(tower)
    assert not one.errors(one.truth, answer(FLOAT32, 2)).exceeded
    assert tower.runs == 0


def test_luck_of_transformers_is_found_out():
    """Its one run came ten times nearer than float32 does as a rule: the graph is not to blame."""
    oracle = np.concatenate([answer(FLOAT32 / 10), answer(FLOAT32)[:1]])
    tower = Tower()
    one = judge(tower, oracle)
    assert figures(one.truth, answer(FLOAT32, 2)).exceeded
    errors = one.errors(one.truth, answer(FLOAT32, 2))
    assert not errors.exceeded
    assert errors.float32_runs == 2
    assert tower.runs == 1


def test_a_wrong_graph_is_refused_after_more_runs():
    tower = Tower()
    one = judge(tower)
    errors = one.errors(one.truth, answer(12.9 * FLOAT32, 2))
    assert errors.exceeded
    assert errors.ratio == pytest.approx(12.9, rel=0.4)
    assert tower.runs == MORE_RUNS
    assert one.errors(one.truth, answer(12.9 * FLOAT32, 3)).exceeded  # the next graph: the runs are there
    assert tower.runs == MORE_RUNS


def test_a_hopeless_graph_costs_no_more_runs():
    tower = Tower()
    one = judge(tower)
    assert one.errors(one.truth, answer(0.1, 2)).exceeded
    assert tower.runs == 0


def test_the_bound_of_a_step_without_an_exact_answer():
    one = judge()
    limit, token_limit = one.limits
    assert limit == pytest.approx((1 + THRESHOLDS.typical_ratio) * FLOAT32, rel=0.1)
    assert limit < token_limit < 2 * limit
    assert one.bound(2, answer(FLOAT32, 2)[0]).kept
    assert not one.bound(2, answer(10 * FLOAT32, 2)[0]).kept
    # By the triangle inequality: what exceeds it has a ratio above the limit, if transformers' error is alike.
    worst = EXACT[0] - THRESHOLDS.typical_ratio * (one.oracle[2] - EXACT[0])
    assert one.bound(2, worst).distance <= limit * 1.1


def test_one_token_of_a_step_without_an_exact_answer():
    one = judge()
    tokens = answer(FLOAT32, 2)[0]
    tokens[3] = EXACT[0, 3] + 10 * FLOAT32 * noise(5)[0, 3]
    bound = one.bound(2, tokens)
    assert bound.distance <= bound.limit and not bound.kept


def test_the_bound_is_never_loose():
    """However much a tower rounds: a wrong answer must not hide within it."""
    oracle = np.concatenate([answer(0.1), answer(0.1)[:1]])
    assert judge(Tower(0.1), oracle).limits == (LOOSEST, LOOSEST)


def test_a_suspicious_step_gets_its_exact_answer_once():
    tower = Tower()
    one = judge(tower)
    truth = one.truth_of(2)
    assert one.truth_of(2) is truth
    assert (truth.steps, tower.runs) == ([2], 1)
    np.testing.assert_array_equal(truth.exact, EXACT[:1])


@pytest.mark.parametrize("other", [noise(7), EXACT[:, ::-1], EXACT * 0, EXACT * (1 + 1e-4)])
def test_answers_to_other_steps_are_refused(other):
    """The exact one or the one in float32, whichever is wrong."""
    words = r"answers to step 0, 1 differ by .*run run_video_by_sec\.py again"
    with pytest.raises(InputError, match=words):
        judge(Tower(), np.concatenate([other, other[:1]]).astype(np.float32))
    one = judge()
    with pytest.raises(InputError, match=words):
        Judge(one.pixels, one.oracle, Truth([0, 1], other, [one.oracle[:2]]), one.grid, WINDOWS, Tower)


def test_a_step_whose_float32_answer_is_wrong_is_refused():
    tower = Tower()
    one = judge(tower, np.concatenate([answer(FLOAT32), noise(8).astype(np.float32)[:1]]))
    tower.exact = EXACT[:1]
    with pytest.raises(InputError, match="answers to step 2 differ by"):
        one.truth_of(2)


def test_rounding_explains_a_difference():
    """A tower that rounds far: its answers scatter as far as they differ."""
    oracle = np.concatenate([answer(1e-3), answer(1e-3)[:1]])
    tower = Tower(1e-3)
    judge(tower, oracle)
    assert tower.runs == RUNS
