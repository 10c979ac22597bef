"""`quant/debug/precision_analysis_table.txt` of a build: the compiler's own comparison, layer by layer.

It says little of the whole: where it compares layer by layer, .9995 stood beside .01 from end to end in a public case.
"""

import re
from pathlib import Path

from qwen_vl_axera.compiled.record import Lowest
from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import InputError

TABLE = Path("quant") / "debug" / "precision_analysis_table.txt"  # below the build's output directory
LARGEST = 1 << 26  # bytes
TITLE = re.compile("【([^】]{1,60})】")
COLUMNS = ("Operator", "Cosin")


def read_table(path: Path) -> Lowest:
    """The operator with the lowest cosine.

    Raises:
        InputError: the file is missing, or no such table.
    """
    text = read_bytes(path, LARGEST).decode("utf-8", "replace")
    rows: list[list[str]] = []
    for line in text.splitlines():
        if not line.lstrip().startswith(("│", "┃")):
            continue
        cells = [cell.strip() for cell in re.split("[│┃]", line.strip())[1:-1]]
        if rows and len(cells) == len(rows[-1]) and not all(cells):  # a cell too long for its column goes on here
            rows[-1] = [one + more for one, more in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    head = next((row for row in rows if all(name in row for name in COLUMNS)), [])
    if not head:
        raise InputError(f"{path.name} has no columns {' and '.join(COLUMNS)}")
    operator, cosine = map(head.index, COLUMNS)
    found = []
    for row in rows:
        try:
            found.append((float(row[cosine]), row[operator]))
        except (ValueError, IndexError):
            continue
    found = [entry for entry in found if abs(entry[0]) <= 1.001]
    if not found:
        raise InputError(f"{path.name} has no row with a cosine")
    title = TITLE.search(text)
    value, name = min(found)
    return Lowest(title[1] if title else "not said", len(found), name[:200] or "?", value)
