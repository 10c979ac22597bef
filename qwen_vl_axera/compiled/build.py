"""All that a build's output directory says: each part is known, with a verdict, or is said not to be.

Not understanding a file is no failure. What fails has evidence of a wrong build: more than one subgraph, which a card
refuses to load, or nodes known to have another width than was asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import onnx

from qwen_vl_axera.compiled.edges import EDGES, Edges, read_edges
from qwen_vl_axera.compiled.log import LOG, Log, read_log
from qwen_vl_axera.compiled.quantized import CONSTANT, QUANTIZED, Quantized, read_quantized
from qwen_vl_axera.compiled.record import Build, Finding, Fusion, Profile
from qwen_vl_axera.compiled.selectors import judge_selectors, read_widths
from qwen_vl_axera.compiled.table import TABLE, read_table
from qwen_vl_axera.compiled.trace import FUSED, TRACES, read_trace
from qwen_vl_axera.compiler.schema import BuildConfig
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.operators import statistics
from qwen_vl_axera.quantization.fusion import PATTERNS, fuse_nodes

T = TypeVar("T")
Widths = dict[str, frozenset[int]]  # node -> what it reads
MACS_RATIO = 1.5  # of the compiler's count and ours; beyond, it may be a build of another graph
CONSTANT_READERS = ("Add", "Sub", "Mul", "Div", "Pow")
SHOWN = 6  # entries in a message


def read_build(directory: Path, config: BuildConfig, model: onnx.ModelProto) -> Build:
    """Reads whatever a build left.

    Args:
        directory: its output directory.
        config: its configuration.
        model: the graph that was built, or its uint8 twin: the names are the same.
    """
    graph, directory, findings = model.graph, Path(directory), []

    def part(name: str, place: str | Path, read: Callable[..., T], *arguments: object) -> T | None:
        try:
            if found := sorted(directory.glob(str(place))):
                return read(found, *arguments) if "*" in str(place) else read(found[0])
            findings.append(Finding(name, "not known", f"the build left no {place}"))
        except (InputError, OSError) as error:
            findings.append(Finding(name, "not known", str(error)))
        return None

    quantized = part("precision", QUANTIZED, read_quantized)
    edges = part("edges", EDGES, read_edges)
    log = part("log", LOG, read_log) or Log()
    kinds = {name: node.op_type for node in graph.node for name in (*node.output, node.name)}
    profile = part("profile", TRACES, _profile, dict(edges.kinds if edges else {}) | kinds)
    lowest = part("layer by layer", TABLE, read_table)
    findings += [*_of_log(log, statistics(model)["multiplications"])]
    if lowest:
        text = f"{lowest.title}: lowest cosine {lowest.cosine:.4f} of {lowest.rows}, at {lowest.operator}"
        findings.append(Finding("layer by layer", "ok", f"{text}; says nothing of the whole"))
    if profile:
        most = list(profile.kinds.items())[:SHOWN]
        total = sum(profile.kinds.values())
        text = ", ".join(f"{kind} {cycles / max(total, 1):.0%}" for kind, cycles in most)
        findings.append(Finding("profile", "ok", f"{profile.span:,} cycles; busy: {text}"))

    constants = frozenset(tensor.name for tensor in graph.initializer)
    names = quantized.names if quantized else frozenset()
    kept = [node for node in graph.node if node.name in names]
    widths = {node.name: read_widths(node, quantized, edges, constants) for node in kept}
    if quantized:
        findings += _of_quantized(quantized, edges, len(kept), len(graph.node))
    fused = Counter(FUSED.sub(r"\1", name) for name in names if FUSED.match(name))
    by_type: dict[str, Counter[str]] = {}
    for node in kept:
        by_type.setdefault(node.op_type, Counter())[_words(widths[node.name])] += 1
    for name in filter(FUSED.match, edges.reads if edges else ()):
        read = frozenset(edges.widths[tensor] for tensor in edges.reads[name] if tensor in edges.widths)
        by_type.setdefault(FUSED.sub(r"\1", name)[:60], Counter())[_words(read)] += 1
    return Build(
        findings,
        judge_selectors(config, graph, names, widths),
        len(graph.node),
        len(kept),
        {kind: dict(row) for kind, row in sorted(by_type.items())},
        {FUSED.sub(r"\1", name)[:60]: count for name, count in fused.items()},
        dict(_fusions(graph, constants, names, edges)) if kept else {},
        dict(Counter(_constants(kept, widths, quantized))),
        dict(Counter(_splits(kept, widths, quantized))),
        log.selectors or dict(quantized.selectors if quantized else {}),
        dict(log.states),
        log.subgraphs or None,
        log.cycles or None,
        log.macs or None,
        profile,
        lowest,
    )


def _profile(places: list[Path], kinds: dict[str, str]) -> Profile:
    """Those of all subgraphs together: they run one after the other."""
    read = [read_trace(place, kinds) for place in places]
    sums: list[Counter[str]] = [Counter(), Counter()]
    for profile in read:
        sums[0].update(profile.kinds)
        sums[1].update(profile.engines)
    return Profile(sum(profile.span for profile in read), *(dict(of.most_common()) for of in sums))


def _of_log(log: Log, macs: int) -> Iterator[Finding]:
    if log.subgraphs > 1 or log.cpu:
        count = f"{max(log.subgraphs, 1)} subgraphs, {log.cpu} on the processor"
        yield Finding("subgraphs", "failed", f"{count}; expected one on the NPU: a card loads no other")
    elif log.subgraphs:
        yield Finding("subgraphs", "ok", "one, on the NPU")
    if log.cycles:
        yield Finding("cycles", "ok", f"max_cycle {log.cycles:,}")
    if log.macs:
        near = 1 / MACS_RATIO <= log.macs / max(macs, 1) <= MACS_RATIO
        text = f"{log.macs:,} as the compiler counts them, {macs:,} in the graph"
        yield Finding("multiply-accumulates", "ok" if near else "warning", text + ("" if near else ": another graph?"))
    if log.states:
        text = ", ".join(f"{state} {count}" for state, count in log.states.items())
        yield Finding("states of tensors", "ok", text)


def _of_quantized(quantized: Quantized, edges: Edges | None, kept: int, nodes: int) -> Iterator[Finding]:
    if not kept:
        text = f"none of the graph's {nodes} names is in {QUANTIZED.name}, which has {len(quantized.names)}"
        yield Finding("precision", "not known", f"{text}: a build of another graph, or all renamed")
    else:
        yield Finding("precision", "ok", f"{kept} of {nodes} nodes kept their names")
    if quantized.strange:
        yield Finding("precision", "not known", f"{quantized.strange} entries have no known state or width")
    real = (
        (tensor, entry)
        for tensors in quantized.operators.values()
        for tensor, entry in tensors.items()
        if edges is None or tensor in edges.tensors
    )
    if unsound := sorted({tensor for tensor, entry in real if not entry.sound}):
        text = f"{len(unsound)} tensors have a scale that is negative or no number: {', '.join(unsound[:SHOWN])}"
        yield Finding("scales", "warning", text)


def _fusions(
    graph: onnx.GraphProto, constants: frozenset[str], names: frozenset[str], edges: Edges | None
) -> Iterator[tuple[str, Fusion]]:
    """Which patterns the compiler made one operator of: the tensors inside are no edges then."""
    found, fused = Counter(), Counter()
    if edges and not edges.tensors & {tensor for node in graph.node for tensor in node.output}:
        edges = None  # tensors have other names there: the operators' tell
    for kind, chain in fuse_nodes(graph.node, constants, set(PATTERNS)):
        if kind in PATTERNS:
            inside = {tensor for node in chain[:-1] for tensor in node.output}
            found[kind] += 1
            fused[kind] += not (edges.tensors & inside if edges else names & {node.name for node in chain[:-1]})
    yield from ((kind, Fusion(count, fused[kind])) for kind, count in found.items())


def _constants(kept: list[onnx.NodeProto], widths: Widths, quantized: Quantized) -> Iterator[str]:
    """In which width the operators of two operands have their constants, where they read activations of 16 bits."""
    for node in kept:
        if node.op_type in CONSTANT_READERS and widths[node.name] == {16}:
            entries = quantized.operators.get(node.name, {})
            stored = (entries[tensor] for tensor in node.input if tensor in entries)
            yield from (str(entry.bits) for entry in stored if entry.state in CONSTANT)


def _splits(kept: list[onnx.NodeProto], widths: Widths, quantized: Quantized) -> Iterator[str]:
    """What each Split reads and writes."""
    for node in kept:
        if node.op_type == "Split":
            found = quantized.operators.get(node.name, {})
            written = frozenset(found[tensor].bits for tensor in node.output if tensor in found)
            yield f"{_words(widths[node.name])} -> {_words(written)}"


def _words(widths: frozenset[int]) -> str:
    return "/".join(map(str, sorted(widths))) or "not known"
