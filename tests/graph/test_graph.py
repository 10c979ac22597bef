"""The exported graph: against transformers in ONNX Runtime, its names, its data file, its linter."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from preprocess import MEAN, STD
from qwen_vl_axera import contract
from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, within
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.graph.files import is_cut_off, read_metadata
from qwen_vl_axera.towers.qwen2_5_vl import module as vision
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
from tests.conftest import SIZES
from tests.towers.original import random_patches

# As exported by default, every size; in the other forms, one with three sizes of windows and one with four.
CASES = [(size, "grouped", "pixels") for size in SIZES]
CASES += [
    (size, window_mode, input)
    for size in ((308, 308), (140, 252))
    for window_mode in contract.WINDOW_MODES
    for input in contract.INPUTS
    if (window_mode, input) != ("grouped", "pixels")
]


@pytest.fixture(scope="module")
def reference(tiny) -> ReferenceTower:
    return ReferenceTower(tiny, tiny.config.vision)


@pytest.mark.parametrize(
    ("size", "window_mode", "input"), CASES, ids=[f"{h}x{w}-{mode}-{input}" for (h, w), mode, input in CASES]
)
def test_every_graph_is_transformers_tower(tiny, reference, tmp_path, size, window_mode, input):
    patches = random_patches(size)
    expected = reference.run(patches, (size[0] // 14, size[1] // 14))
    exported = export_vision(tiny, tmp_path, sizes=[size], window_mode=window_mode, input=input)
    assert len(exported) == 2
    for item in exported:
        figures = compare(expected, OnnxTower(item.path)(patches))
        assert within(figures, THRESHOLDS), figures


@pytest.mark.parametrize("opset", contract.OPSETS)
def test_opsets(tiny, reference, tmp_path, opset):
    patches = random_patches((140, 252))
    exported = export_vision(tiny, tmp_path, sizes=[(140, 252)], opset=opset)
    model = onnx.load(exported[0].path)
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(model, full_check=True)
    figures = compare(reference.run(patches, (10, 18)), OnnxTower(exported[0].path)(patches))
    assert within(figures, THRESHOLDS), figures


@pytest.mark.parametrize("window_mode", ["grouped", "folded"])
def test_heads_in_turns_give_the_same(tiny, reference, tmp_path, monkeypatch, window_mode):
    """Full attention over many patches takes heads in turns; three of four heads leave an uneven rest."""
    patches = random_patches((140, 252))
    monkeypatch.setattr(vision, "MAX_SCORES", 3 * 4 * 180**2)
    exported = export_vision(tiny, tmp_path, sizes=[(140, 252)], window_mode=window_mode)
    names = [node.name for node in onnx.load(exported[0].path, load_external_data=False).graph.node]
    assert "blocks.1.attn.windows.0.softmax_1" in names
    figures = compare(reference.run(patches, (10, 18)), OnnxTower(exported[0].path)(patches))
    assert within(figures, THRESHOLDS), figures


@pytest.mark.parametrize(("window_mode", "rank"), [("grouped", 4), ("folded", 3), ("unrolled", 3), ("dense", 4)])
def test_axes_of_the_attention(tiny, tmp_path, window_mode, rank):
    """What a form is for: how many axes the compiler sees in a product and in a softmax."""
    exported = export_vision(tiny, tmp_path, sizes=[(308, 308)], window_mode=window_mode)
    graph = onnx.load(exported[0].path, load_external_data=False).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    nodes = [node for node in graph.node if node.op_type in ("MatMul", "Softmax")]
    assert {ranks[name] for node in nodes for name in (*node.input, *node.output)} == {rank}
    windows = {"grouped": 3, "folded": 3, "unrolled": 9, "dense": 1}[window_mode]  # 3 x 3 windows of three sizes
    assert len([node for node in nodes if node.name.startswith("blocks.0.") and node.op_type == "Softmax"]) == windows


def test_input_and_output_are_the_contract(tiny, tmp_path):
    float_graph, uint8_graph = export_vision(tiny, tmp_path, sizes=[(308, 308)])
    assert float_graph.path.name == "tiny_vision.onnx"
    assert uint8_graph.path.name == "tiny_vision_uint8.onnx"
    for item, kind, shape in (
        (float_graph, TensorProto.FLOAT, [1, 3, 484, 392]),
        (uint8_graph, TensorProto.UINT8, [1, 484, 392, 3]),
    ):
        model = onnx.load(item.path, load_external_data=False)
        (given,), (result,) = model.graph.input, model.graph.output
        assert (given.name, given.type.tensor_type.elem_type) == ("hidden_states", kind)
        assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == shape
        assert (result.name, result.type.tensor_type.elem_type) == ("hidden_states_out", TensorProto.FLOAT)
        assert [dim.dim_value for dim in result.type.tensor_type.shape.dim] == [121, 48]
        locations = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data[:1]}
        assert locations == {"tiny_vision.onnx.data"}
        assert read_metadata(model)["size"] == [308, 308]


def test_the_graph_ends_on_its_last_gemm(tiny, tmp_path):
    """Tokens are put into reading order before the merger's layers, not after them."""
    for item in export_vision(tiny, tmp_path, sizes=[(140, 252)]):
        nodes = onnx.load(item.path, load_external_data=False).graph.node
        assert (nodes[-1].op_type, nodes[-1].name, list(nodes[-1].output)) == (
            "Gemm",
            "merger.mlp.2",
            ["hidden_states_out"],
        )
        gathers = [node.name for node in nodes if "reading_order" in node.input]
        assert gathers == ["merger.gather"]


