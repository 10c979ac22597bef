"""Is tokenizer.json that of Qwen2? Asked before a library runs it: its rules are programs.

A tokenizer.json may hold any chain of replacements and regular expressions; some double the text at every step, some do
not come back. The models' own is one pattern, and the board's runtime knows no other.
"""

import reprlib
from pathlib import Path
from typing import Any

from qwen_vl_axera.errors import InputError

# What makes a word: transformers, tokenization_qwen2.py, PRETOKENIZE_REGEX.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = {  # part -> the kinds that Qwen2's has there
    "model": ("BPE",),
    "normalizer": (None, "NFC"),
    "pre_tokenizer": (None, "Sequence", "Split", "ByteLevel"),
    "post_processor": (None, "ByteLevel"),
    "decoder": (None, "ByteLevel"),
}


def check_tokenizer(path: Path, raw: Any) -> None:
    """That a tokenizer.json asks for nothing but what Qwen2's does.

    Args:
        path: where it is from, for messages.
        raw: what it holds.

    Raises:
        InputError: a part is of another kind, or of another pattern.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected an object, found {reprlib.repr(raw)}")
    for part, known in KINDS.items():
        if _kind(raw.get(part)) not in known:
            raise InputError(f"{path}: its {part} is {reprlib.repr(_kind(raw.get(part)))}, Qwen2's is {known[-1]}")
    words = raw.get("pre_tokenizer") or {}
    parts = words.get("pretokenizers") if words.get("type") == "Sequence" else [words]
    for part in parts if isinstance(parts, list) else [parts]:
        pattern = part.get("pattern") if isinstance(part, dict) else part
        if _kind(part) not in (None, "Split", "ByteLevel") or pattern not in (None, {"Regex": WORDS}):
            raise InputError(f"{path}: its pre_tokenizer holds {reprlib.repr(part)}, which is not Qwen2's")


def _kind(part: Any) -> Any:
    """The `type` of a part; None where there is no part."""
    if part is None or isinstance(part, dict):
        return part.get("type", "nothing") if part else None
    return f"no object: {part}"
