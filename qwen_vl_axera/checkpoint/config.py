"""What the converter needs of a checkpoint's `config.json`.

Three nestings are in use: flat (the hub's files, transformers 4.49), flat with a `text_config` (4.57) and
`text_config` only (5.x).
"""

import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_vl_axera.doors import hub_name
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_field, read_json
from qwen_vl_axera.towers import find_tower

if TYPE_CHECKING:
    from qwen_vl_axera.towers.shape import VisionShape

ADAPTER = "adapter_config.json"
MERGE = (
    'merge the adapter first, then give MERGED: python -c "from peft import PeftModel; from transformers import '
    "Qwen2_5_VLForConditionalGeneration as M; PeftModel.from_pretrained(M.from_pretrained('BASE'), 'ADAPTER')"
    ".merge_and_unload().save_pretrained('MERGED')\""
)
MAX_POSITIONS = 128000  # of every released model


@dataclass(frozen=True)
class TextConfig:
    """The parts of the language model's configuration that the board's files and checks need."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int = MAX_POSITIONS
    head_dim: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's configuration: which tower, both halves, and the special token ids."""

    model_type: str
    vision: "VisionShape"
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    quantization: str | None


def model_name(directory: Path) -> str:
    """NAME in the output files' names: the directory's own, or the model's where it lies in the hub's cache.

    Raises:
        InputError: a name that would hide the files.
    """
    place = Path(directory).resolve()
    name = hub_name(place.parents[1]) if place.parent.name == "snapshots" else None
    name = name or place.name
    if name.startswith("."):
        raise InputError(f"{directory}: files are named after the directory, and {name!r} would hide them: rename it")
    return name


def package_place(checkpoint: Path, workdir: Path) -> Path:
    """OUT where none is given: beside the checkpoint, or in the work directory where that would be the hub's cache."""
    name = model_name(checkpoint)
    return Path(f"{checkpoint}-AX650") if name == Path(checkpoint).resolve().name else workdir / f"{name}-AX650"


def load_config(checkpoint: Path) -> ModelConfig:
    """Reads `config.json` of a checkpoint directory.

    Raises:
        InputError: the directory or the file is missing or unusable, it describes another model,
            or a field is absent or of the wrong kind.
    """
    checkpoint = Path(checkpoint)
    path = checkpoint / "config.json"
    if not path.exists() or (checkpoint / ADAPTER).exists():
        raise InputError(no_checkpoint(checkpoint))
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object")
    try:
        tower = find_tower(raw.get("model_type"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(raw.get("vision_config"), dict):
        raise InputError(f"{path} has no vision_config: is this a text-only checkpoint?")
    return ModelConfig(
        model_type=tower.model_type,
        vision=tower.read_config(path, raw["vision_config"]),
        text=_text(path, raw),
        image_token_id=read_field(path, raw, "image_token_id", int, 151655),
        video_token_id=read_field(path, raw, "video_token_id", int, 151656),
        vision_start_token_id=read_field(path, raw, "vision_start_token_id", int, 151652),
        vision_end_token_id=read_field(path, raw, "vision_end_token_id", int, 151653),
        quantization=_quantization(raw),
    )


def no_checkpoint(directory: Path) -> str:
    """What a directory is that is no whole checkpoint, and what to do."""
    if not directory.is_dir():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(directory)):
            hint = f"; if this is the hub's name of a model: hf download {directory} --local-dir DIR, then give DIR"
        return f"{directory}: expected a directory with a Qwen2.5-VL checkpoint, found none{hint}"
    if (directory / ADAPTER).exists():
        return f"{directory}: {ADAPTER} says that a LoRA adapter lies here: {MERGE}"
    cached = next((path for pattern in ("snapshots", "models--*/snapshots") for path in directory.glob(pattern)), None)
    if cached:
        return f"{directory} is the hub's cache: give the directory in it, {cached}/COMMIT"
    return f"{directory / 'config.json'} is missing: expected the directory of a Qwen2.5-VL checkpoint"


def _text(path: Path, raw: dict[str, Any]) -> TextConfig:
    nested = raw["text_config"] if isinstance(raw.get("text_config"), dict) else {}
    merged = {**raw, **nested}
    get = lambda name, kind=int, default=None: read_field(path, merged, name, kind, default)  # noqa: E731
    heads = get("num_attention_heads")
    if get("hidden_size") % heads:
        raise InputError(f"{path}: hidden_size {get('hidden_size')} is no multiple of {heads} attention heads")
    key_value_heads = heads if merged.get("num_key_value_heads") is None else get("num_key_value_heads")
    if heads % key_value_heads:
        raise InputError(f"{path}: {heads} attention heads are no multiple of num_key_value_heads {key_value_heads}")
    head_dim = get("head_dim", default=get("hidden_size") // heads)
    _check_rope(path, merged, head_dim)
    return TextConfig(
        hidden_size=get("hidden_size"),
        intermediate_size=get("intermediate_size"),
        num_hidden_layers=get("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=get("vocab_size"),
        # Written at the top by every release; a nested copy may hold a class default instead.
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", nested.get("tie_word_embeddings", False))),
        max_position_embeddings=get("max_position_embeddings", default=MAX_POSITIONS),
        head_dim=head_dim,
    )


def _check_rope(path: Path, merged: dict[str, Any], head_dim: int) -> None:
    """That the sections of time, rows and columns, where they are given, share out a head's rotary channels."""
    for name in ("rope_scaling", "rope_parameters"):  # transformers 4 and 5
        rope = merged.get(name)
        sections = rope.get("mrope_section") if isinstance(rope, dict) else None
        if sections is None:
            continue
        whole = isinstance(sections, list) and len(sections) == 3 and all(type(one) is int for one in sections)
        if not whole or min(sections) < 0 or 2 * sum(sections) != head_dim:
            raise InputError(
                f"{path}: {name}.mrope_section is {reprlib.repr(sections)}, expected three numbers whose sum is "
                f"{head_dim // 2}, half a head's channels"
            )


def _quantization(raw: dict[str, Any]) -> str | None:
    """The quantisation method that a checkpoint was stored with ("gptq", "awq"), or None."""
    settings = raw.get("quantization_config", raw.get("compression_config"))
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else None
