"""The oracle's own tower, loaded our way, against the tower inside transformers' full model."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preprocess import flat_patches
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.towers.qwen2_5_vl import reference
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
from tests.conftest import SIZES
from tests.tiny import make_tiny
from tests.towers.original import SAME_SUMS, original_tower, random_patches, relative, run_original


@pytest.fixture(scope="module")
def tower(tiny) -> ReferenceTower:
    return ReferenceTower(tiny, tiny.config.vision)


@pytest.fixture(scope="module")
def full(tiny_dir):
    return original_tower(tiny_dir)


def test_weights_are_those_of_from_pretrained(tower, full):
    theirs = full.state_dict()
    ours = tower.tower.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name].float(), value), name
    assert not any(parameter.is_meta for parameter in tower.tower.parameters())
    assert not any(buffer.is_meta for buffer in tower.tower.buffers())


@pytest.mark.parametrize("size", [size for size in SIZES if size[0] * size[1] <= 364 * 420])
def test_features_are_those_of_the_full_model(tower, full, size):
    patches, grid = random_patches(size, steps=2), (size[0] // 14, size[1] // 14)
    expected = run_original(full, patches, grid)
    assert relative(tower.run(patches, grid), expected) <= SAME_SUMS
    by_steps, layout = tower.run_steps(patches, grid)
    assert by_steps.dtype == np.float32
    assert relative(by_steps, expected) <= SAME_SUMS
    ours = build_layout(tower.config, size)
    for name in ("cu_seqlens", "cu_window_seqlens", "window_index"):
        np.testing.assert_array_equal(getattr(layout, name).numpy(), getattr(ours, name))
    np.testing.assert_allclose(layout.rotary_pos_emb.numpy(), ours.rotary, atol=1e-6)
    assert {name: value.dtype for name, value in layout.tensors().items()} == {
        "rotary_pos_emb": torch.float32,
        "cu_seqlens": torch.int32,
        "cu_window_seqlens": torch.int32,
        "window_index": torch.int64,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_blocks_stay_as_stored_and_compute_in_float32(tmp_path, dtype):
    directory = make_tiny(tmp_path / "tiny")
    (shard,) = directory.glob("*.safetensors")
    save_file({name: value.to(dtype) for name, value in load_file(shard).items()}, shard)
    checkpoint, patches = Checkpoint(directory), random_patches((140, 252), steps=2)
    tower = ReferenceTower(checkpoint, checkpoint.config.vision)
    wide = reference.load_tower(checkpoint, checkpoint.config.vision)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    np.testing.assert_array_equal(tower.run(patches, (10, 18)), run_original(wide, patches, (10, 18)))  # to the bit
    assert {parameter.dtype for parameter in tower.tower.blocks.parameters()} == {dtype}

    def broken(*args, **kwargs):
        raise RuntimeError

    tower.tower.blocks[1].mlp.forward = broken
    with pytest.raises(RuntimeError):
        tower.run(patches, (10, 18))
    del tower.tower.blocks[1].mlp.forward
    np.testing.assert_array_equal(tower.run(patches, (10, 18)), run_original(wide, patches, (10, 18)))
    assert {parameter.dtype for parameter in tower.tower.blocks.parameters()} == {dtype}


def test_the_exact_answer_is_float64_throughout(tower):
    """No operation of transformers rounds to float32 on the way, nor to the 16 bits in which weights are stored."""
    rounded = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                narrow = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize < 8
                if narrow and function is not torch.ops.aten.detach.default:  # a stored weight is put back
                    rounded.add(str(function))
            return result

    patches, grid = random_patches((140, 252), steps=2), (10, 18)
    with Watch():
        exact = tower.run_exact(patches, grid)
        assert not rounded
        tower.run(patches, grid)
        assert "aten.rsqrt.default" in rounded  # the watch sees what it should
    assert exact.dtype == np.float64
    # Steps do not see each other.
    np.testing.assert_allclose(tower.run_exact(patches[:1], grid), exact[:45], rtol=0, atol=1e-13 * np.abs(exact).max())


def test_float32_is_as_far_from_the_exact_answer_as_its_pixels_moved(tower):
    patches, grid = random_patches((140, 252), steps=2), (10, 18)
    exact, plain = tower.run_exact(patches, grid), tower.run(patches, grid)
    moved = [tower.run_moved(patches, grid, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(moved[0], moved[1])
    assert (moved[0] != moved[2]).any()
    errors = [np.linalg.norm(answer - exact) / np.linalg.norm(exact) for answer in (plain, *moved)]
    assert 1e-8 < min(errors) < max(errors) < 3 * min(errors) < 1e-5
    after = tower.run(patches, grid)
    np.testing.assert_array_equal(after, plain)  # nothing of the float64 run stays behind
    assert {parameter.dtype for parameter in tower.tower.blocks.parameters()} == {torch.bfloat16}


def test_a_pixel_moves_alike_wherever_it_stands(tower, monkeypatch):
    """Equal patches round equally: moved one by one, their errors would cancel in every mean over them."""
    given = []
    monkeypatch.setattr(tower, "_run", lambda rows, grid: given.append(rows))
    patches = np.full((1, 16, 392, 3), 200, np.uint8)
    tower.run_moved(patches, (4, 4), seed=3)
    (rows,) = given
    assert (rows == rows[0]).all()
    change = np.abs(rows[0] - flat_patches(patches)[0])
    assert 0 < change.max() <= 4e-6


@pytest.mark.parametrize("size", [(140, 252), (56, 84)])
def test_stages_lead_to_the_answer(tower, size):
    """The states after the last block, merged, are the tokens: in reading order, whatever the windows."""
    patches, grid = random_patches(size), (size[0] // 14, size[1] // 14)
    wanted = np.array([5, 0, 3])
    stages = tower.stages(patches, grid, exact=False, tokens=wanted)
    assert list(stages) == ["patch_embed", *(f"blocks.{number}" for number in range(tower.config.depth))]
    assert {states.shape for states in stages.values()} == {(3, 4, tower.config.hidden_size)}
    merged = tower.tower.merger(torch.from_numpy(stages["blocks.3"]).reshape(12, -1)).numpy()
    np.testing.assert_allclose(merged, tower.run(patches, grid)[wanted], atol=1e-5)
    embedded = tower.tower.patch_embed(torch.from_numpy(flat_patches(patches))).numpy()
    np.testing.assert_allclose(stages["patch_embed"], embedded.reshape(-1, 4, embedded.shape[-1])[wanted], atol=1e-5)
    exact = tower.stages(patches, grid, exact=True, tokens=wanted)
    for name, states in stages.items():
        assert exact[name].dtype == np.float64
        assert relative(states, exact[name]) < SAME_SUMS


def test_steps_do_not_see_each_other(tower):
    """What makes a static graph per step possible at all: a step's tokens hang on that step alone."""
    patches = random_patches((140, 252), steps=3)
    before = tower.run(patches, (10, 18)).reshape(3, -1)
    patches[1] = 255 - patches[1]
    after = tower.run(patches, (10, 18)).reshape(3, -1)
    assert relative(after[[0, 2]], before[[0, 2]]) <= SAME_SUMS
    assert relative(after[1], before[1]) > 0.1


