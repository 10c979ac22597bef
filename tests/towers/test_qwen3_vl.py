"""Qwen3-VL's tower: the oracle against transformers' full model, the graph against the oracle, planted mistakes."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from preprocess import flat_patches, frames_to_patches, normalize, to_graph_input, unpatchify
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.fidelity.truth import Truth
from qwen_vl_axera.graph.conformity import fresh_model, structure_problems, weight_problems
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.graph.files import load_graph, read_spec
from qwen_vl_axera.towers import find_tower
from qwen_vl_axera.towers.qwen3_vl.config import read_config
from qwen_vl_axera.towers.qwen3_vl.layout import build_layout
from qwen_vl_axera.towers.qwen3_vl.module import VisionTower
from qwen_vl_axera.towers.qwen3_vl.reference import ReferenceTower
from tests.tiny import QWEN3_VISION, make_tiny_qwen3

pytest.importorskip("transformers.models.qwen3_vl", reason="this transformers has no Qwen3-VL", exc_type=ImportError)

SIZES = [(320, 320), (160, 288), (64, 64), (64, 416)]
SIZE = (160, 288)
# The same sums, batched or split over threads differently; relative to the largest value.
SAME_SUMS = 1e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return Checkpoint(make_tiny_qwen3(tmp_path_factory.mktemp("checkpoints") / "tiny3"))


@pytest.fixture(scope="module")
def tower(checkpoint) -> ReferenceTower:
    return ReferenceTower(checkpoint, checkpoint.config.vision)


def clip(size, steps: int = 2) -> np.ndarray:
    frames = np.random.default_rng(sum(size)).integers(0, 256, (2 * steps, *size, 3), dtype=np.uint8)
    return frames_to_patches(list(frames), size, patch_size=16)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(actual - expected).max() / np.abs(expected).max()


def right(truth: Truth, tokens: np.ndarray) -> bool:
    """Whether the gate's figures keep their limits."""
    return truth.errors(tokens, [np.arange(tokens.shape[1])]).exceeded is None


def test_patches_are_those_of_transformers(tower):
    try:
        from transformers import Qwen2VLImageProcessorPil as Processor
    except ImportError:  # transformers 4: Pillow is its only one
        from transformers import Qwen2VLImageProcessor as Processor

    frame = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    made = Processor(patch_size=16, min_pixels=1, max_pixels=64 * 96, **half)(frame)
    patches = frames_to_patches([frame], (64, 96), patch_size=16)
    assert np.array_equal(flat_patches(patches, [0.5] * 3, [0.5] * 3), made["pixel_values"])
    assert np.array_equal(unpatchify(patches, 64, 96)[0], frame)


@pytest.mark.parametrize("size", SIZES)
def test_oracle_is_the_tower_of_the_full_model(checkpoint, tower, size):
    from transformers import Qwen3VLForConditionalGeneration

    # transformers 4 does not know the names without "model." in front of them.
    names = {} if int(transformers.__version__.split(".")[0]) > 4 else {"key_mapping": {"^visual": "model.visual"}}
    full = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint.directory, **names).float().eval().model.visual
    patches, grid = clip(size), checkpoint.config.vision.grid(size)
    values = torch.from_numpy(flat_patches(patches, [0.5] * 3, [0.5] * 3))
    with torch.no_grad():
        output = full(values, grid_thw=torch.tensor([[len(patches), *grid]]))
    tokens, features = output if isinstance(output, tuple) else (output.pooler_output, output.deepstack_features)
    expected = torch.cat([tokens, *features], -1).numpy()
    assert relative(tower.run(patches, grid), expected) <= SAME_SUMS
    assert relative(tower.run_exact(patches, grid), expected) <= SAME_SUMS
    answer, layout = tower.run_steps(patches, grid)
    assert relative(answer, expected) <= SAME_SUMS
    for name, value in build_layout(checkpoint.config.vision, size).saved.items():
        np.testing.assert_allclose(layout.tensors()[name].numpy(), value, atol=1e-6)


