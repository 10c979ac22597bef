"""A tool's process: its two streams as they come, bounded and harmless to show, and its end, whatever it does."""

import codecs
import math
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TextIO

from qwen_vl_axera.doors import printable
from qwen_vl_axera.errors import CheckFailed

QUIET = 300  # seconds of silence after which a user should know that the tool still runs
GRACE = 10  # seconds from SIGTERM to SIGKILL
LINGER = 2  # seconds for the streams of a tool that has ended: what it left running may hold them for ever
TICK = 0.5  # seconds between two looks at a silent tool
PIECE = 1 << 16  # bytes read at a time; of a line without end, as many characters are kept
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Shown:
    """A stream of a tool on one of our own, without what steers a terminal; a carriage return may redraw a line.

    Args:
        target: `sys.stdout` or `sys.stderr`.
    """

    def __init__(self, target: TextIO):
        self.target, self.begun = target, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self, piece: bytes) -> list[str]:
        """Shows a piece; returns the lines that it ends."""
        text = printable(COLOURS.sub("", self._decoder.decode(piece)), "\t\n\r")
        self._write(text)
        *ended, begun = (self.begun + text).replace("\r", "\n").split("\n")
        self.begun = begun[-PIECE:]
        return ended

    def end(self) -> list[str]:
        """Ends a line that the tool did not end; returns it."""
        if self.begun:
            self._write("\n")
        return [self.begun] if self.begun else []

    def _write(self, text: str) -> None:
        # Past our own stream's filter, which would show carriage returns as escapes.
        self.target.buffer.write(text.encode(self.target.encoding or "utf-8", "backslashreplace"))
        self.target.flush()


@contextmanager
def running(argv: list[str], **options) -> Iterator[subprocess.Popen]:
    """A process that is gone when the block is left by an exception: asked to end first, then made to."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **options) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:
                process.kill()
            raise


def pieces(process: subprocess.Popen, name: str, seconds: float = math.inf) -> Iterator[tuple[IO[bytes], bytes]]:
    """What a tool writes to both its streams, as it comes, until they end; a long silence is remarked on.

    Args:
        process: with both streams piped.
        name: of the tool, for messages.
        seconds: how long it may take.

    Raises:
        CheckFailed: it takes longer.
    """
    streams, silent, gone = [process.stdout, process.stderr], 0.0, None
    tick, start = min(TICK, QUIET), time.monotonic()
    while streams:
        ready, _, _ = select.select(streams, [], [], tick)
        if gone is None and process.poll() is not None:
            gone = time.monotonic()
        if gone is not None and time.monotonic() - gone > LINGER:
            return
        if time.monotonic() - start > seconds:
            raise CheckFailed(f"{name} does not answer within {seconds:g} s")
        silent = 0.0 if ready else silent + tick
        if silent and silent % QUIET < tick:
            print(f"{name}: still running; silent for {silent / 60:.0f} minutes", file=sys.stderr, flush=True)
        for stream in ready:
            if piece := stream.read(PIECE):
                yield stream, piece
            else:
                streams.remove(stream)
