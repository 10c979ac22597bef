"""The search: which layers it ranks first, how it goes on, and that it names no layer that is not needed."""

import json

import pytest

from qwen_vl_axera.quantization import search
from qwen_vl_axera.quantization.losses import damage
from qwen_vl_axera.quantization.plan import Plan, uniform
from qwen_vl_axera.quantization.simulation import Simulation


@pytest.fixture(scope="module")
def simulation(massive, calibrated):
    return Simulation(calibrated.network, calibrated.ranges, massive.steps(2))


@pytest.fixture(scope="module")
def groups(calibrated):
    return search.gemm_groups(calibrated.network)


def test_layers_that_read_one_tensor_are_ranked_together(groups):
    names = {tuple(group.names) for group in groups}
    assert tuple(f"blocks.2.attn.qkv.{kind}" for kind in "qkv") in names
    assert ("blocks.2.mlp.gate_proj", "blocks.2.mlp.up_proj") in names
    assert ("blocks.2.mlp.down_proj",) in names


def test_a_layers_own_rounding_is_ranked(simulation, groups, tmp_path):
    """What a run of the whole network from its beginning gives, too; pixels are whole numbers and lose nothing."""
    ranked = dict(search.rank(simulation, tmp_path / "progress.json", "these"))
    network = simulation.network
    gemms = {operator.name: "U16" for operator in network.operators if operator.op_type == "Gemm"}
    plan = Plan(uniform(network, "FP32").types | gemms)
    wide = simulation.run(plan).tokens
    for group in (groups[4], groups[-1]):
        narrow = Plan(plan.types | dict.fromkeys(group.names, "U8"))
        assert ranked[group] == damage(wide, simulation.run(narrow).tokens) > 1e-6
    assert groups[0].names == ["patch_embed.proj"]
    assert abs(ranked[groups[0]]) < 1e-7


def test_an_interrupted_search_goes_on(simulation, groups, tmp_path, monkeypatch):
    saved, counted = tmp_path / "progress.json", []

    def interrupted(*given):
        counted.append(given)
        if len(counted) == 5:
            raise KeyboardInterrupt
        return damage(*given)

    monkeypatch.setattr(search, "damage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.rank(simulation, saved, "these")
    known = len(json.loads(saved.read_text())["rounding"])
    assert known == 4
    ranked = search.rank(simulation, saved, "these")
    count = len(groups)
    assert len(counted) == 5 + count - known
    assert len(ranked) == count
    search.rank(simulation, saved, "these")
    assert len(counted) == 5 + count - known  # all known
    search.rank(simulation, saved, "others")
    assert len(counted) == 5 + 2 * count - known  # nothing taken over


def costs(*pairs):
    """A target that holds while what the layers at 8 bits cost, by their names, stays within 1."""
    cost = dict(pairs)

    def holds(wide):
        return sum(cost.values()) - sum(cost.get(layer.name, 0) for layer in wide) <= 1

    return holds


def test_the_fewest_groups_from_the_front(groups):
    wide = [group.names[0] for group in groups]
    found = search.first_that_hold(groups, costs((wide[0], 1), (wide[4], 1), (wide[9], 1)))
    assert found == search.layers_of(groups[:5])
    assert search.first_that_hold(groups, costs((wide[0], 1))) == []
    assert search.first_that_hold(groups, costs(("a MatMul", 2))) is None


def test_no_layer_is_named_that_is_not_needed(calibrated, groups):
    """Of layers that read one tensor, too: only k costs here."""
    together = next(group for group in groups if "blocks.2.attn.qkv.k" in group.names)
    chosen = search.layers_of([*groups[:3], together])
    holds = costs((groups[1].names[0], 1), ("blocks.2.attn.qkv.k", 1))
    kept = search.needed(calibrated.network, chosen, costs((groups[1].names[0], 2), ("blocks.2.attn.qkv.k", 2)))
    assert [layer.name for layer in kept] == [groups[1].names[0], "blocks.2.attn.qkv.k"]
    assert len(search.needed(calibrated.network, chosen, holds)) == 1  # one of the two is enough
