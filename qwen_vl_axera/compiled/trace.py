"""`compiler/debug/subgraph_npu_0/b1/trace.json` of a build with npu_perf: where the modelled time goes.

Engines work in parallel, so the cycles of all events add up to more than the model takes: that is the span, from the
start to the end of the last event. Times are in thousands of cycles.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_vl_axera.compiled.record import Profile
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError

TRACES = "compiler/debug/subgraph_npu_*/b*/trace.json"  # below the build's output directory
LARGEST = 1 << 30  # bytes; it is read in pieces, at some 40 MB a second
PIECE, LONGEST = 1 << 20, 1 << 22  # bytes read at a time; of one event
UNIT, LARGEST_SUM = 1000, 10**15  # cycles
EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
BETWEEN = re.compile(r"[\s,]*")
FUSED = re.compile(r"^op_\d+:(?:onnx\.)?(?:Ax)?((?:pre_)?[A-Za-z]+)")  # names that the compiler's own passes give
WEIGHTS, MOVES, OTHER = "weights", "load and store", "other"
KINDS = 64  # told apart at most


def read_trace(path: Path, kinds: Mapping[str, str]) -> Profile:
    """Sums a trace up, in memory that does not grow with it.

    Args:
        path: the file.
        kinds: name of an operator or a tensor -> the operator's type.

    Raises:
        InputError: it is missing, too large, or no such trace.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > LARGEST:
        raise InputError(f"{path.name} has {size >> 20} MB, more than {LARGEST >> 20} are not read")
    busy: Counter[str] = Counter()
    engines: Counter[str] = Counter()
    known: dict[str, str] = {}
    span = 0.0
    for event in _events(path):
        start, length = event.get("ts"), event.get("dur")
        if not (_amount(start) and _amount(length)) or event.get("ph", "X") != "X":
            continue
        name = str(event.get("name", ""))
        if name not in known:
            if len(known) > 1 << 20:
                known.clear()
            known[name] = _kind(name, event.get("args"), kinds)
        busy[known[name]] += length * UNIT
        engines[ascii(event.get("tid"))[:20].strip("'")] += length * UNIT
        span = max(span, (start + length) * UNIT)
    if not busy:
        raise InputError(f"{path.name} holds no events with ts and dur under traceEvents")
    sums = ({name: min(round(n), LARGEST_SUM) for name, n in of.most_common(KINDS)} for of in (busy, engines))
    return Profile(round(span), *sums)


def _kind(name: str, arguments: Any, kinds: Mapping[str, str]) -> str:
    purpose = str(arguments.get("cname", "")) if isinstance(arguments, dict) else ""
    if "param" in purpose or "xxh128" in name.lower():
        return WEIGHTS
    if name.startswith(("ld:", "st:")) or purpose.startswith(("ld:", "st:")):
        return MOVES
    if found := FUSED.match(name):
        return found[1]
    while name not in kinds and "_" in name:  # numbers of its tiles stand behind an operator's name
        name = name.rpartition("_")[0]
    return kinds.get(name, OTHER)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in `traceEvents`, one after the other; a file that ends within one ends there."""
    decoder, text, begun = json.JSONDecoder(), "", False
    with open_file(path) as file:
        head = b""
        while piece := file.read(PIECE):
            if not begun:
                head += piece
                found = EVENTS.search(head)
                begun, piece = bool(found), head[found.end() :] if found else b""
                if not begun and len(head) > LONGEST:
                    return
            text += piece.decode("utf-8", "replace")
            place = BETWEEN.match(text).end()
            while text.startswith("{", place):
                try:
                    event, place = decoder.raw_decode(text, place)
                except (ValueError, RecursionError):
                    break
                place = BETWEEN.match(text, place).end()
                yield event
            text = text[place:]
            if text.startswith("]") or len(text) > LONGEST:
                return


def _amount(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 1e12
