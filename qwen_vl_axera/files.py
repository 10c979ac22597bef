"""Files that are either the old one or the new one, never half of one."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import reprlib
import shutil
import stat
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from qwen_vl_axera import doors
from qwen_vl_axera.errors import InputError

T = TypeVar("T")

READ_SIZE = 1 << 20  # bytes read at a time
Ours = Callable[[Path], bool]  # whether a file, by its own form, is one that this project makes
LARGEST = 2**53  # whole numbers up to it are also floats


@contextmanager
def atomic_write(
    path: Path, mode: str = "wb", permissions: int = 0o644, ours: Container[str] | Ours | None = None
) -> Iterator[IO]:
    """Opens a temporary file beside `path` and moves it into place when the block ends well.

    Args:
        path: the file to write; its directory must exist.
        mode: "wb" or "w" (UTF-8, LF).
        permissions: of the file.
        ours: what may be replaced besides equal content, as `check_ours` takes it; None: whatever has the name.

    What is replaced is a regular file or a symbolic link to one (the link itself, not what it leads to). Temporary
    files that a run which was killed has left for the same `path` are removed.

    Yields:
        The open temporary file. It is removed when the block raises.

    Raises:
        InputError: something else than a regular file has that name, or one that is not ours, or there is no directory
            for it.
    """
    path = Path(path)
    doors.check_output(path)
    prefix = f".{path.name[:40]}."
    remove_leftovers(path.parent, prefix, ".tmp")
    descriptor, name = locked_temporary(path.parent, prefix)
    temporary = Path(name)
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if ours is not None and path.exists() and sha256_file(path) != sha256_file(temporary):
                check_ours(path, ours)
            temporary.chmod(permissions)
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)  # a failed write knows none, and the temporary one says nothing
        raise


def locked_temporary(directory: Path, prefix: str) -> tuple[int, str]:
    """A new temporary file, locked: the lock ends with the process, and an unlocked one is nobody's any more."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=prefix, suffix=".tmp")
        with suppress(OSError):  # a file system without locks: nobody can lock it, so nobody removes it either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # removed by a sweep between its creation and its lock


def remove_leftovers(directory: Path, prefix: str, suffix: str = "") -> None:
    """Removes temporary files and directories of runs that were killed: those that no process has locked."""
    names: list[str] = []
    made_up = re.compile(f"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(suffix)}")  # as tempfile names them
    with suppress(OSError), os.scandir(directory) as entries:
        names = [entry.name for entry in entries if made_up.fullmatch(entry.name)]
    for name in names:
        with suppress(OSError):
            descriptor = os.open(Path(directory) / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.isdir(descriptor):
                    shutil.rmtree(Path(directory) / name)
                else:
                    os.unlink(Path(directory) / name)
            finally:
                os.close(descriptor)


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
    return doors.parse_json(doors.read_bytes(path), path)


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
    data = doors.read_bytes(require(path, made_by))
    doors.parse_json(data, path, remedy)  # stricter than pydantic's own parser
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
    if first["type"] == "json_invalid":
        return f"not readable as JSON ({first['ctx']['error']})"
    message = first["msg"].removeprefix("Input ")
    found = "" if isinstance(first["input"], dict | list) else f", found {reprlib.repr(first['input'])}"
    return f"{where or 'its top'} {message[0].lower()}{message[1:]}{found}"


def read_field(path: Path, raw: dict[str, Any], name: str, kind: type, default: Any = None, prefix: str = "") -> Any:
    """A field of a JSON object. Whole numbers must be positive; those of names in `token_id`, not negative.

    Raises:
        InputError: it is absent without a default, or of another kind.
    """
    value = raw.get(name, default)
    if value is None and name not in raw:
        raise InputError(f"{path}: {prefix}{name} is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {int: "a whole number", list: "a list", str: "a text"}.get(kind, kind.__name__)
        found = "null" if value is None else reprlib.repr(value)
        raise InputError(f"{path}: {prefix}{name} is {found}, expected {wanted}")
    if kind is int and value < (0 if name.endswith("token_id") else 1):
        raise InputError(f"{path}: {prefix}{name} is {value}, expected a positive number")
    if kind is int and value >= LARGEST:
        raise InputError(f"{path}: {prefix}{name} has {len(str(value))} digits, no model is that large")
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
        InputError: it is missing or no plain array of numbers (pickled objects are refused).
    """
    try:
        return doors.map_array(require(path, made_by))
    except InputError as error:
        raise InputError(str(error) if "run " in str(error) else f"{error}; run {made_by} again") from None


def require(path: Path, made_by: str) -> Path:
    """The path of a file that an earlier step makes.

    Raises:
        InputError: it is not there (the message names the command that makes it), or no regular file.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path} is missing: run {made_by} first")
    return doors.check_file(path)


def made_directory(path: Path, name: str = "") -> Path:
    """A directory, made when it is not there yet.

    Args:
        path: its place.
        name: what the message calls it by.

    Raises:
        InputError: something that is not a directory stands in its place, it can't be made, or it lies in a checkpoint
            or in the hub's cache.
    """
    try:
        doors.check_place(path)
    except InputError as error:
        raise InputError(f"{name}{error}") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        found = doors.kind_of(os.stat(path).st_mode) if path.exists() else "a link to nothing"
        raise InputError(f"{name}{path}: expected a directory, found {found}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}{path}: cannot be made ({reason})") from None
    return path


def check_out(checkpoint: Path, directory: Path) -> None:
    """That what goes to the board can go to a directory: asked before anything is read or written.

    Raises:
        InputError: it lies in a checkpoint or in the hub's cache, or something else than a directory has the name.
    """
    doors.check_place(directory, checkpoint)
    try:
        mode = os.stat(directory).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{directory}: no directory can be made there ({error.strerror})") from None
    if not stat.S_ISDIR(mode):
        raise InputError(f"{directory}: expected a directory, found {doors.kind_of(mode)}")


def check_ours(path: Path, ours: Container[str] | Ours) -> None:
    """Refuses to replace or remove a file that this project did not make: the rule for every output.

    Args:
        path: what will be replaced or removed; it need not exist.
        ours: the SHA-256 digests of what we made, or are about to write, under that name; or, of a kind of file that
            says what it is, a function that looks.

    Raises:
        InputError: it is something else.
    """
    doors.check_output(path)
    if os.path.exists(path) and not (ours(path) if callable(ours) else sha256_file(path) in ours):
        raise InputError(
            f"{path}: would be replaced, and is not what was made here, or was changed since: move it away, or choose "
            "another place"
        )


def check_report(checkpoint: Path, path: Path, suffix: str, ours: Ours) -> None:
    """That a report named on the command line may be written: a mistyped name must not cost another file.

    Args:
        checkpoint: nothing is written there.
        path: the file.
        suffix: of every such report, ".html" or ".json".
        ours: whether a file that is there is such a report.

    Raises:
        InputError: it lies in a checkpoint, has another suffix, or would replace another file.
    """
    if path.suffix != suffix:
        raise InputError(f"{path}: would be written or replaced, expected a name that ends in {suffix}")
    doors.check_place(path, checkpoint)
    check_ours(path, ours)


def move_file(source: Path, target: Path) -> None:
    """Moves a file into place, atomically also between file systems; an older `target` is replaced."""
    doors.check_output(target)
    try:
        os.replace(doors.check_file(source), target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with doors.open_file(source) as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer, READ_SIZE)
        os.unlink(source)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as hex digits, read in pieces."""
    digest = hashlib.sha256()
    with doors.open_file(path) as file:
        while chunk := file.read(READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()
