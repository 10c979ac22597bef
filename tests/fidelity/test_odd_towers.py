"""A sample of the odd towers in every run of the tests; `python -m tests.odd_towers` measures hundreds."""

import pytest

from tests.odd_towers import measure

SMALL = [(140, 252), (56, 84), (56, 56), (84, 28), (112, 112)]


@pytest.mark.parametrize("seed", range(12))
def test_a_right_graph_passes_however_odd_its_weights(seed):
    assert measure(seed, SMALL)["problems"] == []