def exported(checkpoint, directory, size=SIZE, **form):
    return [graph.path for graph in export_vision(checkpoint, directory, sizes=[size], **form)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "form", [{}, {"input": "normalized"}, {"window_mode": "folded"}, {"opset": 18}], ids=lambda form: str(form)
)
def test_graph_is_as_exact_as_transformers(checkpoint, tower, tmp_path, size, form):
    patches, grid = clip(size), checkpoint.config.vision.grid(size)
    shape = len(patches), -1, 3 * checkpoint.config.vision.out_hidden_size
    exact = tower.run_exact(patches, grid).reshape(shape)
    truth = Truth([0, 1], exact, [tower.run(patches, grid).reshape(shape)])
    for path in exported(checkpoint, tmp_path, size, **form):
        assert right(truth, OnnxTower(path)(patches).reshape(shape)), path
        model = load_graph(path)
        spec = read_spec(model, path)
        assert list(structure_problems(fresh_model(checkpoint, spec), model)) == []
        weights = checkpoint.tower.weights(checkpoint, checkpoint.config.vision, spec.input)
        assert list(weight_problems(weights, model, tmp_path)) == []


def test_outputs_are_named_in_the_runtime_order(checkpoint, tmp_path):
    model = load_graph(exported(checkpoint, tmp_path)[0])
    names = [value.name for value in model.graph.output]
    assert names == ["hidden_states_out", "deepstack_feature_0", "deepstack_feature_1"]


def test_sizes_share_the_weights(checkpoint, tmp_path):
    export_vision(checkpoint, tmp_path, sizes=[(64, 64), (160, 288)])
    first = (tmp_path / "tiny3_vision.onnx.data").read_bytes()
    export_vision(checkpoint, tmp_path, sizes=[(320, 320)])
    assert (tmp_path / "tiny3_vision.onnx.data").read_bytes() == first


def positions(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "positions")


def changed_positions(how):
    def plant(model, config, table):
        tensor = positions(model)
        rows, columns = config.grid(SIZE)
        shape = rows // 2, columns // 2, 2, 2, config.hidden_size
        square = numpy_helper.to_array(tensor).reshape(shape).transpose(0, 2, 1, 3, 4)
        values = how(square.reshape(rows, columns, -1), table)
        blocks = values.reshape(rows // 2, 2, columns // 2, 2, -1).transpose(0, 2, 1, 3, 4)
        values = np.ascontiguousarray(blocks.reshape(rows * columns, -1), dtype=np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, "positions"))

    return plant


def without_aligned_corners(square, table):
    side = int(len(table) ** 0.5)
    grid = torch.from_numpy(table).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(grid, square.shape[:2], mode="bilinear")[0].permute(1, 2, 0).numpy()


def transposed(square, table):
    side = int(len(table) ** 0.5)
    flipped = torch.from_numpy(table).reshape(1, side, side, -1).permute(0, 3, 2, 1)
    made = torch.nn.functional.interpolate(flipped, square.shape[:2], mode="bilinear", align_corners=True)
    return made[0].permute(1, 2, 0).numpy()


def aligned_corners(square, table):
    """No mistake: PyTorch's own interpolation."""
    side = int(len(table) ** 0.5)
    grid = torch.from_numpy(table).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(grid, square.shape[:2], mode="bilinear", align_corners=True)
    return made[0].permute(1, 2, 0).numpy()


def exchanged_outputs(model, config, table):
    one, other = model.graph.output[1], model.graph.output[2]
    names = {one.name: other.name, other.name: one.name}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]


def wrong_layer(model, config, table):
    """The first feature is taken behind block 1 instead of block 0."""
    first, second = (
        [node.output[0] for node in model.graph.node if node.name.startswith(f"blocks.{number}.")][-1]
        for number in (0, 1)
    )
    node = next(node for node in model.graph.node if node.name.startswith("deepstack_merger_list.0."))
    node.input[:] = [second if name == first else name for name in node.input]
    # What reads it must stand behind it.
    nodes = sorted(model.graph.node, key=lambda node: node.name.startswith("deepstack_merger_list.0."))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def exact_gelu(model, config, table):
    """The MLPs' tanh is replaced by erf(z / sqrt 2) of the plain input: the exact form."""
    for node in model.graph.node:
        if node.op_type == "Tanh":
            number = node.name.split(".")[1]
            linear = f"blocks.{number}.mlp.linear_fc1"
            scale = numpy_helper.from_array(np.float32(0.5**0.5).reshape(1), f"{linear}.scale")
            model.graph.initializer.append(scale)
            node.op_type = "Erf"
            scaled = onnx.helper.make_node("Mul", [linear, scale.name], [f"{linear}.scaled"], name=f"{linear}.scaled")
            node.input[0] = f"{linear}.scaled"
            place = list(model.graph.node).index(node)
            model.graph.node.insert(place, scaled)


