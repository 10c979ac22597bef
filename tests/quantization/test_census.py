"""census.py: findings on planted activations."""

import pytest
import torch

from qwen_vl_axera.quantization.census import Census, findings, softmax_lost
from qwen_vl_axera.quantization.network import Network


@pytest.fixture(scope="module")
def network(demo):
    return Network(demo.graph)


def census(network, **tensors) -> Census:
    """A census of ordinary activations, some of them replaced."""
    random = torch.Generator().manual_seed(3)
    ordinary = {name: torch.randn(144, 128, generator=random) for name in network.block_outputs.values()}
    ordinary |= {f"blocks.{block}.mlp.mul_1": torch.randn(144, 256, generator=random) for block in range(4)}
    ordinary["blocks.0.attn.windows.0.softmax"] = torch.full((1, 4, 64, 64), 1 / 64)
    seen = Census(network)
    for name, values in (ordinary | tensors).items():
        seen.observe(name, [values])
    return seen


def with_value(rows: int, columns: int, place: tuple, value: float) -> torch.Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4))
    values[place] = value
    return values


def words(found: dict) -> str:
    return " | ".join(f"{note['finding']} -> {note['remedy']}" for note in found["findings"])


def test_nothing_is_found_in_ordinary_activations(network):
    assert findings(census(network), census(network))["findings"] == []


def test_massive_tokens_are_found_where_they_live(network):
    massive = with_value(144, 128, (slice(3), 5), 5000.0)
    found = findings(census(network, **{"blocks.1.add_1": massive, "blocks.2.add_1": massive}))
    assert found["massive_tokens"][1]["share"] == pytest.approx(3 / 144)
    assert [entry["share"] > 0 for entry in found["massive_tokens"]] == [False, True, True, False]
    assert "first after block 1, gone after block 2" in words(found)
    assert found["outlier_channels"][1]["channels"] == 0  # a massive token is no outlier channel


def test_a_calibration_set_without_massive_tokens_is_warned_of(network):
    massive = {"blocks.1.add_1": with_value(144, 128, (slice(3), 5), 5000.0)}
    assert "hold no massive token" in words(findings(census(network, **massive), census(network)))
    assert "hold no massive token" not in words(findings(census(network, **massive), census(network, **massive)))


def test_outlier_channels(network):
    loud = with_value(144, 128, (slice(None), slice(2)), 100.0)
    found = findings(census(network, **{"blocks.3.add_1": loud}))
    assert found["outlier_channels"][3]["channels"] == 2
    assert found["massive_tokens"][3]["share"] == 0
    assert "residual stream" in words(found)


def test_a_spiky_input_names_its_layer(network):
    spiky = {"blocks.3.mlp.mul_1": with_value(144, 256, (7, 7), 20_000.0)}
    found = findings(census(network, **spiky))
    assert found["spikes"][0]["layer"] == "blocks.3.mlp.down_proj"
    assert "blocks.3.mlp.down_proj" in words(found)


def test_what_a_softmax_loses():
    rows = torch.tensor([[0.9, 0.003, 0.003, 0.094]])
    lost, zeros = softmax_lost(rows)  # half a code is 0.9 / 255 = 0.0035
    assert (lost, zeros) == (pytest.approx(0.006), 0.5)
