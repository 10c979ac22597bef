"""A checkpoint's safetensors files, read tensor by tensor.

Headers are read at once (a few hundred kB even for the 72B), tensor data only when asked for and with
plain reads: a memory map would count every page it touches as resident memory.
"""

import difflib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen_vl_axera.checkpoint.config import MERGE, ModelConfig, load_config, model_name
from qwen_vl_axera.doors import MAX_JSON, open_file, parse_json
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import READ_SIZE, read_json
from qwen_vl_axera.towers import find_tower
from qwen_vl_axera.towers.tower import Tower

INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER = MAX_JSON  # bytes; the 72B's headers take 100 kB, the format itself allows 100 MB
ITEM_SIZE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
FLOAT_DTYPES = ("BF16", "F16", "F32")
# What else a model needs: of the files beside the weights these are read and packed, others (a trainer's) are not.
MODEL_FILES = (
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json"),
    *("merges.txt", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json"),
    *("tokenizer_config.json", "video_preprocessor_config.json", "vocab.json"),
)
NAMED = 8  # absent files in a message

# Stored names differ between the hub, transformers' save_pretrained and conversion tools; the hub's are
# used everywhere here. The first rule that matches is applied.
NAME_RULES = (
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.model\."), "model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^embed_tokens\."), "model.embed_tokens."),
)


# Names that no released checkpoint has, and what they are. Other names would not do: Pulsar2 reads the same files.
WRAPPED = (
    (re.compile(r"lora_[AB]\b|lora_embedding|\.base_layer\.|^base_model\.model\."), f"of a LoRA adapter: {MERGE}"),
    (
        re.compile(r"^module\."),
        "of DataParallel: save the model inside, model.module.save_pretrained(DIR)",
    ),
    (re.compile(r"^_orig_mod\."), "of torch.compile: save the model inside, model._orig_mod.save_pretrained(DIR)"),
    (re.compile(r"^thinker\."), "of Qwen2.5-Omni, which is another model: give a Qwen2.5-VL checkpoint"),
)
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}
# Methods that config.json does not name, by what the names of their tensors end in. AWQ and GPTQ both pack into
# qweight, qzeros and scales; only GPTQ stores the order of groups.
PACKED = (
    ((".g_idx",), "GPTQ"),
    ((".qweight",), "AWQ"),
    ((".weight_packed",), "compressed-tensors"),
    ((".absmax", ".quant_map", ".SCB", ".weight_format"), "bitsandbytes"),
    ((".weight_scale_inv",), "FP8"),
)
ORIGINAL = "give the original checkpoint, as released in BF16; for 4 bits, one quantised with GPTQ"


