"""Parts "steps" and "graph": ONNX Runtime's cost per step, against dense windows and transformers' exporter."""

import os
import statistics
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.measure import AHEAD, Row, ratio, run, worker
from bench.plan import Plan, Size, name_of
from qwen_vl_axera.errors import InputError

# Measured earlier with the vendor's scripts and transformers 5.23 on the same shape of model (3B, float32), on two
# cores; the vendor's are not run here.
CITED_NODES = (("nodes_vendor", "308x308", 1755), ("nodes_transformers", "448x448", 2025))
SAME = 0.99999  # lowest cosine of any token: below it two graphs do not compute the same
RAGGED = (140, 252)  # windows of several sizes
ROUNDS = (3, 9)


def require_peer() -> None:
    """Makes sure that an error of transformers' exporter is its own, and not a package that is missing.

    Raises:
        InputError: transformers is too old to have the exporter, or onnxscript is missing.
    """
    if find_spec("onnxscript") is None or int(version("transformers").split(".")[0]) < 5:
        raise InputError("the comparison needs transformers 5.23 and onnxscript: pip install -r requirements-dev.txt")


def measure(plan: Plan) -> Iterator[Row]:
    """Yields the rows; the cost per size for the plot is in the rows `cost_per_patch`."""
    graphs = export_graphs(plan)
    peers = {} if plan.quick else {size: export_peer(plan, plan.checkpoint, size) for size in plan.peer_sizes}
    compared: dict[Size, dict[str, Any]] = {}
    for size in plan.peer_sizes:
        kinds = {kind: graphs[kind, size] for kind in ("grouped", "dense")}
        if isinstance(peers.get(size), Path):
            kinds["transformers"] = peers[size]
        compared[size] = _latency(plan, kinds)
    for size, figures in compared.items():
        yield from _step_rows(size, figures, peers.get(size))
    if not plan.quick:
        yield _peer_answer(plan)
    yield from _curve(plan, graphs, compared)
    for size, figures in compared.items():
        yield from _graph_rows(size, figures)
    if not plan.quick:
        for label, size_name, nodes in CITED_NODES:
            yield Row("graph", label, {"size": size_name}, value=nodes, unit="nodes", cited=True)


def export_graphs(plan: Plan) -> dict[tuple[str, Size], Path]:
    """Ours of every size, grouped and dense. Both share one data file: it is the same, byte for byte."""
    paths = {}
    name = plan.checkpoint.name
    for kind, wanted in (("grouped", plan.sizes), ("dense", plan.peer_sizes)):
        sizes = list(dict.fromkeys([*wanted, RAGGED]))  # two at least: file names carry the size
        workdir = plan.directory(f"graphs-{kind}")
        flags = [word for size in sizes for word in ("--size", *size)]
        run(["export.py", plan.checkpoint, "video", "--window-mode", kind, *flags, "--workdir", workdir])
        paths |= {(kind, size): workdir / f"{name}_vision_{name_of(size)}.onnx" for size in sizes}
        data = workdir / f"{name}_vision.onnx.data"
        if kind == "dense":
            data.unlink()
            os.link(plan.workdir / "graphs-grouped" / data.name, data)
    return paths


def export_peer(plan: Plan, checkpoint: Path, size: Size) -> Path | str:
    """transformers' graph of a size, or the error with which its exporter ends."""
    directory = plan.workdir / f"transformers-{checkpoint.name}-{name_of(size)}"
    if not (directory / "inputs.npz").is_file():  # it is written last
        done = run(["bench/peers.py", checkpoint, directory, "--size", *size], check=False)
        if done.code:
            lines = done.stderr.strip().splitlines()
            return lines[-1] if lines else f"ended with {done.code}"
    return directory / "model.onnx"


def _latency(plan: Plan, graphs: dict[str, Path], share: float = 1.0) -> dict[str, Any]:
    rounds = (1, 2) if plan.quick else ROUNDS
    named = [f"{name}={path}" for name, path in graphs.items()]
    return worker("latency", *named, "--budget", plan.budget * share, "--rounds", *rounds)


