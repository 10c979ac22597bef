"""A tool's process: its two streams as they come, bounded and harmless to show, and its end, whatever it does."""

import codecs
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TextIO

from qwen_vl_axera.doors import printable

GRACE = 10  # seconds from SIGTERM to SIGKILL
LINGER = 2  # seconds for the streams of a tool that has ended: what it left running may hold them for ever
TICK = 0.5  # seconds between two looks at a silent tool
PIECE = 1 << 16  # bytes read at a time
LONGEST = 2000  # characters of a line that are looked at: a tool may never end one
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Shown:
    """A stream of a tool on one of our own, without what steers a terminal; a carriage return may redraw a line.

    Args:
        target: `sys.stdout` or `sys.stderr`.

    Attributes:
        begun: the line that has no end yet.
    """

    def __init__(self, target: TextIO):
        self.target, self.begun = target, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self, piece: bytes) -> list[str]:
        """Shows a piece; returns the lines that it ends, or the ends of long ones."""
        text = printable(COLOURS.sub("", self._decoder.decode(piece)), "\t\n\r")
        self._write(text)
        *ended, begun = (self.begun + text).replace("\r", "\n").split("\n")
        self.begun = begun[-LONGEST:]
        return [line[-LONGEST:] for line in ended]

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


def pieces(process: subprocess.Popen, patience: float) -> Iterator[tuple[IO[bytes] | None, bytes]]:
    """What a tool writes to both its streams, as it comes, until they end; (None, b"") after some seconds of silence.

    Args:
        process: with both streams piped.
        patience: seconds.
    """
    heard, gone, tick = time.monotonic(), None, min(TICK, patience)
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(tick)
            now = time.monotonic()
            if gone is None and process.poll() is not None:
                gone = now
            if gone is not None and now - gone > LINGER:
                return
            if ready or now - heard >= patience:
                heard = now
            if not ready and heard == now:
                yield None, b""
            for key, _ in ready:
                if piece := key.fileobj.read(PIECE):
                    yield key.fileobj, piece
                else:
                    selector.unregister(key.fileobj)