MISTAKES = {
    "a DeepStack output of the wrong layer": wrong_layer,
    "DeepStack outputs exchanged": exchanged_outputs,
    "positions transposed": changed_positions(transposed),
    "positions without aligned corners": changed_positions(without_aligned_corners),
    "exact GELU for tanh": exact_gelu,
}


@pytest.fixture(scope="module")
def planted(checkpoint, tower, tmp_path_factory):
    """Runs the graph with a change and says whether the gate's figures keep their limits."""
    path = exported(checkpoint, tmp_path_factory.mktemp("planted"))[0]
    config, patches = checkpoint.config.vision, clip(SIZE)
    grid, table = config.grid(SIZE), checkpoint.read("visual.pos_embed.weight")
    shape = len(patches), -1, 3 * config.out_hidden_size
    runs = [answer.reshape(shape) for answer in (tower.run_exact(patches, grid), tower.run(patches, grid))]
    truth = Truth([0, 1], runs[0], [runs[1]])

    def run(change) -> bool:
        model = onnx.load(path)
        change(model, config, table)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        inputs = [{"hidden_states": to_graph_input(step)} for step in patches]
        answers = [np.concatenate(session.run(None, given), -1) for given in inputs]
        return right(truth, np.stack(answers).reshape(shape))

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_gate_sees(planted, mistake):
    assert not planted(MISTAKES[mistake])


def test_gate_lets_the_right_graph_pass(planted):
    assert planted(lambda *args: None)
    assert planted(changed_positions(aligned_corners))


HOSTILE = [
    {"patch_size": 14},
    {"hidden_act": "gelu"},
    {"num_position_embeddings": 48},
    {"deepstack_visual_indexes": [2, 0]},
    {"deepstack_visual_indexes": [0, 4]},
    {"deepstack_visual_indexes": [True, 2]},
    {"deepstack_visual_indexes": [1, 1]},
    {"hidden_size": 66},
    {"num_heads": 0},
    {"depth": "4"},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_refused(tmp_path, change):
    with pytest.raises(InputError):
        read_config(tmp_path / "config.json", json.loads(json.dumps(QWEN3_VISION | change)))


def test_opset_without_layer_normalization_is_refused(checkpoint):
    config = checkpoint.config.vision
    layout, spec = build_layout(config, SIZE, checkpoint), GraphSpec("qwen3_vl", SIZE, opset=16)
    with pytest.raises(InputError, match="opset 16"):
        VisionTower(config, layout, spec)


def test_the_numbers_of_preprocess_are_qwen2_5_vl_s():
    import preprocess

    tower = find_tower("qwen2_5_vl")
    assert (tower.patch_size, tower.factor) == (preprocess.PATCH_SIZE, preprocess.FACTOR)
    assert (tower.mean, tower.std) == (preprocess.MEAN, preprocess.STD)


def test_normalised_values_are_the_tower_s(checkpoint, tower):
    patches = clip((64, 64), 1)
    values = normalize(patches[0], [0.5] * 3, [0.5] * 3)
    assert values.min() >= -1 and values.max() <= 1
    assert dataclasses.is_dataclass(checkpoint.config.vision)


def test_the_host_steps_run_from_end_to_end(checkpoint, tmp_path, capsys):
    """Capture, export, gate and calibration of a clip as a user runs them, and what preflight says to it."""
    import export
    import get_calib
    import preflight
    import run_video_by_sec
    import test_onnx_video_by_sec
    from tests.conftest import run_main

    place = "--workdir", tmp_path
    for script, argv in (
        (run_video_by_sec, (checkpoint.directory, "--size", 160, 288)),
        (export, (checkpoint.directory, "video")),
        (test_onnx_video_by_sec, (checkpoint.directory,)),
        (get_calib, ("--num-samples", 4)),
    ):
        code, _, error = run_main(script.main, capsys, *argv, *place)
        assert code == 0, error
    _, out, _ = run_main(preflight.main, capsys, checkpoint.directory, "--json", *place)
    failed = {check["name"] for check in json.loads(out)["checks"] if check["status"] == "failed"}
    assert not failed & {
        "checkpoint",
        "graph",
        "graph input",
        "graph output",
        "archive samples",
        "normalisation",
        "board",
    }