def test_names_follow_the_modules(tiny, tmp_path):
    exported = export_vision(tiny, tmp_path, sizes=[(308, 308)])
    nodes = {node.name: node for node in onnx.load(exported[0].path, load_external_data=False).graph.node}
    for name in (
        "patch_embed.proj",
        "blocks.2.attn.qkv.q",
        "blocks.2.attn.proj",
        "blocks.2.attn.windows.2.softmax",
        "blocks.3.mlp.down_proj",
        "merger.mlp.0",
    ):
        assert nodes[name].output[0] == name
    assert list(nodes["blocks.3.mlp.down_proj"].input[1:]) == [
        "blocks.3.mlp.down_proj.weight",
        "blocks.3.mlp.down_proj.bias",
    ]


def test_sizes_and_modes_share_one_data_file(tiny, tmp_path):
    single, several, image = (tmp_path / name for name in ("single", "several", "image"))
    for directory in (single, several, image):
        directory.mkdir()
    export_vision(tiny, single, sizes=[(308, 308)])
    exported = export_vision(tiny, several, sizes=[(308, 308), (140, 252)])
    export_vision(tiny, image, mode="image")
    assert [item.path.name for item in exported][::2] == [
        "tiny_vision_308x308.onnx",
        "tiny_vision_140x252.onnx",
    ]
    data = [(directory / "tiny_vision.onnx.data").read_bytes() for directory in (single, several, image)]
    assert data[0] == data[1] == data[2]
    assert (image / "tiny_vision_image.onnx").is_file()


def test_same_bytes_again(tiny, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export_vision(tiny, tmp_path / name, sizes=[(140, 252)])
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_uint8_graph_normalises_itself(tiny, tmp_path):
    """`--input normalized`: the float graph takes normalised values, the uint8 graph raw ones."""
    exported = export_vision(tiny, tmp_path, sizes=[(56, 56)], input="normalized")
    patches = random_patches((56, 56))[0]
    given = OnnxTower(exported[0].path).graph_input(patches)
    expected = (patches / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(given[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_what_is_cut_off(tmp_path):
    graph = onnx.helper.make_graph([onnx.helper.make_node("neu mode", ["a"], ["b"])], "built", [], [])
    whole, path = onnx.helper.make_model(graph, doc_string="Pulsar2").SerializeToString(), tmp_path / "a.axmodel"
    start = whole.index(graph.SerializeToString()) + len(graph.SerializeToString())
    for length in range(1, start):
        path.write_bytes(whole[:length])
        assert is_cut_off(path), length
    # What nobody knows is not judged; a length beyond 64 bits is no error of ours.
    for data, expected in ((whole, False), (b"", False), (b"compiled", False), (b"\x08\x07\x0f", False)):
        path.write_bytes(data)
        assert is_cut_off(path) is expected, data
    path.write_bytes(b"\x08\x07\x3a" + b"\xff" * 9 + b"\x7f")
    assert is_cut_off(path)