def _step_rows(size: Size, figures: dict[str, Any], peer: Path | str | None) -> Iterator[Row]:
    ours = figures["grouped"]["seconds"]
    for kind in ("dense", "transformers"):
        params = {"size": name_of(size)}
        if kind not in figures:
            if peer is not None:
                yield Row("steps", "step_transformers", params, note=str(peer))
            continue
        other = figures[kind]
        same = other["agreement"]["min_token_cosine"] >= SAME
        yield Row(
            "steps",
            f"step_{kind}",
            params,
            target=AHEAD,
            seconds={"grouped": statistics.median(ours), kind: statistics.median(other["seconds"])},
            note=None if same else _differs(other),
            **ratio(other["seconds"], ours),
        )


def _peer_answer(plan: Plan) -> Row:
    """Whether transformers' exporter is right where windows are cut off; a small tower shows it."""
    checkpoint = plan.small_checkpoint
    params = {"size": name_of(RAGGED)}
    peer = export_peer(plan, checkpoint, RAGGED)
    if isinstance(peer, str):
        return Row("steps", "answer_transformers", params, note=peer)
    workdir = plan.directory("graphs-small")
    run(["export.py", checkpoint, "video", "--size", *RAGGED, "--workdir", workdir])
    figures = _latency(plan, {"grouped": workdir / f"{checkpoint.name}_vision.onnx", "transformers": peer}, share=0.1)
    cosine = figures["transformers"]["agreement"]["min_token_cosine"]
    note = None if cosine >= SAME else "another answer than ours"
    return Row("steps", "answer_transformers", params, value=cosine, unit="cosine", note=note)


def _differs(figures: dict[str, Any]) -> str:
    return f"another answer: lowest cosine of a token {figures['agreement']['min_token_cosine']:.3f}"


def _curve(plan: Plan, graphs: dict, compared: dict[Size, dict[str, Any]]) -> Iterator[Row]:
    """Our cost at all sizes, measured in turn; the others' follows from it and their ratio to ours."""
    own = _latency(plan, {name_of(size): graphs["grouped", size] for size in plan.sizes}, share=3)
    cost = {size: statistics.median(own[name_of(size)]["seconds"]) for size in plan.sizes}
    smallest, largest = plan.sizes[0], plan.sizes[-1]
    patches = {size: own[name_of(size)]["patches"] for size in plan.sizes}
    products = {size: own[name_of(size)]["multiplications"] for size in plan.sizes}
    factor = patches[largest] / patches[smallest]
    yield Row(
        "steps",
        "flatness",
        {
            "size": name_of(largest),
            "other": name_of(smallest),
            "patches": round(factor, 1),
            "arithmetic": round(products[largest] / products[smallest] / factor, 2),
        },
        seconds={name_of(smallest): cost[smallest], name_of(largest): cost[largest]},
        **ratio(own[name_of(largest)]["seconds"], [factor * seconds for seconds in own[name_of(smallest)]["seconds"]]),
    )
    for size in plan.sizes:
        step = {"grouped": cost[size]}
        for kind, figures in compared.get(size, {}).items():
            if kind != "grouped" and figures["agreement"]["min_token_cosine"] >= SAME:
                step[kind] = cost[size] * ratio(figures["seconds"], compared[size]["grouped"]["seconds"])["value"]
        params = {"size": name_of(size), "patches": patches[size]}
        relative = cost[size] / patches[size] / (cost[smallest] / patches[smallest])
        yield Row("steps", "cost_per_patch", params, value=relative, seconds=step)


def _graph_rows(size: Size, figures: dict[str, Any]) -> Iterator[Row]:
    for kind, graph in figures.items():
        params = {"size": name_of(size), "kind": kind}
        yield Row("graph", "nodes", params, value=graph["nodes"], unit="nodes")
        if "moved_bytes" in graph:
            yield Row("graph", "moved", params, value=graph["moved_bytes"] / 1e6, unit="MB")
