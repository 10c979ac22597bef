"""Files that are either the old one or the new one, never half of one."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qwen_vl_axera.errors import InputError

READ_SIZE = 1 << 20  # bytes read at a time


@contextmanager
def atomic_write(path: Path, mode: str = "wb", permissions: int = 0o644) -> Iterator[IO]:
    """Opens a temporary file beside `path` and moves it into place when the block ends well.

    Args:
        path: the file to write; its directory must exist.
        mode: "wb" or "w" (UTF-8, LF).
        permissions: of the file.

    Yields:
        The open temporary file. It is removed when the block raises.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(permissions)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, atomically; NaN and infinities are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, "w") as file:
        file.write(text)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def read_field(path: Path, raw: dict[str, Any], name: str, kind: type, default: Any = None, prefix: str = "") -> Any:
    """A field of a JSON object. Whole numbers must be positive; those of names in `token_id`, not negative.

    Raises:
        InputError: it is absent without a default, or of another kind.
    """
    value = raw.get(name, default)
    if value is None:
        raise InputError(f"{path}: {prefix}{name} is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{path}: {prefix}{name} is {value!r}, expected {kind.__name__}")
    if kind is int and value < (0 if name.endswith("token_id") else 1):
        raise InputError(f"{path}: {prefix}{name} is {value}, expected a positive number")
    return value


def write_array(path: Path, array) -> None:
    """Writes a numpy array as `.npy`, atomically."""
    import numpy as np

    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path, made_by: str):
    """Memory-maps a `.npy` file that an earlier step made.

    Args:
        path: the file.
        made_by: the command that makes it, for the error message.

    Raises:
        InputError: it is missing or no plain array (pickled objects are refused).
    """
    import numpy as np

    path = require(path, made_by)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a plain numpy array ({error}); run {made_by} again") from None


def require(path: Path, made_by: str) -> Path:
    """The path of a file that an earlier step makes.

    Raises:
        InputError: it is not there; the message names the command that makes it.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is missing: run {made_by} first")
    return Path(path)


def move_file(source: Path, target: Path) -> None:
    """Moves a file into place, atomically also between file systems; an older `target` is replaced."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(source, "rb") as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer, READ_SIZE)
        os.unlink(source)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as hex digits, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()
