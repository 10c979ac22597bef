"""Which precision each node really got: the configuration's wishes against `quant/quant_axmodel.json` of a build.

The compiler ignores a selector that matches nothing without a word; this file is the only proof that one worked.
Its form is that of the manual's excerpt and of PPQ, which the compiler builds on: `configs` holds for every node and
tensor a `bit_width`, a `policy` and a `state`; `dispatchings` holds every node once. Inferences: a tensor quantised
per channel or wider than 16 bits is a weight or a bias; a node runs at 16 bits when one of its activations does.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from qwen_vl_axera.compiler.schema import BuildConfig, LayerConfig
from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json
from qwen_vl_axera.graph.operators import PASSIVE

QUANTIZED = Path("quant") / "quant_axmodel.json"  # below the build's output directory
FUSED = re.compile(r"op_\d+:")  # names that the compiler's own passes give
ACTIVATIONS = (8, 16)  # bits
BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16}
SHOWN = 4  # names in a message
NAMED = "layers"  # begins the words for an entry that names its layers


@dataclass(frozen=True)
class Wish:
    """One entry of `quant.layer_configs`, and what became of it.

    Attributes:
        selector: what it selects by, in words.
        data_type: what it asks for.
        matched: computing nodes that it selects and that are in the built model under their names.
        honoured: those of them that got it.
        missing: names that it gives and that the built model does not have.
        others: a few of the nodes that got something else.
    """

    selector: str
    data_type: str
    matched: int
    honoured: int
    missing: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "failed" where it had no effect at all, or not on each layer that it names; "warning" where in part."""
        named = self.selector.startswith(NAMED)
        if not self.matched or not self.honoured or self.missing or (named and self.others):
            return "failed"
        return "ok" if self.honoured == self.matched else "warning"

    @property
    def detail(self) -> str:
        if self.missing:
            return f"not in the built model: {_some(self.missing)}; names change in the compiler's fusions"
        if not self.matched:
            return "matched nothing that can be seen: the compiler ignores such an entry without a word"
        got = f"{self.honoured} of {self.matched} nodes got it"
        return got + (f"; not {_some(self.others)}" if self.others else "")


def read_quantized(path: Path) -> dict[str, set[int]]:
    """A built model's nodes and the bit widths of their activations (empty where none are quantised).

    Raises:
        InputError: the file is missing or of another form.
    """
    raw = read_json(path)
    configs = raw.get("configs", {}) if isinstance(raw, dict) else None
    dispatchings = raw.get("dispatchings") if isinstance(raw, dict) else None
    if not isinstance(dispatchings, dict) or not isinstance(configs, dict):
        raise InputError(f"{path}: expected the nodes under `dispatchings`: another version of the compiler?")
    nodes: dict[str, set[int]] = {name: set() for name in (*dispatchings, *configs)}
    for name, tensors in configs.items():
        for entry in tensors.values() if isinstance(tensors, dict) else ():
            nodes[name] |= _activation_bits(entry)
    return nodes


def _activation_bits(entry: Any) -> set[int]:
    if not isinstance(entry, dict) or entry.get("state") in ("FP32", "PASSIVE"):
        return set()
    policy, bits = entry.get("policy"), entry.get("bit_width")
    per_channel = isinstance(policy, dict) and policy.get("PER_CHANNEL")
    return {bits} if bits in ACTIVATIONS and not per_channel else set()


def wishes(config: BuildConfig, graph: onnx.GraphProto, nodes: dict[str, set[int]]) -> list[Wish]:
    """What became of each entry of `quant.layer_configs`.

    An entry is judged by the nodes that no stronger entry selects, too: a layer wins over an operator type, that
    over the part between tensors; among equals the later one is taken to win.

    Args:
        config: of the build.
        graph: that was built.
        nodes: from `read_quantized`.
    """
    entries = config.quant.layer_configs
    chosen = [_selected(entry, graph) for entry in entries]
    winner: dict[str, int] = {}
    for number in sorted(range(len(entries)), key=lambda number: (_strength(entries[number]), number)):
        winner |= dict.fromkeys(chosen[number], number)
    computing = {node.name for node in graph.node if node.op_type not in PASSIVE}
    result = []
    for number, entry in enumerate(entries):
        won = [name for name in chosen[number] if winner[name] == number and name in computing]
        seen = [name for name in won if nodes.get(name)]
        others = [name for name in seen if not _has(nodes[name], entry.data_type)]
        given = [*entry.layer_names, *([entry.layer_name] if entry.layer_name else [])]
        missing = tuple(name for name in given if name not in nodes)
        honoured = len(seen) - len(others)
        result.append(Wish(_words(entry), entry.data_type, len(seen), honoured, missing, tuple(others[:SHOWN])))
    return result


