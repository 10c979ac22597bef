"""Each subtle mistake must be caught on the demo model: named by the structural check, most by the numbers, too."""

import shutil

import pytest

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.fidelity.gate import verify
from qwen_vl_axera.fidelity.truth import THRESHOLDS
from qwen_vl_axera.oracle.record import read_pixels
from tests.conftest import ROOT
from tests.subtle import SUBTLE, idle_block, plant
from tests.talking import capture_and_export

MODEL, CLIP = ROOT / "assets" / "demo_model", ROOT / "assets" / "demo.mp4"
# What the structural check says of each. The demo model has four blocks; the one in the middle is damaged.
NAMED = {
    "epsilon ×10": "constant scalar.",
    "one weight off by 1 %": "weight blocks.2.mlp.down_proj.weight: 1 of ",
    "a bias missing in one block": "node blocks.2.mlp.down_proj: inputs",
    "weights in float16": "weight patch_embed.proj.weight",
    "folded weights in bfloat16": "weight blocks.0.attn.qkv.q.weight",
    "angles in float16": "constant rotary.cos",
    "rope base 10001": "constant rotary.sin",
    "tanh for erf in GELU": "operator Mul, expected operator Erf",
    "two heads swapped in one block": "weight blocks.2.attn.qkv.k.weight",
    "a window's border moved by one quad": "constant window_order: 2 of ",
    "the last token duplicated": "constant reading_order: 1 of ",
    "mean and std rounded to three digits": "weight patch_embed.proj.bias",
    "one block skipped": "expected ",
}
# Where the demo model's error starts, in those that keep all blocks and start in one place.
STARTS = {
    "one weight off by 1 %": "block 2",
    "a bias missing in one block": "block 2",
    "angles in float16": "block 0",
    "rope base 10001": "block 1",
    "tanh for erf in GELU": "the merger",
    "two heads swapped in one block": "block 2",
    "a window's border moved by one quad": "the patch embedding",  # two quads are in each other's place
    "the last token duplicated": "the merger",
    "mean and std rounded to three digits": "the patch embedding",
}
# Rounding hides it: the numbers alone would let it pass.
HIDDEN = {"epsilon ×10"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The work directory after steps 1 and 2, the checkpoint, and the block that does least."""
    workdir = tmp_path_factory.mktemp("subtle") / "work"
    capture = capture_and_export(MODEL, workdir, CLIP)
    checkpoint = Checkpoint(MODEL)
    return workdir, checkpoint, idle_block(checkpoint, read_pixels(workdir, capture)[0], capture.grid_thw[1:])


def test_a_good_graph_passes(good):
    workdir, checkpoint, _ = good
    report, _ = verify(checkpoint, workdir, [workdir / "demo_model_vision.onnx"])
    assert report["passed"], report


@pytest.mark.parametrize("mistake", SUBTLE)
def test_subtle_mistake_is_caught(good, tmp_path, mistake):
    workdir, checkpoint, idle = good
    path = plant(mistake, workdir / "demo_model_vision.onnx", checkpoint, tmp_path / "planted", idle)
    report, _ = verify(checkpoint, workdir, [path])
    (graph,) = report["graphs"]
    assert not report["passed"]
    assert any(NAMED[mistake] in problem for problem in graph["problems"]), graph["problems"]
    exact = graph["exact"]
    by_numbers = exact["ratio"] > THRESHOLDS["error_ratio"] or exact["token_ratio"] > THRESHOLDS["token_error_ratio"]
    assert by_numbers != (mistake in HIDDEN), exact
    if mistake in STARTS:
        assert graph["problems"][0].endswith(f"first seen in {STARTS[mistake]}"), graph["problems"]


def test_the_good_graphs_weights_are_untouched(good, tmp_path):
    """A mistake in a linked data file would spoil every other test."""
    workdir, checkpoint, idle = good
    before = (workdir / "demo_model_vision.onnx.data").read_bytes()
    plant("weights in float16", workdir / "demo_model_vision.onnx", checkpoint, tmp_path / "planted", idle)
    assert (workdir / "demo_model_vision.onnx.data").read_bytes() == before
    assert (tmp_path / "planted" / "demo_model_vision.onnx.data").read_bytes() != before
    shutil.rmtree(tmp_path / "planted")
