"""Distances of tokens against NumPy's, and what counts as a loss to the floor."""

import numpy as np
import pytest
import torch

from qwen_vl_axera.quantization.losses import damage, figures, loss, loss_over_clips


@pytest.fixture
def tokens():
    """Reference, floor and two steps further off; much of a token is common to all."""
    made = np.random.default_rng(0)
    reference = made.normal(size=(40, 16)) + 3 * made.normal(size=16)
    noise = made.normal(size=(40, 16))
    return [torch.tensor(reference + size * noise, dtype=torch.float32) for size in (0, 0.01, 0.1, 0.3)]


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_figures(tokens):
    reference, actual = (tensor.double().numpy() for tensor in (tokens[0], tokens[2]))
    common = reference.mean(0)
    found = figures(tokens[0], tokens[2])
    assert found["mean_token_cosine"] == pytest.approx(cosines(reference, actual).mean(), abs=1e-12)
    assert found["min_token_cosine"] == pytest.approx(cosines(reference, actual).min(), abs=1e-12)
    assert found["centred_cosine"] == pytest.approx(cosines(reference - common, actual - common).mean(), abs=1e-12)
    assert found["relative_error"] == pytest.approx(np.linalg.norm(actual - reference) / np.linalg.norm(reference))
    assert damage([tokens[0]], [tokens[2]]) == 1 - found["centred_cosine"] > 1 - found["mean_token_cosine"]


def test_a_loss_is_to_the_floor_and_of_both_cosines(tokens):
    reference, floor, near, far = tokens
    apart = [figures(reference, actual) for actual in (floor, far)]
    expected = max(apart[0][name] - apart[1][name] for name in ("mean_token_cosine", "centred_cosine"))
    assert loss([reference], [floor], [far]) == expected
    assert loss([reference], [floor], [far]) > loss([reference], [floor], [near]) > 0
    assert loss([reference], [near], [floor]) < 0
    # Without a common part a centred cosine flatters: then the plain one counts.
    few = torch.tensor([[1.0, 0.0], [1.0, 4.0]])
    turned = torch.tensor([[0.0, 1.0], [1.0, 4.0]])
    assert loss([few], [few], [turned]) == pytest.approx(max(1 - 0.5, 1 - figures(few, turned)["centred_cosine"]))


def test_a_loss_over_clips_and_what_other_clips_would_give():
    """Clips are drawn whole: three that lose nothing and one that loses much leave a wide interval."""
    chance = torch.Generator().manual_seed(0)
    reference = [torch.randn(20, 8, generator=chance) for _ in range(8)]
    floor = [tokens.clone() for tokens in reference]
    actual = [
        tokens + (0.5 if step in (6, 7) else 0) * torch.randn(20, 8, generator=chance)
        for step, tokens in enumerate(reference)
    ]
    found = loss_over_clips(reference, floor, actual, [[0, 1], [2, 3], [4, 5], [6, 7]])
    assert found.value == pytest.approx(loss(reference, floor, actual), rel=1e-6)
    assert found.low == 0 < found.value < found.high
    same = loss_over_clips(reference, floor, actual, [[6], [7]])
    assert same.low > found.value


def test_a_floor_that_is_worse_makes_a_gain():
    reference = [torch.eye(4)]
    floor = [torch.eye(4) + 0.5]
    assert loss_over_clips(reference, floor, reference, [[0]]).value < 0