def _has(bits: set[int], data_type: str) -> bool:
    # FP32 leaves no quantised activation: such a node is not among those seen at all.
    return BITS.get(data_type) == (max(bits) if data_type.endswith("16") else min(bits))


def _strength(entry: LayerConfig) -> int:
    return 2 if entry.layer_name or entry.layer_names else 1 if entry.op_type or entry.op_types else 0


def _words(entry: LayerConfig) -> str:
    names = entry.layer_names or ([entry.layer_name] if entry.layer_name else [])
    types = entry.op_types or ([entry.op_type] if entry.op_type else [])
    if names:
        return f"{NAMED} {_some(names)}"
    if types:
        return f"operators {_some(types)}"
    return f"from {_some(entry.start_tensor_names)} to {_some(entry.end_tensor_names)}"


def _selected(entry: LayerConfig, graph: onnx.GraphProto) -> set[str]:
    """The names of the nodes that an entry means."""
    if _strength(entry) == 2:
        return {entry.layer_name, *entry.layer_names} & {node.name for node in graph.node}
    if _strength(entry) == 1:
        types = {entry.op_type, *entry.op_types}
        return {node.name for node in graph.node if node.op_type in types}
    return _between(graph, entry.start_tensor_names, entry.end_tensor_names)


def _between(graph: onnx.GraphProto, starts: Iterable[str], ends: Iterable[str]) -> set[str]:
    """The nodes on a way from one of the first tensors to one of the second; DEFAULT is the graph's own end."""
    after = {INPUT_NAME if name == "DEFAULT" else name for name in starts}
    before = {graph.output[0].name if name == "DEFAULT" else name for name in ends}
    reached, leading = set(), set()
    for node in graph.node:  # in the order of computation
        if after.intersection(node.input):
            after.update(node.output)
            reached.add(node.name)
    for node in reversed(graph.node):
        if before.intersection(node.output):
            before.update(node.input)
            leading.add(node.name)
    return reached & leading


def precision_report(config: BuildConfig, graph: onnx.GraphProto, path: Path) -> dict[str, Any]:
    """What a build did with the precision asked for, for `probe.json` and `axmodel_fidelity.json`.

    Args:
        config: of the build.
        graph: that was built.
        path: its `quant_axmodel.json`.

    Returns:
        `passed`, `kept` and `nodes` (how many of the graph's nodes kept their names), `fused` (the compiler's own
        names and how often), `bits` (operator type -> bit width -> nodes) and `wishes`.

    Raises:
        InputError: the file is of another form.
    """
    nodes = read_quantized(path)
    types = {node.name: node.op_type for node in graph.node}
    bits: dict[str, dict[str, int]] = {}
    fused: dict[str, int] = {}
    for name, widths in sorted(nodes.items()):
        kind = types.get(name) or FUSED.sub("", name)
        if name not in types:
            fused[kind] = fused.get(kind, 0) + 1
        width = "/".join(map(str, sorted(widths))) or "none"
        row = bits.setdefault(kind, {})
        row[width] = row.get(width, 0) + 1
    found = wishes(config, graph, nodes)
    return {
        "passed": all(wish.status != "failed" for wish in found),
        "kept": len(types.keys() & nodes.keys()),
        "nodes": len(types),
        "fused": fused,
        "bits": bits,
        "wishes": [
            asdict(wish)
            | {"missing": list(wish.missing), "others": list(wish.others), "status": wish.status, "detail": wish.detail}
            for wish in found
        ],
    }


def precision_lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal, one line an entry."""
    marks = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}
    first = f"{report['kept']} of {report['nodes']} nodes kept their names"
    rows = [f"{marks[w['status']]:<8}{w['data_type']:<5}{w['selector']}: {w['detail']}" for w in report["wishes"]]
    return [first, *rows]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
