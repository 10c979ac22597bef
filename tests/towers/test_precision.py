"""Code that asks for float32 computes in float64, and modules are widened only while they run."""

import pytest
import torch
from torch import nn

from qwen_vl_axera.towers.precision import InFloat64, widened


def test_code_that_asks_for_float32_gets_float64():
    x = torch.tensor([0.1, 3.0], dtype=torch.float64)
    with InFloat64():
        for wide in (
            x.float(),
            x.to(torch.float32),
            x.to(dtype=torch.float32),
            torch.softmax(x, -1, dtype=torch.float32),
            torch.arange(4, dtype=torch.float),
            torch.tensor([1, 2]).float(),
        ):
            assert wide.dtype == torch.float64
        assert torch.equal(x.float(), x)
        assert x.to(torch.int64).dtype == torch.int64
    assert x.float().dtype == torch.float32


@pytest.mark.parametrize(("stored", "wide"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_modules_are_widened_while_they_run(stored, wide):
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(stored)
    before = [parameter.detach().clone() for parameter in layers.parameters()]
    x = torch.randn(3, 4, dtype=wide)
    with torch.no_grad():
        expected = nn.Sequential(*layers)
        expected = torch.nn.functional.linear(x, layers[0].weight.to(wide), layers[0].bias.to(wide))
        expected = torch.nn.functional.linear(expected, layers[1].weight.to(wide), layers[1].bias.to(wide))
        with widened(layers, wide):
            assert torch.equal(layers(x), expected)
            assert {parameter.dtype for parameter in layers.parameters()} == {stored}
    for parameter, value in zip(layers.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_a_module_that_fails_gets_its_weights_back():
    layer = nn.Linear(4, 4).bfloat16()
    with pytest.raises(RuntimeError), widened([layer], torch.float32):
        layer(torch.randn(3, 5))
    assert layer.weight.dtype == torch.bfloat16
