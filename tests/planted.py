"""Classic conversion mistakes, each planted into a good graph, its weights or its input.

A mistake is a function that takes a `Case` and gives the features that a converter with that mistake would
have made. `tests/fidelity/test_planted_mistakes.py` shows that each is caught.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from preprocess import normalize, to_graph_input
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig
from qwen_vl_axera.towers.qwen2_5_vl.layout import Layout


@dataclass(frozen=True)
class Case:
    """One clip and the graphs of one size.

    Attributes:
        pixels: uint8 (T, S, 392, 3).
        pixels_graph, normalized_graph, dense_graph: exported with `--input` and `--window-mode` so named.
        layout: of the size.
        config: of the tower.
    """

    pixels: np.ndarray
    pixels_graph: Path
    normalized_graph: Path
    dense_graph: Path
    layout: Layout
    config: VisionConfig

    def run(self, model: onnx.ModelProto, inputs: list[np.ndarray] | None = None) -> np.ndarray:
        """Features of all steps, float32 (T·S/4, out_hidden); `inputs` replaces the ordinary ones."""
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        inputs = inputs if inputs is not None else [to_graph_input(step) for step in self.pixels]
        return np.concatenate([session.run(None, {"hidden_states": given})[0] for given in inputs])

    def run_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return self.run(onnx.load(self.pixels_graph), [to_graph_input(step) for step in pixels])

    def patches(self) -> np.ndarray:
        """The pixels with their axes apart: (T, S, 2, 14, 14, 3)."""
        size = self.config.patch_size
        return self.pixels.reshape(*self.pixels.shape[:2], self.config.temporal_patch_size, size, size, 3)


def nothing(case: Case) -> np.ndarray:
    """No mistake: the gate must let this pass."""
    return case.run_pixels(case.pixels)


def windows_not_reordered(case: Case) -> np.ndarray:
    model = onnx.load(case.pixels_graph)
    identity = np.arange(case.layout.num_tokens)
    for name in ("window_order", "reading_order"):
        replace(model, name, identity)
    for name in ("rotary.cos", "rotary.sin"):
        quads = constant(model, name).reshape(case.layout.num_tokens, case.config.merge_unit, -1)
        replace(model, name, quads[case.layout.reverse].reshape(constant(model, name).shape))
    return case.run(model)


def reverse_order_not_undone(case: Case) -> np.ndarray:
    model = onnx.load(case.pixels_graph)
    replace(model, "reading_order", np.arange(case.layout.num_tokens))
    return case.run(model)


def red_and_blue_swapped(case: Case) -> np.ndarray:
    return case.run_pixels(case.pixels[..., ::-1])


def normalised_twice(case: Case) -> np.ndarray:
    return case.run(onnx.load(case.pixels_graph), [normalize(step) for step in case.pixels])


def not_normalised(case: Case) -> np.ndarray:
    return case.run(onnx.load(case.normalized_graph))


def patch_rows_transposed(case: Case) -> np.ndarray:
    return case.run_pixels(case.patches().swapaxes(3, 4).reshape(case.pixels.shape))


def temporal_slots_swapped(case: Case) -> np.ndarray:
    return case.run_pixels(case.patches()[:, :, ::-1].reshape(case.pixels.shape))


def frames_reversed(case: Case) -> np.ndarray:
    return case.run_pixels(case.patches()[::-1, :, ::-1].reshape(case.pixels.shape))


def rotary_axes_swapped(case: Case) -> np.ndarray:
    model = onnx.load(case.pixels_graph)
    for name in ("rotary.cos", "rotary.sin"):
        rows, columns = np.split(constant(model, name), 2, axis=-1)
        replace(model, name, np.concatenate([columns, rows], -1))
    return case.run(model)


def windows_see_each_other(case: Case) -> np.ndarray:
    model = onnx.load(case.dense_graph)
    replace(model, "window_mask", np.zeros_like(constant(model, "window_mask")))
    return case.run(model)


def last_frames_dropped(case: Case) -> np.ndarray:
    """An odd last frame thrown away instead of repeated: the clip has one step less."""
    return case.run_pixels(case.pixels[:-1])


def float16_overflow(case: Case) -> np.ndarray:
    """One block's MLP in float16 where its activations leave the range, as massive activations do."""
    model = onnx.load(case.pixels_graph)
    block = f"blocks.{case.config.depth - 1}.mlp"
    scale = np.float32(1e6)
    replace(model, f"{block}.up_proj.weight", constant(model, f"{block}.up_proj.weight") * scale)
    replace(model, f"{block}.up_proj.bias", constant(model, f"{block}.up_proj.bias") * scale)
    replace(model, f"{block}.down_proj.weight", constant(model, f"{block}.down_proj.weight") / scale)
    down = next(node for node in model.graph.node if node.name == f"{block}.down_proj")
    half = helper.make_node("Cast", [down.input[0]], ["half"], to=TensorProto.FLOAT16)
    whole = helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT)
    place = list(model.graph.node).index(down)
    down.input[0] = "whole"
    model.graph.node.insert(place, whole)
    model.graph.node.insert(place, half)
    return case.run(model)


MISTAKES: dict[str, Callable[[Case], np.ndarray]] = {
    "windows not reordered": windows_not_reordered,
    "reverse order not undone": reverse_order_not_undone,
    "red and blue swapped": red_and_blue_swapped,
    "normalised twice": normalised_twice,
    "not normalised": not_normalised,
    "patch rows transposed": patch_rows_transposed,
    "temporal slots swapped": temporal_slots_swapped,
    "frames reversed": frames_reversed,
    "rotary axes swapped": rotary_axes_swapped,
    "windows see each other": windows_see_each_other,
    "last frames dropped": last_frames_dropped,
    "float16 overflow": float16_overflow,
}


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def replace(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    if tuple(tensor.dims) != value.shape:
        raise ValueError(f"{name} has the shape {list(tensor.dims)}, not {list(value.shape)}")
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(constant(model, name).dtype)), name))
