"""One build at a time on a machine: parallel builds exhaust the memory, and were reported to give bad models.

The lock is a file of the user's, outside any work directory; the compiler inherits it, so that it is held for as long
as the compiler runs, whatever becomes of the process that started it.
"""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_vl_axera.errors import InputError

BUILDS = ("pulsar2 build", "pulsar2 llm_build", "pulsar2 llm_build2")


def lock_file() -> Path:
    """In XDG_RUNTIME_DIR; where that is not set, in the directory for temporary files."""
    directory = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(directory) / f"qwen-vl-axera-build-{os.getuid()}.lock"


@contextmanager
def one_build(name: str) -> Iterator[list[int]]:
    """Waits until no other build of this user runs.

    Args:
        name: of the command; anything but a build goes ahead at once.

    Yields:
        Descriptors for the command to inherit.

    Raises:
        InputError: the lock cannot be made.
    """
    if name not in BUILDS:
        yield []
        return
    path = lock_file()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): it keeps two builds apart") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another build on this machine to end ({path})", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield [descriptor]
        finally:  # also where it failed: what the compiler left running has inherited the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