def normalise_name(stored: str) -> str:
    """A tensor's name as the hub spells it: `visual.*`, `model.layers.*`, `model.embed_tokens.weight`."""
    for pattern, replacement in NAME_RULES:
        if pattern.match(stored):
            return pattern.sub(replacement, stored, count=1)
    return stored


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `start` and `end` are byte offsets in the file `path`."""

    name: str
    stored_name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class Checkpoint:
    """A Qwen2.5-VL checkpoint directory: its configuration and its tensors.

    Attributes:
        directory: where it is.
        config: what `config.json` says.
        tensors: normalised name -> TensorInfo, from the headers.

    Raises:
        InputError: the directory, its config.json or its safetensors files are missing, truncated or no
            safetensors, or a shard that the index names is absent.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.config: ModelConfig = load_config(self.directory)
        self.tensors: dict[str, TensorInfo] = {}
        for path in _weight_files(self.directory):
            for info in read_header(path):
                if meaning := next((words for pattern, words in WRAPPED if pattern.search(info.stored_name)), None):
                    raise InputError(f"{path}: {info.stored_name} is a name {meaning}")
                if info.name in self.tensors:
                    other = self.tensors[info.name]
                    raise InputError(
                        f"{info.name} is stored twice: as {other.stored_name} in {other.path.name} "
                        f"and as {info.stored_name} in {path.name}"
                    )
                self.tensors[info.name] = info
        if "lm_head.weight" in self.tensors:  # transformers ties the head to the embeddings where none is stored
            text = replace(self.config.text, tie_word_embeddings=False)
            self.config = replace(self.config, text=text)

    @property
    def name(self) -> str:
        """See `model_name`."""
        return model_name(self.directory)

    @property
    def quantization(self) -> str | None:
        """The method by which it was quantised, as config.json or its tensors have it; None when it was not."""
        if method := self.config.quantization:
            return METHODS.get(method, method)
        found = (method for endings, method in PACKED if any(name.endswith(endings) for name in self.tensors))
        fp8 = any(info.dtype.startswith("F8") for info in self.tensors.values())
        return next(found, "FP8" if fp8 else None)

    @property
    def tower(self) -> Tower:
        """The vision tower that config.json names.

        Raises:
            InputError: it has more blocks than tensors are stored; see `check_counts`.
        """
        self._check_count("vision_config.depth", self.config.vision.depth)
        return find_tower(self.config.model_type)

    def check_counts(self) -> None:
        """That config.json asks for no more blocks and layers than tensors are stored, each taking at least one.

        Raises:
            InputError: it does; whoever went through all of them would not come back.
        """
        self._check_count("vision_config.depth", self.config.vision.depth)
        self._check_count("num_hidden_layers", self.config.text.num_hidden_layers)

    def _check_count(self, name: str, count: int) -> None:
        if count > len(self.tensors):
            raise InputError(
                f"{self.directory / 'config.json'}: {name} is {count}, "
                f"the safetensors files hold {len(self.tensors)} tensors in all"
            )

    def check_shapes(self, expected: dict[str, tuple[int, ...]]) -> None:
        """That these tensors are stored, in these shapes: asked before anything of such a shape is made.

        Raises:
            InputError: one is missing or of another shape.
        """
        for name, shape in expected.items():
            self.check_shape(self.info(name), shape)

    def check_shape(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if info.shape != tuple(shape):
            raise InputError(
                f"{info.path}: {info.stored_name} has shape {list(info.shape)}, config.json asks for {list(shape)}"
            )

    def dtype(self, name: str) -> str:
        """How a tensor is stored: "BF16", "F16", "F32" ...; see `info`."""
        return self.info(name).dtype

    def info(self, name: str) -> TensorInfo:
        """A tensor's place.

        Raises:
            InputError: there is none of that name; the message lists the closest ones.
        """
        if name not in self.tensors:
            close = difflib.get_close_matches(name, self.tensors, n=3, cutoff=0.4)
            stored = ", ".join(self.tensors[match].stored_name for match in close)
            raise InputError(f"{self.directory}: no tensor {name} in the checkpoint; closest names: {stored or 'none'}")
        return self.tensors[name]

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor as float32, converted exactly from bf16, f16 or f32.

        Args:
            name: normalised name.
            shape: what the model expects, checked when given.

        Raises:
            InputError: the tensor is missing, of another shape, no float, or holds NaN or infinities.
        """
        info = self.info(name)
        if shape is not None:
            self.check_shape(info, shape)
        if info.dtype not in FLOAT_DTYPES:
            how = self.quantization
            hint = f"quantised with {how}: {ORIGINAL}" if how else "expected BF16, F16 or F32"
            raise InputError(f"{info.path}: {info.stored_name} is stored as {info.dtype}: {hint}")
        values = read_float32(info)
        # One pass over the data: a sum is finite exactly when no value is NaN or infinite.
        with np.errstate(all="ignore"):
            finite = bool(np.isfinite(np.sum(values, dtype=np.float32))) or bool(np.isfinite(values).all())
        if not finite:
            raise InputError(f"{info.path}: {info.stored_name} holds NaN or infinite values")
        return values


def read_float32(info: TensorInfo) -> np.ndarray:
    """A BF16, F16 or F32 tensor as float32, every value kept exactly.

    Converted piece by piece into its final array: the largest tensors decide how much memory is needed.
    """
    values = np.empty(info.shape, "<f4")
    flat, done = values.reshape(-1), 0
    for data in read_bytes(info):
        if info.dtype == "BF16":  # the upper half of a float32
            piece = np.frombuffer(data, "<u2")
            target = flat[done : done + len(piece)].view("<u4")
            np.copyto(target, piece)
            target <<= 16
        else:
            piece = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[info.dtype])
            flat[done : done + len(piece)] = piece
        done += len(piece)
    return values


def read_bytes(info: TensorInfo, piece: int = READ_SIZE) -> Iterator[bytes]:
    """A tensor's bytes as they are stored, `piece` bytes at a time.

    Raises:
        InputError: the file ends early.
    """
    # Buffered, since an unbuffered read may return fewer bytes than asked for, even half a value.
    with open_file(info.path, buffering=piece) as file:
        file.seek(info.start)
        left = info.nbytes
        while left:
            data = file.read(min(piece, left))
            if not data:
                raise InputError(f"{info.path}: ends inside {info.stored_name}: the file is truncated")
            left -= len(data)
            yield data


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if os.path.lexists(index):
        listed = read_json(index)
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not names:
            raise InputError(f"{index}: expected an object with a weight_map")
        shards = sorted({str(name) for name in names.values()})
        outside = [shard for shard in shards if Path(shard).name != shard]
        if outside:
            raise InputError(f"{index}: {outside[0]!r} is no file name within the directory")
        absent = [shard for shard in shards if not (directory / shard).exists()]
        if absent:
            raise InputError(
                f"{directory}: {INDEX_FILE} names {len(shards)} shards, {len(absent)} absent: "
                f"{', '.join(absent[:NAMED])}{' ...' if len(absent) > NAMED else ''}"
            )
        return [directory / shard for shard in shards]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in directory.glob(pattern))
        hint = f" ({pickled[0]} is a pickle, which is not read: save as safetensors)" if pickled else ""
        raise InputError(f"{directory}: no *.safetensors files{hint}")
    return files


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one safetensors file, from its header, checked against the file's size.

    Raises:
        InputError: it is no safetensors file, or a truncated one.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(9)  # the header's length and its opening brace
        length = int.from_bytes(head[:8], "little")
        if not head.endswith(b"{") or not 2 <= length <= MAX_HEADER:
            raise InputError(f"{path}: not a safetensors file (it has no header)")
        file.seek(8)
        if 8 + length > size:
            raise InputError(f"{path}: truncated: {size} bytes, its header alone needs {8 + length}")
        header = parse_json(file.read(length), path, "; this is no safetensors header")
    if not isinstance(header, dict):
        raise InputError(f"{path}: not a safetensors file (its header is no object)")
    header.pop("__metadata__", None)
    tensors = [_tensor_info(path, stored, entry, base=8 + length, size=size) for stored, entry in header.items()]
    end = 8 + length
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start < end:  # refused by the format's own reader, too
            raise InputError(f"{path}: {info.stored_name} overlaps the tensor before it: not written by safetensors")
        end = info.end
    return tensors


def _tensor_info(path: Path, stored: str, entry: dict, base: int, size: int) -> TensorInfo:
    try:
        dtype, shape, offsets = entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])
        if type(dtype) is not str or len(offsets) != 2 or any(type(side) is not int for side in shape + offsets):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: the header entry of {stored} is malformed") from None
    start, end = (base + offset for offset in offsets)
    if end > size:
        raise InputError(f"{path}: truncated: {stored} ends at byte {end}, the file has {size}")
    expected = math.prod(shape) * ITEM_SIZE[dtype] if dtype in ITEM_SIZE else end - start
    if min(shape, default=0) < 0 or start < base or end - start != expected:
        raise InputError(f"{path}: {stored} has {end - start} bytes, {dtype} {list(shape)} needs {expected}")
    return TensorInfo(normalise_name(stored), stored, dtype, shape, path, start, end)
