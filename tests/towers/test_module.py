"""The module that is exported, filled with its weights, against transformers' tower: PyTorch on both sides, no ONNX.

What fails here and not in test_weights.py or test_layout.py is the module's forward.
"""

import dataclasses

import numpy as np
import pytest
import torch

from preprocess import normalize, to_graph_input
from qwen_vl_axera.contract import INPUTS, WINDOW_MODES, GraphSpec
from qwen_vl_axera.towers.qwen2_5_vl import module as vision
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout
from qwen_vl_axera.towers.qwen2_5_vl.module import VisionTower
from qwen_vl_axera.towers.qwen2_5_vl.weights import vision_weights
from tests.tiny import make_tiny
from tests.towers.original import SAME_SUMS, original_tower, random_patches, relative, run_original

# The documented size (three sizes of windows), four sizes of windows, one whole window, a single cut one.
SIZES = [(308, 308), (140, 252), (112, 112), (56, 84)]


@pytest.fixture(scope="module")
def original(tiny_dir):
    return original_tower(tiny_dir)


def filled(checkpoint, spec: GraphSpec) -> VisionTower:
    """The module with real parameters; it is an error if the weights leave one out or bring one too many."""
    config = checkpoint.config.vision
    module = VisionTower(config, build_layout(config, spec.size), spec).eval()
    weights = vision_weights(checkpoint, config, spec.input)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights}, strict=True)
    return module


def graph_input(patches: np.ndarray, spec: GraphSpec) -> torch.Tensor:
    """One step's uint8 patches (S, 392, 3) as the module of that spec takes them."""
    if spec.uint8:
        return torch.from_numpy(patches[None])
    return torch.from_numpy(to_graph_input(patches) if spec.input == "pixels" else normalize(patches))


@torch.no_grad()
def run(module: VisionTower, patches: np.ndarray, spec: GraphSpec) -> np.ndarray:
    return module(graph_input(patches, spec)).numpy()


@pytest.mark.parametrize("uint8", [False, True], ids=["float", "uint8"])
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("window_mode", WINDOW_MODES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_it_is_transformers_tower(tiny, original, size, window_mode, input, uint8):
    spec = GraphSpec("qwen2_5_vl", size, input=input, window_mode=window_mode, uint8=uint8)
    (patches,) = random_patches(size)
    expected = run_original(original, patches[None], (size[0] // 14, size[1] // 14))
    tokens = run(filled(tiny, spec), patches, spec)
    assert (tokens.dtype, tokens.shape) == (np.float32, expected.shape)
    assert relative(tokens, expected) <= SAME_SUMS


@pytest.mark.parametrize("window_mode", WINDOW_MODES)
@pytest.mark.parametrize("blocks", [[], [0, 1, 2, 3]], ids=["windows only", "full only"])
def test_towers_of_one_kind_of_attention(tmp_path, blocks, window_mode):
    from qwen_vl_axera.checkpoint.tensors import Checkpoint

    directory = make_tiny(tmp_path / "tiny", vision={"fullatt_block_indexes": blocks})
    spec = GraphSpec("qwen2_5_vl", (140, 252), window_mode=window_mode)
    (patches,) = random_patches(spec.size)
    expected = run_original(original_tower(directory), patches[None], (10, 18))
    assert relative(run(filled(Checkpoint(directory), spec), patches, spec), expected) <= SAME_SUMS


@pytest.mark.parametrize("window_mode", WINDOW_MODES)
def test_heads_in_turns_give_the_same(tiny, original, monkeypatch, window_mode):
    """Three of four heads at once leave an uneven rest."""
    spec = GraphSpec("qwen2_5_vl", (140, 252), window_mode=window_mode)
    monkeypatch.setattr(vision, "MAX_SCORES", 3 * 4 * 180**2)
    module = filled(tiny, spec)
    assert module.blocks[1].attn.windows[0].heads_at_once == 3
    (patches,) = random_patches(spec.size)
    assert relative(run(module, patches, spec), run_original(original, patches[None], (10, 18))) <= SAME_SUMS


def test_the_example_is_the_input(tiny):
    for uint8 in (False, True):
        spec = GraphSpec("qwen2_5_vl", (140, 252), uint8=uint8)
        (patches,) = random_patches(spec.size)
        example, given = filled(tiny, spec).example(), graph_input(patches, spec)
        assert (example.shape, example.dtype, example.is_meta) == (given.shape, given.dtype, True)


@pytest.mark.parametrize(
    "mistake",
    ["reading_order", "window_order", "rotary.cos", "rotary.sin", "window_mask"],
)
def test_each_constant_matters(tiny, original, mistake):
    """A tower whose windows or angles did not show in its answer would prove nothing above."""
    mode = "dense" if mistake == "window_mask" else "grouped"
    spec = dataclasses.replace(GraphSpec("qwen2_5_vl", (140, 252)), window_mode=mode)
    module = filled(tiny, spec)
    buffer = module.get_buffer(mistake)
    buffer.copy_(torch.zeros_like(buffer) if mistake == "window_mask" else buffer.flip(0))
    (patches,) = random_patches(spec.size)
    assert relative(run(module, patches, spec), run_original(original, patches[None], (10, 18))) > 1e-2
