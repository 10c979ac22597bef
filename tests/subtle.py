"""Subtle mistakes: each planted into a copy of an exported graph and its weights.

A mistake is a function that changes a `Planted` graph. `tests/fidelity/test_subtle_mistakes.py` shows that the gate
catches each on the demo model; `python -m tests.subtle_table` writes what it says at true size, too.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from preprocess import MEAN, STD
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import data_file
from qwen_vl_axera.fidelity.gate import check_conformity, say_where
from qwen_vl_axera.fidelity.truth import Judge
from qwen_vl_axera.fidelity.verdict import Run
from qwen_vl_axera.graph.conformity import place_of, read_weight
from qwen_vl_axera.graph.files import load_graph, write_graph
from qwen_vl_axera.towers.qwen2_5_vl.config import ROPE_THETA
from qwen_vl_axera.towers.qwen2_5_vl.layout import Layout


@dataclass
class Planted:
    """A graph about to be damaged.

    Attributes:
        checkpoint: what it was exported from.
        layout: of its size.
        model: without its external data.
        directory: where it goes; holds its data file, which other graphs may share.
        block: the one to be damaged where one is.
        idle_block: the one that changes its input least.
    """

    checkpoint: Checkpoint
    layout: Layout
    model: onnx.ModelProto
    directory: Path
    block: int
    idle_block: int

    def tensor(self, name: str) -> onnx.TensorProto:
        return next(tensor for tensor in self.model.graph.initializer if tensor.name == name)

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensor(name)
        return np.array(read_weight(tensor, self.directory)).reshape(tensor.dims)

    def replace(self, name: str, value: np.ndarray) -> None:
        """New values for a constant or a weight; they lie in the graph file then."""
        value = np.ascontiguousarray(value, self.read(name).dtype).reshape(self.tensor(name).dims)
        self.tensor(name).CopyFrom(numpy_helper.from_array(value, name))

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.model.graph.node if node.name == name)


def plant(mistake: str, graph: Path, checkpoint: Checkpoint, directory: Path, idle_block: int) -> Path:
    """Writes a copy of a graph with one of SUBTLE planted.

    Args:
        mistake: key of SUBTLE.
        graph: a good float32 graph with pixels as input.
        checkpoint: what it was exported from.
        directory: a new one, on the same file system; the weights are linked, not copied.
        idle_block: the block that changes its input least.
    """
    directory.mkdir()
    name = data_file(checkpoint.name)
    os.link(graph.parent / name, directory / name)
    model, config = load_graph(graph), checkpoint.config.vision
    size = next(entry.value for entry in model.metadata_props if entry.key.endswith(".size"))
    layout = checkpoint.tower.layout(config, tuple(map(int, size.strip("[]").split(","))))
    planted = Planted(checkpoint, layout, model, directory, config.depth // 2, idle_block)
    SUBTLE[mistake](planted)
    write_graph(planted.model, directory / graph.name)
    return directory / graph.name


def judged(path: Path, judge: Judge, checkpoint: Checkpoint) -> Run:
    """What the gate says of a damaged graph; it runs here also where the gate refuses to run other nodes."""
    run = Run(path)
    check_conformity([run], checkpoint)
    run.tokens = run.run(judge.pixels, judge.oracle, range(len(judge.pixels)))
    run.judge(judge)
    say_where([run], judge, checkpoint)
    return run


def epsilon_times_ten(planted: Planted) -> None:
    eps = np.float32(planted.checkpoint.config.vision.rms_norm_eps)
    scalars = [tensor.name for tensor in planted.model.graph.initializer if tensor.name.startswith("scalar.")]
    (name,) = (name for name in scalars if planted.read(name) == eps)
    planted.replace(name, planted.read(name) * 10)


def epsilon_of_the_merger(planted: Planted) -> None:
    """1e-5 instead of 1e-6 in the merger's norm alone."""
    (node,) = (
        node for node in planted.model.graph.node if node.name.startswith("merger.ln_q") and node.op_type == "Add"
    )
    number, eps = next((n, name) for n, name in enumerate(node.input) if name.startswith("scalar."))
    planted.model.graph.initializer.append(numpy_helper.from_array(planted.read(eps) * np.float32(10), "scalar.merger"))
    node.input[number] = "scalar.merger"


