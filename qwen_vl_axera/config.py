"""What the converter needs of a checkpoint's `config.json`.

Three nestings are in use: flat (the hub's files, transformers 4.49), flat with a `text_config`
(4.57) and `text_config` only (5.x); and two spellings: `in_chans` (hub) and `in_channels`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json

MODEL_TYPE = "qwen2_5_vl"
ROPE_THETA = 10000.0  # of the vision tower; a constant in every released model


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape. Lengths in pixels or patches as named; `window_size` in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    in_channels: int = 3
    tokens_per_second: int = 2
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def factor(self) -> int:
        """Pixels per merged token and axis: image sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def merge_unit(self) -> int:
        """Patches per merged token."""
        return self.spatial_merge_size**2

    @property
    def patch_pixels(self) -> int:
        """Pixels of one patch over its temporal slots: 392 = 2·14·14."""
        return self.temporal_patch_size * self.patch_size**2

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for a size (height, width) in pixels.

        Raises:
            InputError: a side is no positive multiple of `factor`.
        """
        if any(side < self.factor or side % self.factor for side in size):
            nearest = " ".join(str(max(1, round(side / self.factor)) * self.factor) for side in size)
            raise InputError(f"size {size[0]} {size[1]}: expected multiples of {self.factor}; the nearest is {nearest}")
        return size[0] // self.patch_size, size[1] // self.patch_size


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


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's configuration: both halves and the special token ids."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    quantization: str | None


def load_config(checkpoint: Path) -> ModelConfig:
    """Reads `config.json` of a checkpoint directory.

    Raises:
        InputError: the directory or the file is missing or unusable, it describes another model,
            or a field is absent or of the wrong kind.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise InputError(f"{checkpoint}: expected a directory with a Qwen2.5-VL checkpoint, found none")
    path = checkpoint / "config.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: expected the directory of a Qwen2.5-VL checkpoint")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object")
    if raw.get("model_type") != MODEL_TYPE:
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}, expected {MODEL_TYPE!r} (Qwen2.5-VL)")
    if not isinstance(raw.get("vision_config"), dict):
        raise InputError(f"{path} has no vision_config: is this a text-only checkpoint?")
    return ModelConfig(
        vision=_vision(path, raw["vision_config"]),
        text=_text(path, raw),
        image_token_id=_get(path, raw, "image_token_id", int, 151655),
        video_token_id=_get(path, raw, "video_token_id", int, 151656),
        vision_start_token_id=_get(path, raw, "vision_start_token_id", int, 151652),
        vision_end_token_id=_get(path, raw, "vision_end_token_id", int, 151653),
        quantization=_quantization(raw),
    )


def _vision(path: Path, raw: dict[str, Any]) -> VisionConfig:
    get = lambda name, kind=int, default=None: _get(path, raw, name, kind, default, "vision_config.")  # noqa: E731
    blocks = get("fullatt_block_indexes", list, [7, 15, 23, 31])
    config = VisionConfig(
        depth=get("depth"),
        hidden_size=get("hidden_size"),
        intermediate_size=get("intermediate_size"),
        num_heads=get("num_heads"),
        out_hidden_size=get("out_hidden_size"),
        fullatt_block_indexes=tuple(blocks),
        patch_size=get("patch_size", default=14),
        temporal_patch_size=get("temporal_patch_size", default=2),
        spatial_merge_size=get("spatial_merge_size", default=2),
        window_size=get("window_size", default=112),
        in_channels=get("in_channels" if "in_channels" in raw else "in_chans", default=3),
        tokens_per_second=get("tokens_per_second", default=2),
    )
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: vision_config.hidden_act is {raw['hidden_act']!r}, only 'silu' is known")
    if config.hidden_size % config.num_heads or config.head_dim % 4:
        raise InputError(
            f"{path}: vision hidden_size {config.hidden_size} does not split over {config.num_heads} heads of 4n"
        )
    if config.window_size % config.factor:
        raise InputError(f"{path}: window_size {config.window_size} is no multiple of {config.factor} pixels")
    if any(not isinstance(block, int) or not 0 <= block < config.depth for block in blocks):
        raise InputError(f"{path}: fullatt_block_indexes {blocks} leave the {config.depth} blocks")
    return config


def _text(path: Path, raw: dict[str, Any]) -> TextConfig:
    nested = raw["text_config"] if isinstance(raw.get("text_config"), dict) else {}
    merged = {**raw, **nested}
    get = lambda name, kind=int, default=None: _get(path, merged, name, kind, default)  # noqa: E731
    heads = get("num_attention_heads")
    return TextConfig(
        hidden_size=get("hidden_size"),
        intermediate_size=get("intermediate_size"),
        num_hidden_layers=get("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=get("num_key_value_heads", default=heads),
        vocab_size=get("vocab_size"),
        # Written at the top by every release; a nested copy may hold a class default instead.
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", nested.get("tie_word_embeddings", False))),
    )


def _quantization(raw: dict[str, Any]) -> str | None:
    """The quantisation method that a checkpoint was stored with ("gptq", "awq"), or None."""
    settings = raw.get("quantization_config")
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else None


def _get(path: Path, raw: dict[str, Any], name: str, kind: type, default: Any = None, prefix: str = "") -> Any:
    value = raw.get(name, default)
    if value is None:
        raise InputError(f"{path}: {prefix}{name} is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{path}: {prefix}{name} is {value!r}, expected {kind.__name__}")
    if kind is int and value < (0 if name.endswith("token_id") else 1):
        raise InputError(f"{path}: {prefix}{name} is {value}, expected a positive number")
    return value
