"""What comes in from outside passes here: files are opened, bounded and parsed by these functions and no others.

Whatever a path leads to, a function here returns what it promises or raises an InputError that names the path; it never
waits for a pipe, never reads a device and never takes more memory than the machine has.
"""

import errno
import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from functools import cache
from pathlib import Path
from typing import IO, Any

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.memory import check_memory

MAX_JSON = 32 << 20  # bytes; tokenizer.json, the largest of a real checkpoint, has 11 MB
MOST_DIGITS = 400  # of a whole number: float64 ends below it, Python's own limit is 4300

KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# Control characters, marks of direction, line separators, surrogates.
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")

# The file that was opened last, for the line that cli.run writes about an unexpected error.
last_opened: list[str] = []


def kind_of(mode: int) -> str:
    """What a file of this `st_mode` is, in words."""
    return next((name for test, name in KINDS if test(mode)), "a file")


def open_file(path: Path, buffering: int = -1) -> IO[bytes]:
    """Opens a regular file for reading.

    Args:
        path: symbolic links are followed.
        buffering: as `open`'s.

    Raises:
        InputError: it is missing, unreadable, or no regular file.
    """
    last_opened[:] = [str(path)]
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        gone = " (a link to one that is gone)" if os.path.islink(path) else ""
        raise InputError(f"{path}: no such file{gone}") from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device with nothing behind it
            raise InputError(f"{path}: expected a file, found {kind_of(os.stat(path).st_mode)}") from None
        raise InputError(f"{path}: not readable ({error.strerror})") from None
    except ValueError:  # NUL in the name
        raise InputError(f"{path}: no file name") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: expected a file, found {kind_of(mode)}")
        return open(descriptor, "rb", buffering=buffering)
    except BaseException:
        os.close(descriptor)
        raise


def check_file(path: Path) -> Path:
    """The path of a regular file that can be read, for readers that open it themselves.

    Raises:
        InputError: as `open_file`.
    """
    open_file(path, 0).close()
    return Path(path)


def read_bytes(path: Path, limit: int = MAX_JSON) -> bytes:
    """A whole file of bounded size.

    Raises:
        InputError: as `open_file`, or it is larger.
    """
    with open_file(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: not readable ({error.strerror})") from None
    if len(data) > limit:
        raise InputError(f"{path}: more than {limit >> 20} MB, which no file of this kind has")
    return data


def parse_json(data: bytes | str, path: Path, remedy: str = "") -> Any:
    """JSON as RFC 8259 has it.

    Args:
        data: the text, UTF-8.
        path: where it is from, for messages.
        remedy: the end of a message.

    Raises:
        InputError: it is none, nested too deeply, holds a key twice, or a number that float64 doesn't hold.
    """
    hooks = {"object_pairs_hook": _unique, "parse_constant": _finite, "parse_float": _finite, "parse_int": _whole}
    try:
        return json.loads(data.decode("utf-8") if isinstance(data, bytes) else data, **hooks)
    except RecursionError:
        raise InputError(f"{path}: not readable as JSON (nested too deeply){remedy}") from None
    except ValueError as error:  # of bytes, syntax, or the hooks
        raise InputError(f"{path}: not readable as JSON ({error}){remedy}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{reprlib.repr(twice)} is given twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.40} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def map_array(path: Path):
    """Memory-maps a `.npy` file.

    Raises:
        InputError: as `open_file`, or it is no plain array of numbers, or its size is not what its header says.
    """
    import numpy as np
    from numpy.lib import format as npy

    with open_file(path) as file:
        try:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(file)
            shape = tuple(int(side) for side in shape)
        except Exception:  # whatever hostile bytes lead numpy's reader to
            raise InputError(f"{path}: not a plain numpy array (its header is none of a .npy file)") from None
        if dtype.kind not in "biuf" or dtype.hasobject:
            raise InputError(f"{path}: not a plain numpy array of numbers (it holds {dtype.name})")
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        needed = start + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or len(shape) > 32 or size != needed:
            raise InputError(f"{path}: not a plain numpy array ({size} bytes, its header says {needed})")
        check_memory(needed, os.fspath(path))  # also of a file whose disk holds nothing
        if needed == start:  # nothing to map
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


def check_output(path: Path) -> None:
    """Refuses to replace what is no regular file.

    A symbolic link to a regular file is replaced, not written through; a link to anything else is refused.

    Raises:
        InputError: a directory, a device, a pipe or a socket has that name, or there is no directory to write to.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG  # nothing there, or a link to nothing
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: would be replaced, expected a file or nothing, found {kind_of(mode)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")


def check_place(directory: Path, checkpoint: Path | None = None) -> None:
    """That a directory to be written to is no checkpoint, not within one, and not in the hub's cache.

    Links count as what they lead to.

    Args:
        directory: it need not exist.
        checkpoint: one that is known; others are recognised by their files.

    Raises:
        InputError: it is.
    """
    try:
        place = Path(os.path.realpath(directory))
        source = None if checkpoint is None else Path(os.path.realpath(checkpoint))
    except (OSError, ValueError):
        raise InputError(f"{directory}: no directory can be made there (no file name)") from None
    for folder in (place, *place.parents):
        if folder == source or _is_checkpoint(folder):
            itself = "this is the checkpoint itself" if folder == source else "this is a checkpoint"
            known = checkpoint if folder == source else folder
            where = itself if folder == place else f"this is within the checkpoint {known}"
            raise InputError(f"{directory}: {where}; give it a place of its own")
        if hub_name(folder) is not None:
            raise InputError(f"{directory}: this is within the hub's cache {folder}; give it a place of its own")


def _is_checkpoint(folder: Path) -> bool:
    try:
        if not (folder / "config.json").is_file():
            return False
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(".safetensors") for entry in entries)
    except OSError:
        return False


def hub_name(folder: Path) -> str | None:
    """A model's name where `folder` is its place in the hub's cache, models--OWNER--NAME; else None."""
    try:
        in_cache = folder.name.startswith("models--") and (folder / "snapshots").is_dir()
    except OSError:
        in_cache = False
    return folder.name.rpartition("--")[2] if in_cache else None


def printable(text: object, keep: str = "\t\n") -> str:
    """Text that is safe to show: what steers a terminal or hides a name as escapes.

    Those are control characters, lone surrogates, line separators and marks that change the direction of writing.

    Args:
        text: anything.
        keep: control characters to leave as they are.
    """
    return STEERING.sub(lambda found: found[0].translate(_escapes(keep)), str(text))


@cache
def _escapes(keep: str) -> dict[int, str]:
    steering = (number for number in range(0xE000) if STEERING.match(chr(number)))
    return {number: f"\\u{number:04x}" for number in steering if chr(number) not in keep}
