"""JSON as RFC 8259 has it: no comments, trailing commas, duplicate keys, NaN or infinities.

Pulsar2 reads a relaxed dialect, Python's own parser another one. A file that both understand in the same
way holds none of these, and a refusal should name the line.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/|#[^\n]*|[{}\[\]:,]|[^\s{}\[\]:,"/#]+|\S', re.DOTALL)
COMMENTS = ("//", "/*", "#")
CONSTANTS = ("NaN", "Infinity", "-Infinity")


def read_strict(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is missing, unreadable or not strictly JSON; the message names the line.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is no UTF-8: save the file as UTF-8 without a byte order mark"
        ) from None
    try:
        return parse_strict(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def parse_strict(text: str) -> Any:
    """Parses JSON text.

    Raises:
        ValueError: it is not strictly JSON; the message begins with the line number.
    """
    if text.startswith("\ufeff"):
        raise ValueError("line 1: begins with a byte order mark: save the file as UTF-8 without one")
    for line, problem in _departures(text):
        raise ValueError(f"line {line}: {problem}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("line 1: nested too deeply") from None


def _departures(text: str) -> Iterator[tuple[int, str]]:
    """What Python's parser would accept, or name badly: (line, problem)."""
    keys: list[set[str] | None] = []  # one entry per open bracket; None for a list
    previous, line, counted = "", 1, 0
    for match in TOKEN.finditer(text):
        token = match.group()
        line += text.count("\n", counted, match.start())
        counted = match.start()
        if token.startswith(COMMENTS):
            yield line, f"comments are not allowed: {token.splitlines()[0][:40]!r}"
        elif token in "}]":
            if previous == ",":
                yield line, f"there is a comma before the closing {token!r}"
            if keys:
                keys.pop()
        elif token in "{[":
            keys.append(set() if token == "{" else None)
        elif token.startswith('"'):
            if keys and keys[-1] is not None and previous in "{,":
                if token in keys[-1]:
                    yield line, f"{token} is given twice"
                keys[-1].add(token)
        elif token in CONSTANTS or _overflows(token):
            yield line, f"{token[:40]} is no finite number"
        previous = token


def _overflows(token: str) -> bool:
    """Whether a number such as 1e999 would silently become infinite, or has too many digits to be read."""
    if not re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", token):
        return False
    return not math.isfinite(float(token))
