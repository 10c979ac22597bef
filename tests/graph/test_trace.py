"""From a module to nodes: what can't be lowered is named, and every parameter has its place."""

import pytest
import torch
from torch import nn

from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.trace import meta_module, place_weights, trace

SPEC = GraphSpec("qwen2_5_vl", (56, 56))


@pytest.fixture
def made(tiny):
    """A module on the meta device and the place of its weights."""
    config = tiny.config.vision
    module = meta_module(tiny.tower, config, tiny.tower.layout(config, SPEC.size), SPEC)
    return module, place_weights(tiny.tower, config, module, SPEC, "x.data")


def test_parameters_take_no_memory_and_constants_are_real(made):
    module, data = made
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())
    assert {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} == data.shapes


def test_an_operation_without_a_lowering_is_named(made):
    module, data = made

    class Unknown(nn.Module):
        def forward(self, x):
            return torch.special.erfcx(x)

    module.blocks[1].norm2 = Unknown()
    with pytest.raises(NotImplementedError, match=r"erfcx.*blocks\.1\.norm2"):
        trace(module, data, SPEC, {})


def test_a_parameter_that_the_table_does_not_have(tiny, made):
    module, _ = made
    module.blocks[2].register_parameter("gamma", nn.Parameter(torch.empty(4, device="meta")))
    with pytest.raises(ValueError, match=r"differ: \['blocks\.2\.gamma'\]"):
        place_weights(tiny.tower, tiny.config.vision, module, SPEC, "x.data")


def test_the_linter_guards_the_export(made):
    module, data = made
    module.rotary.cos.fill_(float("-inf"))
    with pytest.raises(InputError, match=r"rotary\.cos"):
        trace(module, data, SPEC, {})
