"""PyTorch -> ONNX without weights in memory: trace on the meta device, lower, refer to weights that are streamed.

`torch.fx` writes down the tower's forward as it is, module paths included; each recorded call is then run on
the meta device (shapes only) and lowered to ONNX by the table of `lowering.py`. Nodes and tensors are named
after the modules, so that mixed-precision settings can select them: `blocks.7.attn.qkv.q`.

Weights go into one external data file; what depends on the size (rotary angles, permutations) stays inside the
graph file. Graphs of several sizes thus share one data file.
"""

from typing import Any

import onnx
import torch
from torch import fx, nn

from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.external_data import DataFile
from qwen_vl_axera.graph.lowering import Lowering, Tracer
from qwen_vl_axera.graph.operators import lint
from qwen_vl_axera.towers import Tower


def meta_module(tower: Tower, config: Any, layout: Any, spec: GraphSpec) -> nn.Module:
    """The module of a tower whose parameters have shapes but no memory; its few constants are real."""
    with torch.device("meta"):
        module = tower.module(config, layout, spec)
    return module.eval()


def place_weights(tower: Tower, config: Any, module: nn.Module, spec: GraphSpec, location: str) -> DataFile:
    """Where a module's parameters will lie: in the weight table's order, in the module's shapes.

    Raises:
        ValueError: module and weight table do not name the same parameters.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    names = tower.parameters(config, spec.input)
    if different := shapes.keys() ^ set(names):
        raise ValueError(f"the module's parameters and the weight table differ: {sorted(different)}")
    return DataFile(location, {name: shapes[name] for name in names})


def trace(module: nn.Module, data: DataFile, spec: GraphSpec, metadata: dict[str, Any]) -> onnx.ModelProto:
    """The ONNX model of a tower's module; weights are references into `data`.

    Args:
        module: from `meta_module`.
        data: from `place_weights`.
        spec: what the module was made for.
        metadata: written as `qwen_vl_axera.*` properties, values as JSON.

    Returns:
        A model whose input is `hidden_states` and whose outputs are the tower's, linted.

    Raises:
        InputError: the linter found something that Pulsar2 would refuse.
    """
    lowering = Lowering(fx.GraphModule(module, Tracer().trace(module)), data, spec.opset, module.config.output_names)
    with torch.no_grad():
        lowering.run(module.example())
    model = lowering.model(f"{spec.tower}_vision", metadata)
    if problems := lint(model):
        raise InputError("the graph would not compile: " + "; ".join(problems[:5]))
    return model
