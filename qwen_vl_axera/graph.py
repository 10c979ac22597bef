"""PyTorch -> ONNX without weights in memory: trace on the meta device, lower, stream the weights.

`torch.fx` writes down the tower's forward as it is, module paths included; each recorded call is then run on
the meta device (shapes only) and lowered to ONNX by the table of `lowering.py`. Nodes and tensors are named
after the modules, so that mixed-precision settings can select them: `blocks.7.attn.qkv.q`.

Weights go into one external data file in the order of `weights.weight_table`; what depends on the size
(rotary angles, permutations) stays inside the graph file. Graphs of several sizes thus share one data file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.external_data import INPUT_NAME as INPUT_NAME  # readers of a graph find its names here
from qwen_vl_axera.external_data import METADATA_PREFIX, DataFile
from qwen_vl_axera.external_data import OUTPUT_NAME as OUTPUT_NAME
from qwen_vl_axera.files import atomic_write
from qwen_vl_axera.operators import OPSETS, lint

if TYPE_CHECKING:  # torch takes a second and 500 MB: only tracing pays for it, reading a graph does not
    from qwen_vl_axera.vision import VisionTower


def meta_tower(*args: Any, **kwargs: Any) -> VisionTower:
    """A `VisionTower` whose parameters have shapes but no memory; its few constants are real."""
    import torch

    from qwen_vl_axera.vision import VisionTower

    with torch.device("meta"):
        tower = VisionTower(*args, **kwargs)
    return tower.eval()


def export_graph(tower: VisionTower, data: DataFile, opset: int, metadata: dict[str, Any]) -> onnx.ModelProto:
    """The ONNX model of a tower; weights are references into `data`.

    Args:
        tower: from `meta_tower`.
        data: the external data file.
        opset: 16, 17 or 18.
        metadata: written as `qwen_vl_axera.*` properties, values as JSON.

    Returns:
        A model whose input is `hidden_states` and whose output is `hidden_states_out`, linted.

    Raises:
        InputError: the opset is not supported, or the linter found something that Pulsar2 would refuse.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset}: expected one of {', '.join(map(str, OPSETS))}")
    import torch
    from torch import fx

    from qwen_vl_axera.lowering import Lowering, Tracer

    check_parameters(tower, data)
    tracer = Tracer()
    traced = fx.GraphModule(tower, tracer.trace(tower))
    lowering = Lowering(traced, data, opset)
    patches, slots = tower.layout.num_patches, tower.config.patch_pixels
    if tower.uint8:
        example = torch.empty(1, patches, slots, tower.config.in_channels, dtype=torch.uint8, device="meta")
    else:
        example = torch.empty(1, tower.config.in_channels, patches, slots, device="meta")
    with torch.no_grad():
        lowering.run(example)
    model = lowering.model(metadata)
    problems = lint(model)
    if problems:
        raise InputError("the graph would not compile: " + "; ".join(problems[:5]))
    return model


def check_parameters(tower: VisionTower, data: DataFile) -> None:
    """Holds the tower's parameters against the weights that are written for it.

    Raises:
        ValueError: they differ in a name or a shape: `vision.py` and `weights.py` do not fit together.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}
    different = {name for name, _ in shapes.items() ^ data.shapes.items()}
    if different:
        raise ValueError(f"the tower's parameters and the weight table differ: {sorted(different)}")


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, atomically and with the same bytes for the same model."""
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """What `export_graph` wrote about a model; empty for a foreign one."""
    return {
        entry.key.removeprefix(METADATA_PREFIX): json.loads(entry.value)
        for entry in model.metadata_props
        if entry.key.startswith(METADATA_PREFIX)
    }


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads a graph without its external data.

    Raises:
        InputError: it is missing or no ONNX model.
    """
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise InputError(f"{path} is missing: run export.py first")
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except DecodeError:
        raise InputError(f"{path}: not an ONNX model (truncated?)") from None
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX model (it has no nodes)")
    return model
