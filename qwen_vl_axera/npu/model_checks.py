"""Preflight: the checkpoint, from its headers only, and the vision graph made from it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from preprocess import MEAN, STD
from qwen_vl_axera.checkpoint import FLOAT_DTYPES, INDEX_FILE, Checkpoint, normalise_name
from qwen_vl_axera.config import ModelConfig
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json
from qwen_vl_axera.npu.checks import Check
from qwen_vl_axera.tensors import expected_tensors

ORIGINAL = "give Pulsar2 the original checkpoint, as released in BF16"
EXPORT_AGAIN = "run export.py CKPT video again"
SHOWN = 3  # names in a message
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "bitsandbytes": "bitsandbytes"}


def checkpoint_checks(checkpoint: Checkpoint) -> Iterator[Check]:
    """Every expected tensor with its shape and dtype, and how the checkpoint is stored. Reads no tensor data."""
    method = quantization(checkpoint)
    if method:
        packed = sum(info.dtype not in FLOAT_DTYPES for info in checkpoint.tensors.values())
        yield Check(
            "checkpoint storage",
            "failed",
            f"quantised with {method}: {packed} tensors are packed; Pulsar2 quantises by itself and reads none of them",
            ORIGINAL,
        )
    else:
        yield from _tensors(checkpoint)
    yield from _index(checkpoint)
    yield from _preprocessor(checkpoint)


def quantization(checkpoint: Checkpoint) -> str | None:
    """The method by which a checkpoint was quantised, as config.json or its tensors have it; None when it was not."""
    names, dtypes = set(checkpoint.tensors), {info.dtype for info in checkpoint.tensors.values()}
    if any(name.endswith(".qweight") for name in names):
        # Both pack into qweight, qzeros and scales; only GPTQ stores the order of groups.
        return "GPTQ" if any(name.endswith(".g_idx") for name in names) else "AWQ"
    if any(dtype.startswith("F8") for dtype in dtypes):
        return "FP8"
    method = checkpoint.config.quantization
    return METHODS.get(method, method) if method else None


def _tensors(checkpoint: Checkpoint) -> Iterator[Check]:
    expected = expected_tensors(checkpoint.config)
    missing = [name for name in expected if name not in checkpoint.tensors]
    wrong = [
        f"{name} is {list(checkpoint.tensors[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in expected.items()
        if name in checkpoint.tensors and checkpoint.tensors[name].shape != shape
    ]
    dtypes = Counter(checkpoint.tensors[name].dtype for name in expected if name in checkpoint.tensors)
    if missing:
        yield Check("checkpoint tensors", "failed", f"{len(missing)} absent: {_some(missing)}", "download it again")
    if wrong:
        remedy = "config.json and the weights belong to different models"
        yield Check("checkpoint tensors", "failed", f"{len(wrong)} of another shape: {_some(wrong)}", remedy)
    unreadable = sorted(set(dtypes) - set(FLOAT_DTYPES))
    if unreadable:
        yield Check("checkpoint dtypes", "failed", f"stored as {', '.join(unreadable)}", ORIGINAL)
    if not (missing or wrong or unreadable):
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
        total = sum(checkpoint.tensors[name].nbytes for name in expected)
        detail = f"{describe(checkpoint.config)}: {len(expected)} tensors ({kinds}), {total / 1e6:.1f} MB"
        yield Check("checkpoint tensors", "ok", detail)
    unknown = sorted(set(checkpoint.tensors) - set(expected) - {"lm_head.weight"})  # a tied head may be stored, too
    if unknown:
        yield Check("checkpoint tensors", "warning", f"{len(unknown)} unknown: {_some(unknown)}", "they are not used")


def describe(config: ModelConfig) -> str:
    """A model's shape in a few words."""
    vision, text = config.vision, config.text
    return f"{vision.depth} vision blocks, {text.num_hidden_layers} layers of {text.hidden_size}"


def _index(checkpoint: Checkpoint) -> Iterator[Check]:
    path = checkpoint.directory / INDEX_FILE
    if not path.is_file():
        return
    listed = read_json(path)["weight_map"]
    lost = [
        f"{name} (in {shard})"
        for name, shard in listed.items()
        if (info := checkpoint.tensors.get(normalise_name(name))) is None or info.path.name != shard
    ]
    shards = {info.path.name for info in checkpoint.tensors.values()}
    extra = sorted(file.name for file in checkpoint.directory.glob("*.safetensors") if file.name not in shards)
    if lost:
        yield Check("checkpoint index", "failed", f"{len(lost)} not where it says: {_some(lost)}", "download it again")
    else:
        detail = f"{len(listed)} tensors in {len(shards)} shards, all where it says"
        yield Check("checkpoint index", "ok", detail)
    if extra:
        # llm_build may read every file in the directory, whatever the index says.
        yield Check("checkpoint index", "warning", f"not in it: {_some(extra)}", "move them out of the directory")


