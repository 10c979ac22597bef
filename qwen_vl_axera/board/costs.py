"""What a converted model costs on the board, before anything is built: memory, bytes, seconds.

Every figure has a grade: "measured" where somebody published this very case, "interpolated" between published cases,
else "inferred" by the rules below from the model's shape. They come from model cards and reports of AX650N and AX8850
cards (Qwen2.5-VL-3B, Qwen3-VL-2B and 4B); none was measured by this project.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_vl_axera.contract import CHUNK
from qwen_vl_axera.record import Amount, Count, Text, record

Grade = Literal["measured", "interpolated", "inferred"]

GIB = 2**30
CARD = 7 * GIB  # bytes: what cards with 8 GB leave to models, as users report it
MEDIA_TOKENS = 24  # of a prompt around the visual ones, the question included, where nothing counted them

# Files, over the bytes of the weights in them: a layer of 77 MB takes 80, a head of 311 MB 340, a tower of 669 MB 921.
LAYER_FILE, POST_FILE, VISION_FILE = 1.04, 1.09, 1.38
OVERHEAD = 0.45 * GIB  # of memory beyond weights and cache, at two published cases
WEIGHT_BYTES = {"s8": 1.0, "s4": 0.5, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp8_e5m2": 1.0, "fp8_e4m3": 1.0}

# Vision: milliseconds of a patch, and the patches of a step between which that was seen, by the tower's model_type.
ENCODERS = {"qwen2_5_vl": (0.765, 484, 1024), "qwen3_vl": (0.273, 576, 576)}

# Decoding: weights stream at these bytes a millisecond, and a layer takes as much again whatever its size.
STREAM, STREAM_S4, LAYER_MS = 21.3e6, 17.0e6, 0.8
# Prefill of a chunk of 128 tokens: milliseconds for a megabyte of a layer, and for each chunk before it.
CHUNK_MS, EARLIER_MS = 0.12, 0.4
# Prefill in one run of n tokens: milliseconds for a megabyte of a layer are LINEAR * n + SQUARE * n * n.
LINEAR, SQUARE = 1.5151e-3, 2.518e-6


@record
class Figure:
    """A number and how well it is known."""

    value: Amount
    grade: Grade


@record
class Costs:
    """One case.

    Attributes:
        case: in words.
        tokens: of the prompt.
        room: for the question and more, beyond these; negative where the prompt does not fit.
        encoder_ms: of all temporal steps; None for a tower of which nothing was published.
        first_token_ms: encoder and prefill.
        tokens_per_second: while it answers.
        memory: bytes on the card.
        package: bytes on the board's disk, and to upload.
    """

    case: Text
    tokens: Count
    room: int
    encoder_ms: Figure | None
    first_token_ms: Figure | None
    tokens_per_second: Figure
    memory: Figure
    package: Figure


@dataclass(frozen=True)
class Model:
    """What the costs depend on: bytes are those of 8-bit weights, one a parameter.

    Attributes:
        tower: its model_type.
        vision, layer, head, embedding: parameters.
        layers: of the language model.
        key_value: channels of a key or a value.
    """

    tower: str
    vision: int
    layers: int
    layer: int
    head: int
    embedding: int
    key_value: int


@dataclass(frozen=True)
class Case:
    """A use of the model.

    Attributes:
        size: height and width in pixels.
        steps: temporal steps.
        frames: 1 for a picture.
        patches, visual: of one step: patches, and tokens that they become.
        prefill_len: tokens of one prefill run.
        chunks: `last_kv_cache_len`; empty: one run.
        kv_cache_len: tokens of the cache.
        weight_type: of the layers.
        text: tokens of the prompt that are not visual.
    """

    size: tuple[int, int]
    steps: int
    frames: int
    patches: int
    visual: int
    prefill_len: int
    kv_cache_len: int
    chunks: Sequence[int] = ()
    weight_type: str = "s8"
    text: int = MEDIA_TOKENS

    @property
    def words(self) -> str:
        what = "a picture" if self.frames == 1 else f"{self.frames} frames"
        form = f"chunks of {self.prefill_len}" if self.chunks else f"one prefill of {self.prefill_len}"
        return f"{what} of {self.size[0]}x{self.size[1]}, {form}, {self.weight_type}"


@dataclass(frozen=True)
class Published:
    """A case that somebody measured: milliseconds, tokens a second, bytes; None: not said."""

    encoder: float
    first: float
    rate: float
    memory: float | None = None
    package: float | None = None


# (tower, layers, size, frames, chunked) -> as published, at s8. Prefill in one run: 320 tokens for the picture, 512.
KNOWN = {
    ("qwen2_5_vl", 36, (448, 448), 1, False): Published(780, 2857, 6.2, 4.3 * GIB, 4.6 * GIB),
    ("qwen2_5_vl", 36, (308, 308), 8, False): Published(1400, 5400, 6.1, 4.4 * GIB, 4.7 * GIB),
    ("qwen2_5_vl", 36, (448, 448), 1, True): Published(788, 1964, 4.95),
    ("qwen2_5_vl", 36, (308, 308), 8, True): Published(4 * 371, 2931, 4.95),
    ("qwen3_vl", 28, (384, 384), 8, True): Published(4 * 157, 4 * 157 + 935, 9.5),
    ("qwen3_vl", 36, (384, 384), 8, True): Published(4 * 158, 4 * 158 + 2252, 4.2),
}
ONE_RUN = {1: 320, 8: 512}  # frames -> prefill of the published cases without chunks


def costs(model: Model, case: Case) -> Costs:
    """What a case costs on the board."""
    tokens = case.steps * case.visual + case.text
    encoder = encoder_ms(model, case)
    decode = decode_ms(model, case.weight_type)
    prefill = prefill_ms(model, case, tokens) + decode.head
    known = KNOWN.get((model.tower, model.layers, case.size, case.frames, bool(case.chunks)))
    if case.weight_type != "s8" or not (case.chunks or case.prefill_len == ONE_RUN.get(case.frames)):
        known = None
    found = {
        "encoder_ms": encoder,
        "first_token_ms": encoder and Figure(encoder.value + prefill, "inferred"),
        "tokens_per_second": Figure(1e3 / decode.whole, "inferred"),
        "memory": Figure(memory_bytes(model, case), "inferred"),
        "package": Figure(package_bytes(model, case.weight_type), "inferred"),
    }
    if known:
        values = dict(zip(found, (known.encoder, known.first, known.rate, known.memory, known.package), strict=True))
        found |= {name: Figure(value, "measured") for name, value in values.items() if value is not None}
    room = max([case.prefill_len, *case.chunks]) - tokens
    return Costs(case=case.words, tokens=tokens, room=room, **found)


def encoder_ms(model: Model, case: Case) -> Figure | None:
    """Milliseconds of all steps at 16-bit activations; beyond the published sizes, full attention costs more."""
    if model.tower not in ENCODERS:
        return None
    each, least, most = ENCODERS[model.tower]
    grade: Grade = "interpolated" if least <= case.patches <= most else "inferred"
    return Figure(case.steps * case.patches * each, grade)


@dataclass(frozen=True)
class Decode:
    """Milliseconds of one token: of the head, and of everything."""

    head: float
    whole: float


def decode_ms(model: Model, weight_type: str) -> Decode:
    rate = STREAM_S4 if weight_type == "s4" else STREAM
    layer = LAYER_MS + model.layer * WEIGHT_BYTES[weight_type] / rate
    head = POST_FILE * model.head / STREAM
    return Decode(head, model.layers * layer + head)


def prefill_ms(model: Model, case: Case, tokens: int) -> float:
    """Milliseconds of the layers. Products take as long whatever the weights' type: s4 was seen 1.05 times faster."""
    size = model.layer / 1e6
    if not case.chunks:
        return model.layers * size * (LINEAR * case.prefill_len + SQUARE * case.prefill_len**2)
    chunks = math.ceil(tokens / case.prefill_len)
    each = CHUNK_MS * size * case.prefill_len / CHUNK
    return model.layers * (chunks * each + EARLIER_MS * chunks * (chunks - 1) / 2)


