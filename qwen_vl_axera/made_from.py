"""Is this record still about these files? Every JSON record carries `made_from`; this answers, and nothing else does.

`made_from` is {file: SHA-256}; a file's name counts from the directory of the record, or of the work directory.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera.contract import STAMPS
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json, sha256_file, write_json

DIGESTS = "digests.json"  # in .steps: large files that were hashed before, by what any write to them changes
LARGE = 64 << 20  # bytes: hashing more takes seconds, so its result is kept


def made_from(paths: Iterable[Path], directory: Path) -> dict[str, str]:
    """What a record says it is about.

    Args:
        paths: the files, each in `directory`, below it or beside it.
        directory: of the record.

    Returns:
        Name from `directory` -> SHA-256 as hex digits, in the order given.

    Raises:
        InputError: a file is missing or unreadable.
    """
    return {os.path.relpath(path, directory): digest(path) for path in map(Path, paths)}


def stale(about: Mapping[str, str], directory: Path) -> str | None:
    """Why a record is not about the files that are there now, in words such as "pixels.npy has changed".

    Args:
        about: a record's `made_from`.
        directory: from which its names count.

    Returns:
        None when it is about them.
    """
    if not about:
        return "it does not say what it was made from"
    for name, expected in about.items():
        if os.path.isabs(name):
            return f"{name} lies elsewhere"
        try:
            if digest(Path(directory) / name) != expected:
                return f"{name} has changed"
        except InputError:
            return f"{name} is missing"
    return None


def digest(path: Path) -> str:
    """The SHA-256 of a file as hex digits; that of a large one is kept beside it, in `.steps`, until it changes.

    Raises:
        InputError: it is missing or no regular file.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())
    if status.st_size <= LARGE:
        return sha256_file(path)
    place, name = path.parent / STAMPS / DIGESTS, path.name
    identity = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    try:
        known = dict(read_json(place))
    except (InputError, TypeError, ValueError):  # none yet, or a damaged one
        known = {}
    match known.get(name):
        case {"identity": found, "sha256": str(value)} if found == identity:
            return value
    value = sha256_file(path)
    if place.parent.is_dir():  # made by export_video.sh
        with suppress(OSError, InputError):  # a place that can't be written costs time, no more
            write_json(place, known | {name: {"identity": identity, "sha256": value}})
    return value
