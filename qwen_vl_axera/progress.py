"""Progress of long work: a bar while it runs, one line at its end. Silent when stderr is no terminal."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_vl_axera.doors import printable

running: list[str] = []  # the names of the stages that have begun and did not end well, the innermost last


class Stage:
    """A running stage. `advance` moves its bar."""

    def __init__(self, bar):
        self._bar = bar
        self.done = 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)


@contextmanager
def stage(name: str, total: int | None = None, unit: str = "B") -> Iterator[Stage]:
    """Shows a bar for a stage and, when it took longer than a second, a line with its cost.

    Args:
        name: what the stage does, in a few words.
        total: its size in `unit`, or None when unknown.
        unit: "B" for bytes (scaled to kB, MB, GB), or what is counted ("step", "sample").
    """
    depth = len(running)
    running.append(name)
    yield from _shown(printable(name), total, unit)
    del running[depth:]


def _shown(name: str, total: int | None, unit: str) -> Iterator[Stage]:
    if not sys.stderr.isatty():
        yield Stage(None)
        return

    from tqdm import tqdm

    start = time.monotonic()
    terminal = getattr(sys.stderr, "stream", sys.stderr)  # cli's shows no control characters, a bar consists of them
    with tqdm(
        file=terminal,
        total=total,
        desc=name,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        delay=0.5,
        dynamic_ncols=True,
    ) as bar:
        stage = Stage(bar)
        yield stage
    seconds = time.monotonic() - start
    if seconds >= 1:
        amount = format_bytes(stage.done) if unit == "B" else f"{stage.done} {unit}"
        print(f"{name:<28} {seconds:6.1f} s  {amount:>12}  peak {format_bytes(peak_memory())}", file=sys.stderr)


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
