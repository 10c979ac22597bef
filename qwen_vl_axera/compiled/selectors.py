"""What became of each entry of `quant.layer_configs`: judged by what the selected nodes really read.

The compiler ignores a selector that matches nothing without a word. A node has the width of the activations that it
reads, on edges that exist; constants, weights and what it writes say nothing of it (that becomes the next node's).
"""

from collections.abc import Iterable

import onnx

from qwen_vl_axera.compiled.edges import Edges
from qwen_vl_axera.compiled.quantized import ACTIVE, FLOAT, Quantized
from qwen_vl_axera.compiled.record import Selector
from qwen_vl_axera.compiler.schema import BuildConfig, LayerConfig
from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.graph.operators import PASSIVE

BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, FLOAT: 32}
SHOWN = 4  # names in a message


def read_widths(
    node: onnx.NodeProto, quantized: Quantized, edges: Edges | None, constants: frozenset[str]
) -> frozenset[int]:
    """The widths in which the built model's node of this name reads its activations; empty: not known.

    Args:
        node: of the graph that was built.
        quantized: of the build.
        edges: of the build, where they are known.
        constants: initializers of the graph.
    """
    entries = {
        tensor: entry.bits
        for tensor, entry in quantized.operators.get(node.name, {}).items()
        if entry.state in (*ACTIVE, FLOAT) and tensor not in constants
    }
    if edges is None:  # the tensors may have other names than ours: those that it doesn't write are what it reads
        written = entries.keys() & set(node.output)
        read = {tensor for tensor in entries if written and tensor not in written} or entries.keys() & set(node.input)
        return frozenset(entries[tensor] for tensor in read)
    reads = edges.reads.get(node.name, frozenset(node.input) & edges.tensors)
    # Behind a border a node reads a tensor of another name than that of its entry: the element type tells.
    known = {tensor: edges.widths.get(tensor, entries.get(tensor)) for tensor in reads}
    return frozenset(bits for bits in known.values() if bits)


def judge_selectors(
    config: BuildConfig, graph: onnx.GraphProto, names: Iterable[str], widths: dict[str, frozenset[int]]
) -> list[Selector]:
    """What became of the entries.

    Of several entries that select a node the strongest counts: a layer wins over an operator type, that over the part
    between tensors; among equals the later one is taken to win.

    Args:
        config: of the build.
        graph: that was built.
        names: of the built model's operators.
        widths: node -> what it reads, from `read_widths`.
    """
    entries, names = config.quant.layer_configs, set(names)
    chosen = [_selected(entry, graph) for entry in entries]
    winner: dict[str, int] = {}
    for number in sorted(range(len(entries)), key=lambda number: (_strength(entries[number]), number)):
        winner |= dict.fromkeys(chosen[number], number)
    computing = [node.name for node in graph.node if node.op_type not in PASSIVE]
    result = []
    for number, entry in enumerate(entries):
        won = [name for name in computing if winner.get(name) == number]
        seen = [name for name in won if widths.get(name)]
        others = [name for name in seen if widths[name] != {BITS.get(entry.data_type)}]
        given = [name for name in (entry.layer_name, *entry.layer_names) if name and name not in names]
        counts = len(won), len(seen), len(seen) - len(others)
        by_name = _strength(entry) == 2
        result.append(Selector(_words(entry), by_name, entry.data_type, *counts, given[:SHOWN], others[:SHOWN]))
    return result


def _strength(entry: LayerConfig) -> int:
    return 2 if entry.layer_name or entry.layer_names else 1 if entry.op_type or entry.op_types else 0


def _words(entry: LayerConfig) -> str:
    names = entry.layer_names or [entry.layer_name]
    types = entry.op_types or [entry.op_type]
    words = {2: f"layers {_some(names)}", 1: f"operators {_some(types)}"}
    between = f"from {_some(entry.start_tensor_names)} to {_some(entry.end_tensor_names)}"
    return words.get(_strength(entry), between)


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


def _some(names: Iterable[str | None]) -> str:
    names = [name for name in names if name]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
