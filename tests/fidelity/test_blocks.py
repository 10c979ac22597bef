"""Where an error starts: the graph's states are transformers' where it is right, and the first wrong one is found."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qwen_vl_axera.contract import data_file
from qwen_vl_axera.fidelity.blocks import first_wrong_stage, graph_stages
from qwen_vl_axera.graph.conformity import place_of
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.graph.files import load_graph, write_graph

SIZE = (140, 252)  # windows of four sizes: the graph's order is neither transformers' nor the reading order
STAGES = ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]


@pytest.fixture(scope="module")
def case(tiny, tmp_path_factory):
    """Graphs of both inputs, transformers' tower, the layout, a step's patches and its grid."""
    workdir = tmp_path_factory.mktemp("blocks")
    graphs = [item.path for item in export_vision(tiny, workdir, sizes=[SIZE])]
    config = tiny.config.vision
    patches = np.random.default_rng(4).integers(0, 256, (180, 392, 3), dtype=np.uint8)
    reference = tiny.tower.reference(tiny, config)
    return graphs, reference, tiny.tower.layout(config, SIZE), patches, config.grid(SIZE)


@pytest.mark.parametrize("number", [0, 1])
def test_states_are_transformers(case, number):
    graphs, reference, layout, patches, grid = case
    tokens = np.array([44, 0, 17])
    exact = reference.stages(patches[None], grid, exact=True, tokens=tokens)
    found = graph_stages(graphs[number], list(exact), layout, patches, tokens)
    assert list(found) == list(exact) == STAGES
    for name, states in exact.items():
        np.testing.assert_allclose(found[name], states, atol=1e-5 * np.abs(states).max(), err_msg=name)


def damage(path, tiny, name):
    """Changes a weight in the graph file."""
    model = load_graph(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = place_of(tensor)
    data = (path.parent / data_file(tiny.name)).read_bytes()
    start, length = int(place["offset"]), int(place["length"])
    value = np.frombuffer(data[start : start + length], "<f4").reshape(tensor.dims) * np.float32(1.1)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    damaged = path.with_name("damaged.onnx")
    write_graph(model, damaged)
    return damaged


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("patch_embed.proj.weight", "the patch embedding"),
        ("blocks.0.attn.qkv.v.weight", "block 0"),
        ("blocks.2.norm2.weight", "block 2"),
        ("merger.mlp.0.weight", "the merger"),
    ],
)
def test_the_first_wrong_stage_is_found(tiny, case, name, stage):
    graphs, reference, layout, patches, grid = case
    errors = np.arange(45.0)
    assert first_wrong_stage(damage(graphs[0], tiny, name), reference, layout, patches, grid, errors) == stage


def test_a_graph_without_its_names(case, tmp_path):
    graphs, reference, layout, patches, grid = case
    model = load_graph(graphs[0])
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    path = graphs[0].with_name("nameless.onnx")
    write_graph(model, path)
    assert isinstance(model, onnx.ModelProto)
    assert first_wrong_stage(path, reference, layout, patches, grid, np.arange(45.0)) is None
