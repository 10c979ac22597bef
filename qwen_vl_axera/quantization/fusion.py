"""The compiler's fusions that matter to quantisation: what lies inside one operator is not quantised.

RMSNorm was seen to be fused in one model and not in another, SiLU always, GELU from this chain never reported. So
each is an assumption that can be switched off.
"""

from collections.abc import Iterable, Iterator, Sequence

import onnx

NORM, SILU, GELU = "RMSNorm", "Silu", "Gelu"
FUSIONS = {"norm": (NORM,), "activation": (SILU, GELU)}  # what can be switched off together

# A pattern: operator types in the order in which the exporter writes them, each node but the first reading what an
# earlier one of the chain made. Only the last node's output is read from outside.
PATTERNS: dict[str, tuple[str, ...]] = {
    NORM: ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"),
    GELU: ("Mul", "Erf", "Mul", "Add", "Mul"),
    SILU: ("Sigmoid", "Mul"),
}


def fuse_nodes(
    nodes: Sequence[onnx.NodeProto], constants: Iterable[str], kinds: set[str]
) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """The graph's nodes in order, those of a fusion together.

    Args:
        nodes: of the graph, in order.
        constants: names of the initializers.
        kinds: which of PATTERNS to look for.

    Yields:
        Operator type, and the ONNX nodes that it is made of.
    """
    constants = set(constants)
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    position = 0
    while position < len(nodes):
        for kind in (kind for kind in PATTERNS if kind in kinds):
            chain = nodes[position : position + len(PATTERNS[kind])]
            if is_chain(chain, PATTERNS[kind], constants, readers):
                yield kind, list(chain)
                position += len(chain)
                break
        else:
            yield nodes[position].op_type, [nodes[position]]
            position += 1


def is_chain(
    chain: Sequence[onnx.NodeProto], pattern: Sequence[str], constants: set[str], readers: dict[str, int]
) -> bool:
    """Whether adjacent nodes are one function of one tensor."""
    if [node.op_type for node in chain] != list(pattern):
        return False
    made = [name for node in chain for name in node.output]
    inside = sum(node.input[position] in made for node in chain for position in range(len(node.input)))
    read_by_all = sum(readers.get(name, 0) for name in made[:-1])
    outside = {name for node in chain for name in node.input if name not in made and name not in constants}
    linked = all(any(name in made for name in node.input) for node in chain[1:])
    return linked and len(outside) == 1 and inside == read_by_all
