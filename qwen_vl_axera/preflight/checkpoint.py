"""Preflight: the checkpoint, from its headers only."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from preprocess import MEAN, STD
from qwen_vl_axera.checkpoint.config import ModelConfig
from qwen_vl_axera.checkpoint.expected import expected_tensors
from qwen_vl_axera.checkpoint.tensors import FLOAT_DTYPES, INDEX_FILE, Checkpoint, normalise_name
from qwen_vl_axera.files import read_json
from qwen_vl_axera.preflight.checks import Check, some

ORIGINAL = "give Pulsar2 the original checkpoint, as released in BF16"
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "bitsandbytes": "bitsandbytes"}


def checkpoint_checks(checkpoint: Checkpoint) -> Iterator[Check]:
    """Every expected tensor with its shape and dtype, and how the checkpoint is stored. Reads no tensor data."""
    checkpoint.check_counts()
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
        yield Check("checkpoint tensors", "failed", f"{len(missing)} absent: {some(missing)}", "download it again")
    if wrong:
        remedy = "config.json and the weights belong to different models"
        yield Check("checkpoint tensors", "failed", f"{len(wrong)} of another shape: {some(wrong)}", remedy)
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
        yield Check("checkpoint tensors", "warning", f"{len(unknown)} unknown: {some(unknown)}", "they are not used")


def describe(config: ModelConfig) -> str:
    """A model's shape in a few words."""
    vision, text = config.vision, config.text
    return f"{vision.depth} vision blocks, {text.num_hidden_layers} layers of {text.hidden_size}"


def _index(checkpoint: Checkpoint) -> Iterator[Check]:
    path = checkpoint.directory / INDEX_FILE
    if not path.is_file():
        return
    listed = read_json(path)["weight_map"]  # an object of names, or Checkpoint had refused it
    lost = [
        f"{name} (in {shard})"
        for name, shard in listed.items()
        if (info := checkpoint.tensors.get(normalise_name(name))) is None or info.path.name != shard
    ]
    shards = {info.path.name for info in checkpoint.tensors.values()}
    extra = sorted(file.name for file in checkpoint.directory.glob("*.safetensors") if file.name not in shards)
    if lost:
        yield Check("checkpoint index", "failed", f"{len(lost)} not where it says: {some(lost)}", "download it again")
    else:
        detail = f"{len(listed)} tensors in {len(shards)} shards, all where it says"
        yield Check("checkpoint index", "ok", detail)
    if extra:
        # llm_build may read every file in the directory, whatever the index says.
        yield Check("checkpoint index", "warning", f"not in it: {some(extra)}", "move them out of the directory")


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