def test_patches_are_rows_of_channel_frame_row_column():
    patches = np.zeros((2, 4, 392, 3), np.uint8)
    patches[1, 2, 1 * 196 + 3 * 14 + 5, 2] = 255  # step 1, patch 2, second frame, row 3, column 5, blue
    rows = flat_patches(patches).reshape(2, 4, 3, 2, 14, 14)
    assert np.argwhere(rows == rows.max()).tolist() == [[1, 2, 2, 1, 3, 5]]


@pytest.mark.parametrize("blocks", [[], [0, 1, 2, 3]])
def test_towers_with_windows_or_full_attention_only(tmp_path, blocks):
    directory = make_tiny(tmp_path / "tiny", vision={"fullatt_block_indexes": blocks})
    checkpoint = Checkpoint(directory)
    tower = ReferenceTower(checkpoint, checkpoint.config.vision)
    patches = random_patches((140, 252))
    features, layout = tower.run_steps(patches, (10, 18))
    assert relative(features, run_original(original_tower(directory), patches, (10, 18))) <= SAME_SUMS
    assert layout.cu_seqlens.tolist() == [0, 180]
    np.testing.assert_array_equal(
        layout.cu_window_seqlens.numpy(), build_layout(tower.config, (140, 252)).cu_window_seqlens
    )


def test_only_the_vision_weights_are_read(tiny_dir, monkeypatch):
    read = []
    original = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name, *rest: read.append(name) or original(self, name, *rest))
    checkpoint = Checkpoint(tiny_dir)
    ReferenceTower(checkpoint, checkpoint.config.vision)
    assert read
    assert all(name.startswith("visual.") for name in read)


def test_a_missing_weight_is_named(tiny_dir):
    checkpoint = Checkpoint(tiny_dir)
    del checkpoint.tensors["visual.blocks.2.norm2.weight"]
    with pytest.raises(InputError, match=r"no tensor visual\.blocks\.2\.norm2\.weight.*closest"):
        ReferenceTower(checkpoint, checkpoint.config.vision)


def test_layouts_that_differ_between_steps_are_refused(tower):
    _, layout = tower.run_steps(random_patches((56, 56)), (4, 4))
    other = dataclasses.replace(layout, window_index=layout.window_index.flip(0))
    with pytest.raises(CheckFailed, match="window_index differs between temporal steps"):
        reference._require_equal(layout, other)


def test_other_angles_than_the_blocks_received_are_refused(tower, monkeypatch):
    original = reference.rotary_angles
    monkeypatch.setattr(reference, "rotary_angles", lambda *args: original(*args).flip(1))
    with pytest.raises(CheckFailed, match="other rotary angles"):
        tower.run_steps(random_patches((140, 252)), (10, 18))
