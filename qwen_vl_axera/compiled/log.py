"""The log of `pulsar2 build`: kept beside what the build made, and read for the lines that say something of it."""

import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl_axera.compiled.edges import EDGES
from qwen_vl_axera.compiled.quantized import QUANTIZED
from qwen_vl_axera.compiled.table import TABLE as PRECISION_TABLE
from qwen_vl_axera.compiled.trace import TRACES
from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write

LOG = "build.log"  # below the build's output directory
LEFT = (QUANTIZED, EDGES, PRECISION_TABLE, TRACES)  # what is read of a build besides
LARGEST = 1 << 26  # bytes
LINES, LONGEST = 200_000, 2000  # kept at most; characters of a line

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
SUBGRAPHS = re.compile(r"\bfuse (\d{1,6}) subgraph\(s\)")
CPU = re.compile(r"\bsubgraph \[\d{1,6}\].{0,40}GraphType\.CPU\b")
CYCLES = re.compile(r"\bmax_cycle\s*=\s*([\d,]{1,20})\b")
MACS = re.compile(r"\bQuantAxModel macs:\s*([\d,]{1,20})\b")
STATE = re.compile(r"\b([A-Z][A-Z0-9_]{1,20}):\s*\[(\d{1,9})\]")  # of the census, after its title
CENSUS, TABLE = "Quantization Snapshot", "Layer Config Table"
CELLS = re.compile("[│┃|]")


@dataclass
class Log:
    """What a build said.

    Attributes:
        subgraphs: that the model is made of; 0 where the log does not say.
        cpu: how many of them run on the processor.
        cycles: max_cycle, of all parts on the NPU together; 0 where it is not said.
        macs: the compiler's count of multiply-accumulates; 0 where it is not said.
        states: of tensors -> how many.
        selectors: the compiler's own table of what it read in `layer_configs`: type or layer -> precision.
    """

    subgraphs: int = 0
    cpu: int = 0
    cycles: int = 0
    macs: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    selectors: dict[str, str] = field(default_factory=dict)


def parse_log(lines: Iterable[str]) -> Log:
    """Reads a log; lines that are not known are left alone."""
    log, part = Log(), ""
    for line in lines:
        line = COLOURS.sub("", line)[:LONGEST]
        if found := SUBGRAPHS.search(line):
            log.subgraphs = max(log.subgraphs, int(found[1]))
        log.cpu += bool(CPU.search(line))
        log.cycles += sum(map(_whole, CYCLES.findall(line)))
        log.macs += sum(map(_whole, MACS.findall(line)))
        if CENSUS in line or TABLE in line:
            part = CENSUS if CENSUS in line else TABLE
        elif part == CENSUS and (found := STATE.search(line)):
            log.states = {**log.states, found[1]: int(found[2])}
        elif part == TABLE and len(cells := [cell.strip() for cell in CELLS.split(line) if cell.strip()]) == 2:
            log.selectors |= {} if cells[1].startswith("Precision") else {cells[0]: cells[1]}
        elif part == TABLE and line.strip() and not set(line) & set("│┃|─━-+"):
            part = ""
    return log


def read_log(path: Path) -> Log:
    """Reads a kept log.

    Raises:
        InputError: it is missing, or says nothing that is known.
    """
    log = parse_log(read_bytes(path, LARGEST).decode("utf-8", "replace").splitlines())
    if log == Log():
        raise InputError(f"{path.name} holds none of the known lines (max_cycle, macs, fuse N subgraph(s))")
    return log


@contextmanager
def kept_log(directory: Path) -> Iterator[deque[str]]:
    """Takes away what an earlier build left, so that it is not taken for this one's; then keeps a build's last lines.

    Args:
        directory: the build's output directory.

    Yields:
        A place for the lines; they are written when the build has ended, however it ended.

    Raises:
        InputError: an earlier build's files are another user's.
    """
    for path in [Path(directory) / LOG, *(path for place in LEFT for path in Path(directory).glob(str(place)))]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            remedy = f"remove it: sudo rm -- {shlex.quote(str(path))}"
            raise InputError(f"{path}: left by an earlier build ({error.strerror}); {remedy}") from None
    lines: deque[str] = deque(maxlen=LINES)
    try:
        yield lines
    finally:
        with suppress(OSError, InputError), atomic_write(Path(directory) / LOG, "w") as file:
            file.writelines(f"{line[:LONGEST]}\n" for line in lines)


def _whole(text: str) -> int:
    return min(int(text.replace(",", "") or 0), 10**12)
