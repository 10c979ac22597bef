"""Directories that are either the old one or the new one, whenever a run is killed."""

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera.files import remove_leftovers

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def temporary_directory(target: Path) -> tuple[Path, int]:
    """A directory beside `target` to build its successor in; those that killed runs have left are removed.

    Returns:
        The directory, and the descriptor of its lock: closed, it is nobody's any more.
    """
    remove_leftovers(target.parent, f"{target.name}.tmp-")
    while True:
        directory = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}.tmp-"))
        with suppress(FileNotFoundError):  # swept away before it was locked
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with suppress(OSError):  # a file system without locks: no run removes another one's
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.is_dir():
                return directory, lock
            os.close(lock)


def swap_directories(building: Path, target: Path) -> None:
    """Puts `building` into the place of `target`, in one step; what was there is removed.

    Where the system can't exchange two directories at once, the old one is renamed for a moment; `repair_swap` puts it
    back after a kill just then.
    """
    if not target.exists():
        os.rename(building, target)
        return
    if exchange(building, target):
        shutil.rmtree(building, ignore_errors=True)  # now the old one
        return
    aside = _aside(target)
    os.rename(target, aside)
    try:
        os.rename(building, target)
    except BaseException:
        with suppress(OSError):
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def repair_swap(target: Path) -> None:
    """Ends what a kill in the middle of `swap_directories` left: the old directory gets its name back, or goes."""
    aside = _aside(target)
    if aside.is_dir() and not os.path.lexists(target):
        os.rename(aside, target)
    elif aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once. False where the system or the file system doesn't know how.

    Raises:
        OSError: it knows, and failed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if not renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _aside(target: Path) -> Path:
    return target.with_name(f"{target.name}.replaced")
