"""The part of a build configuration that a probe can hold, and the same recipe written with names."""

import re
from collections.abc import Iterable
from typing import Any

import onnx

BLOCK = re.compile(r"blocks\.(\d{1,6})\.")
FEW = 4  # blocks that a probe holds for the sake of a recipe
LISTS = ("layer_names", "op_types", "start_tensor_names", "end_tensor_names")


def named_blocks(configs: Iterable[dict[str, Any]], depth: int) -> tuple[int, ...]:
    """The blocks that recipes name, the first of them where they are many."""
    names = (name for config in configs for entry in _entries(config) for name in _names(entry))
    numbers = {int(found[1]) for name in names if (found := BLOCK.match(name))}
    return tuple(sorted(number for number in numbers if number < depth)[:FEW])


def held(config: dict[str, Any], graph: onnx.GraphProto) -> tuple[dict[str, Any], list[str]]:
    """A configuration without the layers and tensors that a graph does not have, and those, in its order."""
    known = {node.name for node in graph.node} | {name for node in graph.node for name in node.output}
    known |= {"DEFAULT", *(value.name for value in graph.input)}
    entries, left_out = [], []
    for entry in _entries(config):
        absent = [name for name in _names(entry) if name not in known]
        left_out += absent
        kept = {
            key: [name for name in value if key == "op_types" or name in known] if key in LISTS else value
            for key, value in entry.items()
        }
        if entry.get("layer_name") not in absent and all(kept[key] for key in LISTS if entry.get(key)):
            entries.append(kept)
    return config | {"quant": config["quant"] | {"layer_configs": entries}}, left_out


def by_names(config: dict[str, Any], graph: onnx.GraphProto) -> dict[str, Any] | None:
    """A configuration that names the nodes where it selected operator types; None where it selects none."""
    entries, named = [], {name for entry in _entries(config) for name in _names(entry)}
    for entry in _entries(config):
        types = [*entry.get("op_types", []), *filter(None, [entry.get("op_type")])]
        if not types:
            entries.append(entry)
            continue
        names = [node.name for node in graph.node if node.op_type in types and node.name not in named]
        rest = {key: value for key, value in entry.items() if key not in ("op_types", "op_type")}
        entries += [rest | {"layer_names": names}] if names else []
    changed = config | {"quant": config["quant"] | {"layer_configs": entries}}
    return changed if entries != _entries(config) else None


def _entries(config: dict[str, Any]) -> list[dict[str, Any]]:
    return config["quant"].get("layer_configs", [])


def _names(entry: dict[str, Any]) -> list[str]:
    """The layers and tensors that an entry names."""
    lists = [name for key in LISTS if key != "op_types" for name in entry.get(key, [])]
    return [*lists, *filter(None, [entry.get("layer_name")])]
