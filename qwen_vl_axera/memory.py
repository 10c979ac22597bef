"""How much memory this process may use: of the machine, of its control group, of its own limit. Linux."""

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_vl_axera.errors import InputError

SHARE = 0.5  # of what is free: the most that one input may make us ask for
# Control groups, versions 2 and 1: the limit, what is used, and how that is made up.
GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes, swap left out.

    Attributes:
        total: what this process could have if it were alone.
        available: what it may still take.
    """

    total: int
    available: int


def memory() -> Memory:
    """The least of what machine, control group and the process's own limit (`ulimit -v`) give."""
    found = [_machine(), *filter(None, (_group(*group) for group in GROUPS)), *_own()]
    return Memory(min(one.total for one in found), max(0, min(one.available for one in found)))


def check_memory(needed: int, what: str) -> None:
    """Refuses what this machine's memory can't hold, before anything of it is allocated.

    Args:
        needed: bytes, at least.
        what: what needs them, for the message.

    Raises:
        InputError: it is more than half of what is free.
    """
    free = memory().available
    if needed > SHARE * free:
        raise InputError(
            f"{what} takes at least {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free here "
            f"(at most {SHARE:.0%} of it may be asked for)"
        )


def _machine() -> Memory:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = _table("/proc/meminfo")
    return Memory(total, sizes["MemAvailable"] * 1024 if "MemAvailable" in sizes else total)


def _group(place: str, limit: str, used: str, prefix: str) -> Memory | None:
    """What a container may use. The files that its processes have read stay in memory while nobody needs it: free."""
    with suppress(OSError, ValueError):  # no such group, or "max"
        most, taken = (int(Path(place, name).read_text()) for name in (limit, used))
        parts = _table(f"{place}/memory.stat")
        files = sum(parts.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
        return Memory(most, most - taken + files)
    return None


def _own() -> list[Memory]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    return [Memory(limit, limit - _table("/proc/self/status").get("VmSize", 0) * 1024)]


def _table(path: str) -> dict[str, int]:
    """Lines of a name and a whole number; empty where the system has no such file."""
    with suppress(OSError):
        lines = (line.replace(":", " ").split() for line in Path(path).read_text().splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    return {}
