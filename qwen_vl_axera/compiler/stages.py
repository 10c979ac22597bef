"""How far the compiler is, read from the bars that it prints, and told while it works.

    tiling op...   ━━━━━━━━━━━━━━ 52/52 0:00:00
    Calibration Progress(Phase 1): 100%|██████████| 32/32 [00:17<00:00,  1.79it/s]

Into a pipe it prints most bars only when their stage has ended, and may say nothing for long. On a terminal a line
below its output therefore tells the time and what was seen last; elsewhere a line is printed when a new stage is seen,
and when it has been silent for long.
"""

import re
import shutil
import sys
import time

BAR = re.compile(r"\s*([A-Za-z][\w ()]{2,50}?)(?:\.\.\.|:)?\s[^\w\n]{0,400}?(?:\d+%\|\S* )?(\d+/\d+) \[?\d+:\d\d")
MOST = 64  # stages that are told of
CLEAR = "\r\x1b[K"  # the line that the cursor is in


class Stages:
    """Tells how far a command is.

    Args:
        name: the command's.
        seconds: that it may take; None: not known.
    """

    def __init__(self, name: str, seconds: float | None = None):
        self.name, self.seconds = name, seconds
        self.start = self.heard = time.monotonic()
        self.counts: dict[str, str] = {}  # of each stage, the latest last
        self.stream = getattr(sys.stderr, "stream", sys.stderr)  # cli's shows no control characters
        self.terminal = self.stream.isatty()
        self.new = self.drawn = False

    def read(self, line: str) -> None:
        """Takes notice of a line of the command's output."""
        found = BAR.match(line)
        if not found or (found[1] not in self.counts and len(self.counts) == MOST):
            return
        self.new |= found[1] not in self.counts
        self.counts.pop(found[1], None)
        self.counts[found[1]] = found[2]

    def tell(self) -> None:
        """Tells of it; to be called only where the command's output has ended a line."""
        if not self.terminal and self.new:
            print(self, file=sys.stderr, flush=True)
        self.new = False
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
            self._write(f"{CLEAR}{str(self)[:width]}")
            self.drawn = True

    def silence(self) -> None:
        """Says that nothing came for a while; on a terminal `tell` does."""
        if not self.terminal:
            minutes = (time.monotonic() - self.heard) / 60
            print(f"{self.name}: still running; silent for {minutes:.0f} minutes", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Makes room for the command's own output."""
        self.heard = time.monotonic()
        if self.drawn:
            self._write(CLEAR)
            self.drawn = False

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def __str__(self) -> str:
        line = f"{self.name}: {(time.monotonic() - self.start) / 60:.0f} min"
        if self.seconds:
            line += f" of about {self.seconds / 60:.0f} (an inference)"
        if self.counts:
            line += ", last seen: {} {}".format(*list(self.counts.items())[-1])
        return line
