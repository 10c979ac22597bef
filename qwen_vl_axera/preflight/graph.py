"""Preflight: the vision graph that the compiler will get, and whether it was made from this checkpoint."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwen_vl_axera.board.sizes import misreading
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import FIDELITY, INPUT_NAME, GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.made_from import stale
from qwen_vl_axera.preflight.checks import SHOWN, Check, some

EXPORT_AGAIN = "run export.py CKPT video again"


def graph_checks(
    checkpoint: Checkpoint, model, spec: GraphSpec, metadata: dict, path: Path, workdir: Path
) -> Iterator[Check]:
    """The graph: operators, input and output, what its metadata says, and whether its weights are this model's.

    Args:
        checkpoint: the model.
        model: the graph, without its external data.
        spec: what it was exported for.
        metadata: what else it says about itself.
        path: the ONNX file that it was read from and that the compiler will get.
        workdir: where the gate left its verdict.
    """
    from qwen_vl_axera.graph.operators import lint

    problems = lint(model)
    if problems:
        yield Check("graph operators", "failed", f"{len(problems)}: {'; '.join(problems[:SHOWN])}", EXPORT_AGAIN)
    else:
        detail = f"{path.name}: {len(model.graph.node)} nodes, all in the operator list of AX650"
        yield Check("graph operators", "ok", detail)
    if problem := misreading(spec.size, checkpoint.config.vision.factor):
        yield Check("graph size", "warning", problem, "capture and export again with one of those sizes")
    yield from _interface(checkpoint, model, spec, path)
    yield from _metadata(checkpoint, spec, metadata)
    yield from _weights(checkpoint, model, path)
    yield _gate(model, path, workdir)


def _interface(checkpoint: Checkpoint, model, spec: GraphSpec, path: Path) -> Iterator[Check]:
    from onnx import TensorProto

    found = {
        kind: [
            (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values
        ]
        for kind, values in (("input", model.graph.input), ("output", model.graph.output))
    }
    if any(dtype == TensorProto.UINT8 for _, dtype, _ in found["input"]):
        detail = f"{path.name} takes uint8: it is the variant for ONNX Runtime"
        yield Check("graph input", "failed", detail, "give Pulsar2 the graph without _uint8")
        return
    vision = checkpoint.config.vision
    expected = {
        "input": [(INPUT_NAME, TensorProto.FLOAT, list(vision.input_shape(spec.size)))],
        "output": [(name, TensorProto.FLOAT, list(vision.output_shape(spec.size))) for name in vision.output_names],
    }
    for kind in ("input", "output"):
        if found[kind] == expected[kind]:
            (name, _, shape) = expected[kind][0]
            yield Check(f"graph {kind}", "ok", f"{name}, float32 {shape}")
        else:
            detail = f"is {_signature(found[kind])}, expected {_signature(expected[kind])}"
            yield Check(f"graph {kind}", "failed", detail, EXPORT_AGAIN)


def _metadata(checkpoint: Checkpoint, spec: GraphSpec, metadata: dict) -> Iterator[Check]:
    problems = []
    if metadata.get("checkpoint") != checkpoint.name:
        problems.append(f"made from {metadata.get('checkpoint')}, not {checkpoint.name}")
    if spec.tower != checkpoint.tower.model_type:
        problems.append(f"is the tower of {spec.tower}, not {checkpoint.tower.model_type}")
    for key, expected in (("mean", checkpoint.tower.mean), ("std", checkpoint.tower.std)):
        if metadata.get(key) != list(expected):
            problems.append(f"{key} is {metadata.get(key)}, the code has {list(expected)}")
    if problems:
        yield Check("graph metadata", "failed", "; ".join(problems), EXPORT_AGAIN)
    else:
        height, width = spec.size
        yield Check("graph metadata", "ok", f"{spec.input} input, {height}x{width}, from {checkpoint.name}")


def external_data(model) -> dict[str, dict[str, str]]:
    """Initializer name -> `location`, `offset` and `length` of its external data."""
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    }


def external_bytes(model) -> int:
    """Size of a graph's external data."""
    return sum(int(place["length"]) for place in external_data(model).values())


def _weights(checkpoint: Checkpoint, model, path: Path) -> Iterator[Check]:
    from qwen_vl_axera.graph.conformity import weight_problems

    external = external_data(model)
    locations = {place["location"] for place in external.values()}
    for location in sorted(locations):
        data, name = path.parent / location, Path(location).name
        end = max(int(p["offset"]) + int(p["length"]) for p in external.values() if p["location"] == location)
        if name != location or not data.is_file():
            yield Check("graph weights", "failed", f"{location} is not beside {path.name}", EXPORT_AGAIN)
            return
        if data.stat().st_size < end:
            detail = f"{location} has {data.stat().st_size} bytes, the graph needs {end}: it is truncated"
            yield Check("graph weights", "failed", detail, EXPORT_AGAIN)
            return
    # These few are enough to tell one model from another; the gate has compared every bit: see `_gate`.
    witnesses = checkpoint.tower.witnesses(checkpoint.config.vision)
    stored = ((name, checkpoint.read(f"visual.{name}")) for name in witnesses)
    other = list(weight_problems(stored, model, path.parent))
    if other:
        detail = f"{len(other)} of {len(witnesses)} compared are not this checkpoint's: {some(other)}"
        yield Check("graph weights", "failed", detail, EXPORT_AGAIN)
    else:
        yield Check("graph weights", "ok", f"{external_bytes(model) / 1e6:.1f} MB, from this checkpoint")


def _gate(model, path: Path, workdir: Path) -> Check:
    """Whether the graph and its weights are those that test_onnx_video_by_sec.py passed, to the bit."""
    from qwen_vl_axera.fidelity.record import read_fidelity

    test = f"run test_onnx_video_by_sec.py CKPT --onnx {path.name}"
    try:
        found = read_fidelity(workdir / FIDELITY)
    except InputError as error:
        return Check("fidelity", "warning", f"not known: {error}", test)
    files = [path, *(path.parent / place["location"] for place in external_data(model).values())]
    wanted = {os.path.relpath(file, workdir) for file in files}
    if absent := wanted - found.made_from.keys():
        return Check("fidelity", "warning", f"{FIDELITY} is not about {min(absent)}", test)
    if problem := stale({name: found.made_from[name] for name in sorted(wanted)}, workdir):
        return Check("fidelity", "failed", f"{problem} since it was tested", f"{EXPORT_AGAIN}, then {test}")
    if not found.holds:
        return Check("fidelity", "failed", "the graph did not pass", f"{EXPORT_AGAIN}, then {test}")
    return Check("fidelity", "ok", f"{path.name} and its weights are those that passed, to the bit")


def _signature(values: Iterable[tuple]) -> str:
    from onnx import TensorProto

    return ", ".join(f"{name} {TensorProto.DataType.Name(dtype).lower()} {shape}" for name, dtype, shape in values)
