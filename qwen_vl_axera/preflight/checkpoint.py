"""Preflight: the checkpoint, from its headers only."""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from preprocess import MERGE_SIZE, TEMPORAL_PATCH_SIZE
from qwen_vl_axera.checkpoint.config import ModelConfig, load_config
from qwen_vl_axera.checkpoint.expected import expected_tensors
from qwen_vl_axera.checkpoint.tensors import FLOAT_DTYPES, INDEX_FILE, ORIGINAL, Checkpoint, normalise_name, read_bytes
from qwen_vl_axera.contract import EMBEDDING
from qwen_vl_axera.files import read_json
from qwen_vl_axera.preflight.checks import Check, some

# What the vendor's recipe makes; a published model was compiled from it. Other settings: no evidence either way.
GPTQ_KNOWN = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
GPTQ_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


def checkpoint_checks(checkpoint: Checkpoint) -> Iterator[Check]:
    """Every expected tensor with its shape and dtype, and how the checkpoint is stored. Reads a second head alone."""
    checkpoint.check_counts()
    method = checkpoint.quantization
    if method == "GPTQ":
        yield _gptq(checkpoint)
        yield from _tensors(checkpoint, packed_tensors(checkpoint))
    elif method:
        packed = sum(info.dtype not in FLOAT_DTYPES for info in checkpoint.tensors.values())
        yield Check(
            "checkpoint storage",
            "failed",
            f"quantised with {method}: {packed} tensors are packed; of quantised checkpoints Pulsar2 is known to read "
            "GPTQ only",
            ORIGINAL,
        )
    else:
        yield from _tensors(checkpoint)
    yield from _index(checkpoint)
    yield from _head(checkpoint)
    yield from _preprocessor(checkpoint)


def packed_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """The language model's matrices that GPTQ replaced: name -> one of the tensors in its place."""
    stems = {name.removesuffix(".qweight"): name for name in checkpoint.tensors if name.endswith(".qweight")}
    return {f"{stem}.weight": name for stem, name in stems.items() if stem.startswith("model.layers.")}


def _gptq(checkpoint: Checkpoint) -> Check:
    """How well what a GPTQ checkpoint holds is known to be read. The vision tower must be as it was released."""
    raw = read_json(checkpoint.directory / "config.json").get("quantization_config")
    settings = {name: raw.get(name) if isinstance(raw, dict) else None for name in GPTQ_KNOWN}
    words = ", ".join(f"{name} {value}" for name, value in settings.items())
    if any(name.startswith("visual.") and name.endswith(GPTQ_PARTS) for name in checkpoint.tensors):
        return Check("checkpoint storage", "failed", "GPTQ: the vision tower is packed, too", ORIGINAL)
    if not packed_tensors(checkpoint):
        return Check("checkpoint storage", "failed", "GPTQ by config.json, but no matrix is packed", ORIGINAL)
    if settings == GPTQ_KNOWN:
        return Check("checkpoint storage", "ok", f"GPTQ: {words}; leave WEIGHT_TYPE unset")
    known = ", ".join(f"{name} {value}" for name, value in GPTQ_KNOWN.items())
    return Check("checkpoint storage", "warning", f"GPTQ: {words}", f"known to be read: {known}")


def _tensors(checkpoint: Checkpoint, packed: Mapping[str, str] = MappingProxyType({})) -> Iterator[Check]:
    """Every expected tensor; of packed matrices only that they are there."""
    expected = {name: shape for name, shape in expected_tensors(checkpoint.config).items() if name not in packed}
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
        assumed = checkpoint.config.vision.assumed
        detail = f"{f'assumed, as config.json leaves it out: {assumed}; ' if assumed else ''}"
        detail += f"{describe(checkpoint.config)}: {len(expected)} tensors ({kinds}), {total / 1e6:.1f} MB"
        yield Check("checkpoint tensors", "ok", detail)
    parts = {name.removesuffix(".weight") + part for name in packed for part in GPTQ_PARTS}
    spare = {name.removesuffix(".weight") + ".bias" for name in packed}  # GPTQ tools store biases of zeros
    unknown = sorted(set(checkpoint.tensors) - set(expected) - parts - spare)
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


def _head(checkpoint: Checkpoint) -> Iterator[Check]:
    """A head beside `tie_word_embeddings: true`: transformers 5.24 takes it where it differs from the embeddings."""
    one, other = (checkpoint.tensors.get(name) for name in ("lm_head.weight", EMBEDDING))
    if not (one and other and load_config(checkpoint.directory).text.tie_word_embeddings):
        return
    pairs = zip(read_bytes(one), read_bytes(other), strict=False)
    if (one.dtype, one.shape) != (other.dtype, other.shape) or any(left != right for left, right in pairs):
        detail = "config.json ties the head to the embeddings, and another one is stored: transformers takes that one"
        remedy = "set tie_word_embeddings to false; which one llm_build takes is not known"
        yield Check("language model's head", "warning", detail, remedy)


def _preprocessor(checkpoint: Checkpoint) -> Iterator[Check]:
    """Every file that says how pictures become patches: of transformers 4, and those that transformers 5 saves."""
    tower = checkpoint.tower
    made = {"image_mean": list(tower.mean), "image_std": list(tower.std), "patch_size": tower.patch_size}
    made |= {"temporal_patch_size": TEMPORAL_PATCH_SIZE, "merge_size": MERGE_SIZE}
    for name in PROCESSORS:
        path = checkpoint.directory / name
        raw = read_json(path) if path.is_file() else {}
        parts = [raw, *(raw.get(part) for part in ("image_processor", "video_processor"))] if type(raw) is dict else []
        for part in filter(lambda part: isinstance(part, dict), parts):
            for key, expected in made.items():
                if (given := part.get(key)) is not None and not _is(given, expected):
                    detail = f"{name}: {key} is {str(given)[:60]}, this converter has {expected}"
                    yield Check("normalisation", "failed", detail, f"this is no released {tower.name}; do not build it")


def _is(given: object, expected: object) -> bool:
    try:
        return bool(np.allclose(given, expected, rtol=0, atol=1e-6))
    except (TypeError, ValueError):
        return False
