"""What `report.html` is made of: the records of a work directory, or why one cannot be shown and what makes it."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.made_from import stale

T = TypeVar("T")
LONGEST = 1 << 20  # bytes of a text file
LONG = 600  # characters of a text within a table or a list


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


def check(name: str, about: dict[str, str], workdir: Path) -> None:
    """That a record is about the files that are there.

    Raises:
        InputError: it is about others; the message says which.
    """
    if why := stale(about, workdir):
        raise InputError(f"{name} is about other files: {why}")


@dataclass(frozen=True)
class Clipped(Generic[T]):
    """The first entries of a list, and how many more there are: a page stays one that a phone can open."""

    shown: Sequence[T]
    more: int


def clipped(entries: Sequence[T], most: int) -> Clipped[T]:
    """The first `most` entries."""
    return Clipped(entries[:most], max(len(entries) - most, 0))


def shorten(text: str, most: int = LONG) -> str:
    """A text of unknown length, cut."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more characters)"


def amount(value: float, digits: int = 2) -> str:
    """A number of unknown size: decimals where they are few, else powers of ten."""
    return f"{value:.{digits}f}" if value < 1e6 else f"{value:.1e}"


def read_text(path: Path) -> str:
    """A text file; bytes that are no UTF-8 are replaced."""
    return read_bytes(path, LONGEST).decode("utf-8", "replace")


def shell_line(*words: Any) -> str:
    """A command to be copied into a shell."""
    return shlex.join(map(str, words))