def _preprocessor(checkpoint: Checkpoint) -> Iterator[Check]:
    path = checkpoint.directory / "preprocessor_config.json"
    if not path.is_file():
        return
    raw = read_json(path)
    for key, expected in (("image_mean", MEAN), ("image_std", STD)):
        given = raw.get(key) if isinstance(raw, dict) else None
        if given is not None and not np.allclose(given, expected, rtol=0, atol=1e-6):
            detail = f"{path.name}: {key} is {given}, this converter folds in {list(expected)}"
            yield Check("normalisation", "failed", detail, "this is no released Qwen2.5-VL; do not build it")


def graph_checks(checkpoint: Checkpoint, model, path: Path) -> Iterator[Check]:
    """The graph: operators, input and output, what its metadata says, and whether its weights are this model's.

    Args:
        checkpoint: the model.
        model: the graph, without its external data.
        path: the ONNX file that it was read from and that the compiler will get.
    """
    from qwen_vl_axera.graph import read_metadata
    from qwen_vl_axera.operators import lint

    problems = lint(model)
    if problems:
        yield Check("graph operators", "failed", f"{len(problems)}: {'; '.join(problems[:SHOWN])}", EXPORT_AGAIN)
    else:
        detail = f"{path.name}: {len(model.graph.node)} nodes, all in the operator list of AX650"
        yield Check("graph operators", "ok", detail)
    metadata = read_metadata(model)
    yield from _interface(checkpoint.config, model, metadata, path)
    yield from _metadata(checkpoint, metadata, path)
    yield from _weights(checkpoint, model, path)


def _interface(config: ModelConfig, model, metadata: dict, path: Path) -> Iterator[Check]:
    from onnx import TensorProto

    from qwen_vl_axera.graph import INPUT_NAME, OUTPUT_NAME

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
    try:
        rows, columns = config.vision.grid(tuple(metadata["size"]))
        patches = rows * columns
    except (KeyError, TypeError, InputError):  # a foreign graph: its own number of patches is taken
        patches = (found["input"][0][2] + [0] * 3)[2] if found["input"] else 0
    vision = config.vision
    expected = {
        "input": [(INPUT_NAME, TensorProto.FLOAT, [1, vision.in_channels, patches, vision.patch_pixels])],
        "output": [(OUTPUT_NAME, TensorProto.FLOAT, [patches // vision.merge_unit, vision.out_hidden_size])],
    }
    for kind in ("input", "output"):
        if found[kind] == expected[kind]:
            (name, _, shape) = expected[kind][0]
            yield Check(f"graph {kind}", "ok", f"{name}, float32 {shape}")
        else:
            detail = f"is {_signature(found[kind])}, expected {_signature(expected[kind])}"
            yield Check(f"graph {kind}", "failed", detail, EXPORT_AGAIN)


def _metadata(checkpoint: Checkpoint, metadata: dict, path: Path) -> Iterator[Check]:
    if "input" not in metadata:
        yield Check("graph metadata", "failed", f"{path.name} was not written by export.py", EXPORT_AGAIN)
        return
    problems = []
    if metadata.get("checkpoint") != checkpoint.name:
        problems.append(f"made from {metadata.get('checkpoint')}, not {checkpoint.name}")
    for key, expected in (("mean", MEAN), ("std", STD)):
        if metadata.get(key) != list(expected):
            problems.append(f"{key} is {metadata.get(key)}, the code has {list(expected)}")
    if problems:
        yield Check("graph metadata", "failed", "; ".join(problems), EXPORT_AGAIN)
    else:
        height, width = metadata["size"]
        detail = f"{metadata['input']} input, {height}x{width}, from {metadata['checkpoint']}"
        yield Check("graph metadata", "ok", detail)


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
    other = [name for name in compared(checkpoint.config) if not _same(checkpoint, name, external.get(name), path)]
    if other:
        detail = (
            f"{len(other)} of {len(compared(checkpoint.config))} compared are not this checkpoint's: {_some(other)}"
        )
        yield Check("graph weights", "failed", detail, EXPORT_AGAIN)
    else:
        yield Check("graph weights", "ok", f"{external_bytes(model) / 1e6:.1f} MB, from this checkpoint")


def compared(config: ModelConfig) -> list[str]:
    """Small parameters out of every block that the export copies as they are: equal only for the same model."""
    blocks = [
        f"blocks.{number}.{name}"
        for number in range(config.vision.depth)
        for name in ("norm1.weight", "norm2.weight", "mlp.down_proj.bias")
    ]
    return [*blocks, "merger.ln_q.weight", "merger.mlp.2.bias"]


def _same(checkpoint: Checkpoint, name: str, place: dict[str, str] | None, path: Path) -> bool:
    if place is None:
        return False
    count = int(place["length"]) // 4
    with open(path.parent / place["location"], "rb") as file:
        file.seek(int(place["offset"]))
        exported = np.fromfile(file, "<f4", count)
    stored = checkpoint.read(f"visual.{name}")
    return exported.shape == stored.shape and bool((exported == stored).all())


def _signature(values: Iterable[tuple]) -> str:
    from onnx import TensorProto

    return ", ".join(f"{name} {TensorProto.DataType.Name(dtype).lower()} {shape}" for name, dtype, shape in values)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
