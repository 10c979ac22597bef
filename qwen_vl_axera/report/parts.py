"""What `report.html` is made of: the records of a work directory, or why one cannot be shown and what makes it."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError

T = TypeVar("T")
LONGEST = 1 << 20  # bytes of a text file


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of the report.

    Attributes:
        value: None where there is none.
        problem: why there is none.
        command: what makes it.
        absent: it has not been made yet; otherwise it is there and not what it should be.
    """

    value: T | None
    problem: str = ""
    command: str = ""
    absent: bool = False


def read_part(read: Callable[[Path], T], path: Path, command: str, name: str = "") -> Part[T]:
    """Reads a file of the work directory.

    Args:
        read: reads it; raises InputError.
        path: the file.
        command: what makes it, for the reader of the report.
        name: what the report calls the file (default: its name).

    Returns:
        Its content, or a part that says what is wrong: the report is written all the same.
    """
    if not os.path.lexists(path):
        return Part(None, f"{name or path.name} is not there yet.", command, absent=True)
    try:
        return Part(read(path))
    except InputError as error:
        return Part(None, f"{error}.", command)


def read_text(path: Path) -> str:
    """A text file; bytes that are no UTF-8 are replaced."""
    return read_bytes(path, LONGEST).decode("utf-8", "replace")


def shell_line(*words: Any) -> str:
    """A command to be copied into a shell."""
    return shlex.join(map(str, words))
