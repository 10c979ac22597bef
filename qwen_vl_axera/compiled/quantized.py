"""`quant/quant_axmodel.json` of a build: in which width, and with which scale, each operator takes each tensor.

The form is that which seven public readers agree on: operator -> tensor -> entry under `tensor_configs` (`configs` in
older releases); an entry's scale stands in `values` under its `hash`, or else under its `dominator`. Tensors that a
fusion took away keep entries that mean nothing: see `edges`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError

QUANTIZED = Path("quant") / "quant_axmodel.json"  # below the build's output directory
TABLES = ("tensor_configs", "configs")
LARGEST = 1 << 29  # bytes
ACTIVE = ("ACTIVATED", "OVERLAPPED", "SOI")  # states of what is computed, not stored
CONSTANT = ("BAKED", "PASSIVE_BAKED")
FLOAT = "FP32"  # of tensors that stay as they are
WIDTHS = (8, 16, 32)


@dataclass(frozen=True)
class Entry:
    """How an operator takes a tensor.

    Attributes:
        bits: of a value; 32 where it stays in float.
        signed: whether codes are.
        state: the compiler's word for its part, such as "ACTIVATED", "OVERLAPPED" or "BAKED".
        scale, zero_point: one value, or one for each channel; empty where the file has none.
    """

    bits: int
    signed: bool
    state: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[float, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether its scale can be one; that of a tensor of zeros may be 0."""
        return all(math.isfinite(value) and value >= 0 for value in self.scale)


@dataclass(frozen=True)
class Quantized:
    """The file.

    Attributes:
        operators: operator -> tensor -> entry, fused-away tensors included.
        names: of all operators, those without tensors included.
        selectors: what the compiler made of `layer_configs`: operator type or layer -> data type.
        strange: entries that could not be read.
    """

    operators: Mapping[str, Mapping[str, Entry]]
    names: frozenset[str]
    selectors: Mapping[str, str] = field(default_factory=dict)
    strange: int = 0


def read_quantized(path: Path) -> Quantized:
    """Reads the file; what is strange in single entries is counted and left out.

    Raises:
        InputError: it is missing, no JSON, or none of the known forms; the message says what was looked for.
    """
    try:
        raw = json.loads(read_bytes(path, LARGEST))  # a scale of NaN must not hide the widths
    except (ValueError, RecursionError):
        raise InputError(f"{path.name} is no JSON (half-written?)") from None
    table = next((raw[name] for name in TABLES if isinstance(raw, dict) and isinstance(raw.get(name), dict)), None)
    if not table:
        raise InputError(f"no tensors under {' or '.join(TABLES)} in {path.name}")
    values, found, strange = _object(raw, "values"), {}, 0
    for operator, tensors in _items(table):
        entries = {name: _entry(entry, values) for name, entry in _items(tensors)}
        found[operator] = {name: entry for name, entry in entries.items() if entry is not None}
        strange += len(entries) - len(found[operator])
    selectors = {
        name: ascii(entry["dtype"])[:20].strip("'")
        for name, entry in _items(_object(raw, "quant_config").get("mix_precision_configs"))
        if isinstance(entry, dict) and "dtype" in entry
    }
    names = frozenset({*found, *(name for name, _ in _items(raw.get("dispatchings")))})
    return Quantized(found, names, selectors, strange)


def _entry(raw: Any, values: dict[str, Any]) -> Entry | None:
    if not isinstance(raw, dict) or not isinstance(state := raw.get("state"), str):
        return None
    bits = 32 if state == FLOAT else raw.get("bit_width")
    if bits not in WIDTHS or isinstance(bits, bool):
        return None
    least = raw.get("quant_min")
    signed = isinstance(least, int | float) and least < 0
    keys = (str(raw.get(name)) for name in ("hash", "dominator"))
    value = next((values[key] for key in keys if isinstance(values.get(key), dict)), {})
    return Entry(bits, signed, state, _numbers(value.get("scale")), _numbers(value.get("zero_point")))


def _numbers(raw: Any) -> tuple[float, ...]:
    raw = raw if isinstance(raw, list) else [raw]
    return tuple(float(value) if abs(value) < 1e300 else math.inf for value in raw if isinstance(value, int | float))


def _object(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return raw[name] if isinstance(raw.get(name), dict) else {}


def _items(raw: Any) -> Iterator[tuple[str, Any]]:
    for name, value in raw.items() if isinstance(raw, dict) else ():
        yield name.encode("utf-8", "replace").decode(), value  # half a character could not be written again
