"""Files that are either the old one or the new one, never half of one."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import reprlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from qwen_vl_axera.errors import InputError

T = TypeVar("T")

READ_SIZE = 1 << 20  # bytes read at a time
MOST_DIGITS = 400  # of a whole number: float64 ends below it, Python's own limit is 4300


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
        InputError: it is missing, unreadable or no JSON; keys given twice, NaN and infinities are no JSON either.
    """
    return _parse_json(path, _read_bytes(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from None


def _parse_json(path: Path, data: bytes, remedy: str = "") -> Any:
    hooks = {"object_pairs_hook": _unique, "parse_constant": _finite, "parse_float": _finite, "parse_int": _whole}
    try:
        return json.loads(data.decode("utf-8"), **hooks)
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


def write_record(path: Path, kind: Any, value: Any) -> None:
    """Writes a record as JSON, atomically.

    Args:
        path: the file.
        kind: the record's class, or `list[CLASS]`.
        value: the record, or its fields as JSON holds them.

    Raises:
        ValueError: `read_record` would refuse it.
    """
    from pydantic import TypeAdapter

    value = plain(value)
    TypeAdapter(kind).validate_json(json.dumps(value, allow_nan=False))
    write_json(path, value)


def plain(value: Any) -> Any:
    """A record as JSON holds it: dicts and lists."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {
            name: plain(held) for name, (held, default) in fields.items() if held is not None or default is not None
        }
    if isinstance(value, dict):
        return {name: plain(held) for name, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list | tuple) else value


def read_record(path: Path, kind: type[T], made_by: str) -> T:
    """Reads a record.

    Args:
        path: the file.
        kind: the record's class, or `list[CLASS]`.
        made_by: the command that makes it, for the error message.

    Raises:
        InputError: it is missing, no JSON, or not such a record; the message says where, and names the command.
    """
    from pydantic import TypeAdapter, ValidationError

    remedy = f"; run {made_by} again"
    data = _read_bytes(require(path, made_by))
    _parse_json(path, data, remedy)  # stricter than pydantic's own parser
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}{remedy}") from None


def _explain(error: Any) -> str:
    """The first thing that is wrong with a record, in a line."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] in ("missing", "missing_argument"):
        return f"{where} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is not known"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    message = first["msg"].removeprefix("Input ")
    found = "" if isinstance(first["input"], dict | list) else f", found {reprlib.repr(first['input'])}"
    return f"{where or 'its top'} {message[0].lower()}{message[1:]}{found}"


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


def write_arrays(path: Path, arrays: dict) -> None:
    """Writes numpy arrays by name as `.npz`, atomically and with the same bytes for the same arrays."""
    import numpy as np

    with atomic_write(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


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