def one_angle_moved(planted: Planted) -> None:
    """The angles of one patch, by 1e-4 rad."""
    values = angles(planted).astype(np.float64)
    values[planted.layout.num_patches // 2] += 1e-4
    set_angles(planted, values)


def one_weight_off_by_one_percent(planted: Planted) -> None:
    name = f"blocks.{planted.block}.mlp.down_proj.weight"
    weight = planted.read(name)
    weight.reshape(-1)[np.abs(weight).argmax()] *= 1.01
    planted.replace(name, weight)


def a_bias_missing(planted: Planted) -> None:
    del planted.node(f"blocks.{planted.block}.mlp.down_proj").input[2]


def weights_in_float16(planted: Planted) -> None:
    path = planted.directory / data_file(planted.checkpoint.name)
    whole = path.with_suffix(".whole")
    path.rename(whole)  # the link goes, the good graph's file stays
    shutil.copyfile(whole, path)
    for tensor in planted.model.graph.initializer:
        if tensor.external_data:
            half = planted.read(tensor.name).astype(np.float16).astype(np.float32)
            with open(path, "r+b") as file:
                file.seek(int(place_of(tensor)["offset"]))
                file.write(half.tobytes())
    whole.unlink()


def folded_weights_in_bfloat16(planted: Planted) -> None:
    folded = "patch_embed.proj.weight", "patch_embed.proj.bias", ".qkv.q.weight", ".qkv.q.bias", ".attn.proj.bias"
    for tensor in planted.model.graph.initializer:
        if tensor.name.endswith(folded):
            bits = planted.read(tensor.name).view("<u4")
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
            planted.replace(tensor.name, rounded.view("<f4"))


def angles(planted: Planted) -> np.ndarray:
    """float32 (S, head_dim/2), rows in the graph's order."""
    quads = planted.layout.rotary.reshape(planted.layout.num_tokens, -1)
    reading = np.empty_like(quads)
    reading[planted.layout.window_index] = quads
    return reading[planted.layout.order].reshape(planted.layout.num_patches, -1)


def set_angles(planted: Planted, values: np.ndarray) -> None:
    cos, sin = np.cos(values.astype(np.float64)), np.sin(values.astype(np.float64))
    planted.replace("rotary.cos", cos)
    planted.replace("rotary.sin", np.stack([-sin, sin], axis=1))


def angles_in_float16(planted: Planted) -> None:
    set_angles(planted, angles(planted).astype(np.float16))


def rope_base_10001(planted: Planted) -> None:
    right = angles(planted)
    exponents = np.tile(np.arange(right.shape[1] // 2) / (right.shape[1] // 2), 2)
    set_angles(planted, right * (ROPE_THETA / (ROPE_THETA + 1)) ** exponents)


def tanh_for_erf(planted: Planted) -> None:
    """GELU's approximation, of s = x/√2: tanh(√(2/π)·(x + 0.044715·x³))."""
    graph, nodes = planted.model.graph, list(planted.model.graph.node)
    place, erf = next((number, node) for number, node in enumerate(nodes) if node.op_type == "Erf")
    (scaled,), (output,) = erf.input, erf.output
    for name, value in (("linear", 2 / np.sqrt(np.pi)), ("cubic", 0.044715 * 4 / np.sqrt(np.pi))):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    steps = (
        ("Mul", [scaled, scaled], "square"),
        ("Mul", ["square", "cubic"], "scaled_square"),
        ("Add", ["scaled_square", "linear"], "factor"),
        ("Mul", ["factor", scaled], "argument"),
        ("Tanh", ["argument"], output),
    )
    nodes[place : place + 1] = [helper.make_node(op, inputs, [name], name=name) for op, inputs, name in steps]
    del graph.node[:]
    graph.node.extend(nodes)


def two_heads_swapped(planted: Planted) -> None:
    width = planted.checkpoint.config.vision.head_dim
    for kind in ("weight", "bias"):
        name = f"blocks.{planted.block}.attn.qkv.k.{kind}"
        value = planted.read(name)
        value[: 2 * width] = np.concatenate([value[width : 2 * width], value[:width]])
        planted.replace(name, value)


def a_window_border_moved(planted: Planted) -> None:
    """The last quad of the first window and the first quad of the second are in each other's window."""
    layout, unit = planted.layout, planted.layout.num_patches // planted.layout.num_tokens
    border = layout.groups[0].size // unit
    order = np.arange(layout.num_tokens)
    order[[border - 1, border]] = order[[border, border - 1]]
    planted.replace("window_order", layout.order[order])
    planted.replace("reading_order", np.argsort(layout.order[order]))
    set_angles(planted, angles(planted).reshape(layout.num_tokens, -1)[order].reshape(layout.num_patches, -1))


def the_last_token_duplicated(planted: Planted) -> None:
    order = planted.read("reading_order")
    order[-1] = order[-2]
    planted.replace("reading_order", order)


def mean_and_std_rounded(planted: Planted) -> None:
    config = planted.checkpoint.config.vision
    kernel = planted.checkpoint.read("visual.patch_embed.proj.weight").astype(np.float64)
    mean, std = (np.round(values, 3).reshape(1, -1, 1, 1, 1) for values in (MEAN, STD))
    rows = (kernel / (255 * std)).transpose(0, 2, 3, 4, 1).reshape(config.hidden_size, -1)
    planted.replace("patch_embed.proj.weight", rows)
    planted.replace("patch_embed.proj.bias", -(kernel * (mean / std)).sum(axis=(1, 2, 3, 4)))


def one_block_skipped(planted: Planted) -> None:
    """The block that changes its input least: its output is its input."""
    graph, prefix = planted.model.graph, f"blocks.{planted.idle_block}."
    inside = [node for node in graph.node if node.name.startswith(prefix)]
    output = inside[-1].output[0]
    entered = next(name for name in planted.node(f"{prefix}add").input if not name.startswith(prefix))
    kept, needed = [], {value.name for value in graph.output}
    for node in reversed(graph.node):  # what nobody needs any more goes
        for number, name in enumerate(node.input):
            if name == output:
                node.input[number] = entered
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))


SUBTLE: dict[str, Callable[[Planted], None]] = {
    "epsilon ×10": epsilon_times_ten,
    "epsilon ×10 in the merger alone": epsilon_of_the_merger,
    "one patch's angles off by 1e-4": one_angle_moved,
    "one weight off by 1 %": one_weight_off_by_one_percent,
    "a bias missing in one block": a_bias_missing,
    "weights in float16": weights_in_float16,
    "folded weights in bfloat16": folded_weights_in_bfloat16,
    "angles in float16": angles_in_float16,
    "rope base 10001": rope_base_10001,
    "tanh for erf in GELU": tanh_for_erf,
    "two heads swapped in one block": two_heads_swapped,
    "a window's border moved by one quad": a_window_border_moved,
    "the last token duplicated": the_last_token_duplicated,
    "mean and std rounded to three digits": mean_and_std_rounded,
    "one block skipped": one_block_skipped,
}


def idle_block(judge: Judge) -> int:
    """The block that changes its input least, in the clip's first step: skipped, it would be missed least."""
    tokens = np.arange(judge.oracle.shape[1])
    states = list(judge.reference.stages(judge.pixels[:1], judge.grid, exact=False, tokens=tokens).values())
    changes = [np.linalg.norm(after - before) / np.linalg.norm(before) for before, after in pairwise(states)]
    return int(np.argmin(changes))
