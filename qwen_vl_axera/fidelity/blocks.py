"""Where an error starts: a graph's hidden states after each block against the exact ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.fidelity.metrics import rms
from qwen_vl_axera.fidelity.record import THRESHOLDS
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.fidelity.truth import ratio
from qwen_vl_axera.graph.files import load_graph

TOKENS = 256  # the worst ones are looked at: what 1288x1288 would need for all of them is gigabytes


def first_wrong_stage(
    path: Path, reference: Any, layout: Any, patches: np.ndarray, grid: tuple[int, int], token_errors: np.ndarray
) -> str | None:
    """The first part of a graph whose error transformers' own rounding does not explain.

    Args:
        path: the graph.
        reference: transformers' tower.
        layout: of the graph's size.
        patches: one step, uint8 (S, 392, 3).
        grid: its rows and columns of patches.
        token_errors: float (N,), of the step's tokens: the worst of them are followed.

    Returns:
        "the patch embedding", "block 5", "the merger"; None where the graph's own names are not found.
    """
    tokens = np.sort(np.argsort(-token_errors)[:TOKENS])
    exact = reference.stages(patches[None], grid, exact=True, tokens=tokens)
    floor = reference.stages(patches[None], grid, exact=False, tokens=tokens)
    found = graph_stages(path, list(exact), layout, patches, tokens)
    if found is None:
        return None
    for name, states in exact.items():
        errors = rms(found[name] - states), rms(floor[name] - states)
        if not np.isfinite(errors[0]) or ratio(*map(np.array, errors)) > THRESHOLDS.typical_ratio:
            return "the patch embedding" if name == "patch_embed" else name.replace("blocks.", "block ")
    return "the merger"


def graph_stages(
    path: Path, names: list[str], layout: Any, patches: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray] | None:
    """What a graph makes of one step after each stage: name -> float32 (N, 4, hidden) of the tokens asked for.

    Args:
        path: the graph; run again with these tensors as further outputs.
        names: stages are what the modules of these names made last.
        layout: of the graph's size.
        patches: uint8 (S, 392, 3).
        tokens: int (N,), in reading order.
    """
    model = load_graph(path)
    last = {name: node.output[0] for node in model.graph.node for name in names if node.name.startswith(f"{name}.")}
    if len(last) < len(names):
        return None
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in last.values() if name not in present)
    tower = OnnxTower(path, model=model)
    states = tower.session.run([last[name] for name in names], {INPUT_NAME: tower.graph_input(patches)})
    rows = layout.reverse[tokens]  # of these tokens in the graph's order
    return {
        name: state.reshape(len(layout.order), -1, state.shape[-1])[rows]
        for name, state in zip(names, states, strict=True)
    }