def model_bytes(model: Model, weight_type: str) -> float:
    """Bytes of the compiled files."""
    layers = model.layers * model.layer * WEIGHT_BYTES[weight_type] * LAYER_FILE
    return layers + POST_FILE * model.head + VISION_FILE * model.vision


def memory_bytes(model: Model, case: Case) -> float:
    """Bytes on the card: the compiled files and the cache in 16 bits. Embeddings stay on the host's side."""
    cache = model.layers * case.kv_cache_len * 2 * model.key_value * 2
    return model_bytes(model, case.weight_type) + cache + OVERHEAD


def package_bytes(model: Model, weight_type: str) -> float:
    """Bytes on disk: the compiled files, and the embeddings in 16 bits."""
    return model_bytes(model, weight_type) + 2 * model.embedding


HEADER = ("on the board", "tokens", "room", "encoder", "first token", "tokens/s", "memory", "package")
MARKS = {"measured": "", "interpolated": "~", "inferred": "?"}


def rows(found: Sequence[Costs]) -> Iterator[tuple[str, ...]]:
    """The cases as cells of a table: figures with ~ are interpolated, with ? inferred."""

    def cell(figure: Figure | None, scale: float, unit: str, digits: int = 1) -> str:
        return "not known" if figure is None else f"{figure.value / scale:.{digits}f}{unit}{MARKS[figure.grade]}"

    for one in found:
        yield (
            one.case,
            str(one.tokens),
            str(one.room) if one.room >= 0 else "too long",
            cell(one.encoder_ms, 1e3, " s"),
            cell(one.first_token_ms, 1e3, " s"),
            cell(one.tokens_per_second, 1, ""),
            cell(one.memory, GIB, " GiB"),
            cell(one.package, GIB, " GiB"),
        )


def table(found: Sequence[Costs]) -> str:
    """The cases for a terminal."""
    cells = [HEADER, *rows(found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )
    return "\n".join([*lines, "no mark: published for this case; ~ interpolated; ? inferred (docs/board.md)"])
