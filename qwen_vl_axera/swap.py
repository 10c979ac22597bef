"""Directories that are either the old one or the new one, whenever a run is killed."""

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl_axera.files import check_ours, made_directory, remove_leftovers, sha256_file

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


STAGING = ".staging.tmp-"  # how a directory of files that wait for their names begins


@dataclass
class Staging:
    """Files on their way into a directory.

    Attributes:
        directory: where they are written, under the names that they will have.
        target: where they go.
        known: name in `target` -> SHA-256 of what an earlier run put there.
        gone: names in `target` that go when the others come.
    """

    directory: Path
    target: Path
    known: dict[str, str]
    gone: set[str] = field(default_factory=set)

    def files(self) -> dict[str, Path]:
        """Those that were written, by their names under `target`."""
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file())
        return {path.relative_to(self.directory).as_posix(): path for path in paths}

    def is_ours(self, name: str) -> bool:
        """Whether a file in `target` is as an earlier run left it."""
        return self.known.get(name) == sha256_file(self.target / name)

    def land(self, seal: str) -> None:
        """Moves them; the file `seal` goes first and comes last, so that it never stands beside a mixture.

        Meanwhile the earlier one has the name of `set_aside`: after a kill it still says what was ours.

        Raises:
            InputError: a file of ours that was changed, somebody else's, or no regular file has one of the names;
                nothing was moved.
        """
        files, sealed = self.files(), self.target / seal
        for name, path in files.items():
            made_directory((self.target / name).parent)
            if path != self.directory / seal and os.path.lexists(self.target / name):
                check_ours(self.target / name, {self.known.get(name), sha256_file(path)})
        if sealed.exists():
            os.replace(sealed, set_aside(sealed))
        new = files.pop(seal)
        for name, path in files.items():
            os.replace(path, self.target / name)
        for name in self.gone:
            (self.target / name).unlink(missing_ok=True)
        os.replace(new, sealed)
        set_aside(sealed).unlink(missing_ok=True)


def set_aside(seal: Path) -> Path:
    """Where the earlier seal stands while files get their names."""
    return seal.with_name(f".{seal.name}.replaced")


@contextmanager
def staged(target: Path, seal: str, known: dict[str, str]) -> Iterator[Staging]:
    """A place for new files of the directory `target`, which get their names there when the block ends well.

    When it raises, `target` is as it was.

    Args:
        target: it must exist.
        seal: the file that vouches for the others; it must be among them.
        known: name -> SHA-256 of what an earlier run put there, by its seal.
    """
    directory, lock = temporary_directory(target, STAGING)
    try:
        staging = Staging(directory, target, known)
        yield staging
        staging.land(seal)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def temporary_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory; those of this prefix that killed runs have left are removed.

    Returns:
        The directory, and the descriptor of its lock: closed, it is nobody's any more.
    """
    remove_leftovers(parent, prefix)
    while True:
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
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
    old = aside(target)
    os.rename(target, old)
    try:
        os.rename(building, target)
    except BaseException:
        with suppress(OSError):
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def repair_swap(target: Path) -> None:
    """Ends what a kill in the middle of `swap_directories` left: the old directory gets its name back, or goes."""
    old = aside(target)
    if old.is_dir() and not os.path.lexists(target):
        os.rename(old, target)
    elif old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


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


def aside(target: Path) -> Path:
    """Where the old directory waits for a moment, in `swap_directories`."""
    return target.with_name(f".{target.name}.replaced")
