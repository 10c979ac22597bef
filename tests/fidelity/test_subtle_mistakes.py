"""Each subtle mistake must be caught on the demo model: named by the structural check, most by the numbers, too."""

import numpy as np
import pytest
from onnx import numpy_helper

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.fidelity.gate import judge_graphs, open_clip
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.graph.files import load_graph, write_graph
from tests.conftest import ROOT
from tests.subtle import SUBTLE, idle_block, judged, plant
from tests.talking import capture_and_export

SIZE = (168, 168)  # of the clip
MODEL, CLIP = ROOT / "assets" / "demo_model", ROOT / "assets" / "demo.mp4"
# What the structural check says of each. The demo model has four blocks; the one in the middle is damaged.
NAMED = {
    "epsilon ×10": "constant scalar.",
    "epsilon ×10 in the merger alone": "node merger.ln_q",
    "one patch's angles off by 1e-4": "constant rotary.cos",
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
    "rope base 10001": "block 0",
    "tanh for erf in GELU": "the merger",
    "two heads swapped in one block": "block 2",
    "a window's border moved by one quad": "the patch embedding",  # two quads are in each other's place
    "the last token duplicated": "the merger",
    "mean and std rounded to three digits": "the patch embedding",
}
# Rounding hides it: the numbers alone would let it pass.
HIDDEN = {"epsilon ×10", "epsilon ×10 in the merger alone"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The good graph, its checkpoint, who judges it, and the block that does least."""
    workdir = tmp_path_factory.mktemp("subtle") / "work"
    capture_and_export(MODEL, workdir, CLIP)
    checkpoint = Checkpoint(MODEL)
    _, judge = open_clip(checkpoint, workdir)
    return workdir / "demo_model_vision.onnx", checkpoint, judge, idle_block(judge)


def test_a_good_graph_passes(good):
    path, checkpoint, judge, _ = good
    (graph,) = judge_graphs([path], judge, checkpoint)
    assert graph.problems == graph.differences == []


@pytest.mark.parametrize("mistake", SUBTLE)
def test_subtle_mistake_is_caught(good, tmp_path, mistake):
    path, checkpoint, judge, idle = good
    planted = plant(mistake, path, checkpoint, tmp_path / "planted", idle)
    graph = judged(planted, judge, checkpoint)
    assert any(NAMED[mistake] in difference for difference in graph.differences), graph.differences
    assert bool(graph.exact.exceeded) == (mistake not in HIDDEN), graph.exact
    if mistake in STARTS:
        assert graph.problems[0].endswith(f"first seen in {STARTS[mistake]}"), graph.problems


@pytest.mark.parametrize("value", [-20, -60])
def test_a_mask_that_hides_too_little(good, tmp_path, value):
    """Scores differ by more than 20, so windows see each other; -60 is right to float32, and not what is exported."""
    _, checkpoint, judge, _ = good
    (path, _) = (item.path for item in export_vision(checkpoint, tmp_path, sizes=[SIZE], window_mode="dense"))
    model = load_graph(path)
    (mask,) = (tensor for tensor in model.graph.initializer if tensor.name == "window_mask")
    values = numpy_helper.to_array(mask)
    mask.CopyFrom(numpy_helper.from_array(np.maximum(values, np.float32(value)), mask.name))
    write_graph(model, path)
    graph = judged(path, judge, checkpoint)
    assert graph.differences[0].startswith("constant window_mask: ")
    assert bool(graph.exact.exceeded) == (value == -20), graph.exact


def test_the_good_graphs_weights_are_untouched(good, tmp_path):
    """A mistake in a linked data file would spoil every other test."""
    path, checkpoint, _, idle = good
    data = path.with_name("demo_model_vision.onnx.data")
    before = data.read_bytes()
    plant("weights in float16", path, checkpoint, tmp_path / "planted", idle)
    assert data.read_bytes() == before
    assert (tmp_path / "planted" / data.name).read_bytes() != before
