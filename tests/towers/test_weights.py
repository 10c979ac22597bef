"""The table of weights against a checkpoint on disk: each entry beside the layer of transformers that it replaces.

safetensors reads the checkpoint here, torch computes what the original layers compute.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from preprocess import MEAN, STD
from qwen_vl_axera.contract import INPUTS, GraphSpec
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout
from qwen_vl_axera.towers.qwen2_5_vl.module import VisionTower
from qwen_vl_axera.towers.qwen2_5_vl.weights import vision_weights, weight_table, witnesses

ROUNDING = 1e-6  # of float32, relative to the largest value; the expected values are computed in float64


@pytest.fixture(scope="module")
def stored(tiny_dir) -> dict[str, torch.Tensor]:
    """The checkpoint's vision tensors in float64, by the names below `visual.`."""
    (shard,) = tiny_dir.glob("*.safetensors")
    tensors = load_file(shard)
    return {name[7:]: tensor.double() for name, tensor in tensors.items() if name.startswith("visual.")}


@pytest.fixture(scope="module", params=INPUTS)
def input(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(tiny, input) -> dict[str, torch.Tensor]:
    """What the table makes of it, in float64 for comparison."""
    return {name: torch.from_numpy(value).double() for name, value in vision_weights(tiny, tiny.config.vision, input)}


def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()


def test_they_are_the_modules_parameters_in_the_tables_order(tiny, input):
    config, spec = tiny.config.vision, GraphSpec("qwen2_5_vl", (56, 56), input=input)
    with torch.device("meta"):
        module = VisionTower(config, build_layout(config, spec.size), spec)
    made = dict(vision_weights(tiny, config, input))
    assert {name: value.shape for name, value in made.items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    assert list(made) == list(weight_table(config, input))
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in made.values())


def test_the_patch_embedding_is_the_convolution(stored, made, input):
    """Any bytes of a patch (2, 14, 14, 3) through our linear layer, and normalised through the original Conv3d."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 2, 14, 14, 3))).double()
    normalized = (pixels / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    kernel = stored["patch_embed.proj.weight"]
    expected = F.conv3d(normalized.permute(0, 4, 1, 2, 3), kernel, stride=kernel.shape[2:]).flatten(1)
    given = (pixels if input == "pixels" else normalized).reshape(9, -1)
    assert ("patch_embed.proj.bias" in made) == (input == "pixels")
    assert_same(F.linear(given, made["patch_embed.proj.weight"], made.get("patch_embed.proj.bias")), expected)


def test_attention_is_the_original_one(tiny, stored, made):
    """Of each block: scores and output, from the stored qkv and proj."""
    config = tiny.config.vision
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(7, config.hidden_size)))
    heads = lambda values: values.reshape(7, config.num_heads, -1).transpose(0, 1)  # noqa: E731 - (heads, 7, head_dim)
    for number in range(config.depth):
        block = f"blocks.{number}.attn"
        q, k, v = (heads(values) for values in linear(x, stored, f"{block}.qkv").chunk(3, 1))
        ours = [heads(linear(x, made, f"{block}.qkv.{name}")) for name in "qkv"]
        scores = q @ k.transpose(1, 2) / config.head_dim**0.5
        assert_same(ours[0] @ ours[1].transpose(1, 2), scores)
        attended = [(scores.softmax(-1) @ values).transpose(0, 1).flatten(1) for values in (v, ours[2])]
        assert_same(linear(attended[1], made, f"{block}.proj"), linear(attended[0], stored, f"{block}.proj"))


def test_all_others_are_taken_as_they_are_stored(stored, made):
    """Exactly those whose layers are looked at above are not; and every stored tensor is used."""
    others = {name for name in made if name not in stored or not torch.equal(made[name], stored[name])}
    layers = {name.rpartition(".")[0].partition(".qkv.")[0] for name in others}
    blocks = [f"blocks.{number}.attn" for number in range(4)]
    assert layers == {"patch_embed.proj", *blocks, *(f"{block}.proj" for block in blocks)}
    assert not {name for name in stored if name not in made and ".qkv." not in name}


def test_witnesses_are_stored_tensors_out_of_every_block(tiny, stored, made):
    names = witnesses(tiny.config.vision)
    assert all(torch.equal(made[name], stored[name]) for name in names)
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"0", "1", "2", "3"}
