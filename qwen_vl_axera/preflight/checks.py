"""A check's outcome, the table of many, and their record, `preflight.json`."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from qwen_vl_axera.board.costs import Costs
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import read_record
from qwen_vl_axera.record import Text, record

Status = Literal["ok", "warning", "failed"]
MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}
WIDTH = 110  # characters of a line
SHOWN = 3  # names in a message


@record
class Check:
    """One line of the table.

    Attributes:
        name: what was looked at.
        status: "ok", "warning" (the build may start) or "failed" (it must not).
        detail: what was found.
        remedy: what to do; empty when nothing is.
    """

    name: Text
    status: Status
    detail: str
    remedy: str = ""


@record
class Outcome:
    """`preflight.json`, and what `preflight.py --json` prints.

    Attributes:
        passed: no check failed.
        checks: in the order in which they were made.
        board: what this model will cost on the board, and what it would in other forms and with other clips.
    """

    passed: bool
    checks: list[Check]
    board: list[Costs] = field(default_factory=list)

    @classmethod
    def of(cls, checks: Iterable[Check], board: Sequence[Costs] = ()) -> "Outcome":
        checks = list(checks)
        return cls(all(check.status != "failed" for check in checks), checks, list(board))

    def __post_init__(self):
        if self.passed != all(check.status != "failed" for check in self.checks):
            raise ValueError(f"passed is {self.passed}, its checks say otherwise")


def read_outcome(path: Path) -> Outcome:
    """Reads `preflight.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(path, Outcome, "preflight.py")


def guarded(name: str, remedy: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks that a function yields, closed by a failed one where it cannot go on.

    Files from elsewhere can be malformed in more ways than anyone expects, and the table must still come.
    """
    try:
        yield from check()
    except (InputError, CheckFailed) as error:
        yield Check(name, "failed", str(error), remedy)
    except OSError as error:
        yield Check(name, "failed", f"{error.filename or name}: {error.strerror or error}", remedy)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        yield Check(name, "failed", f"malformed ({type(error).__name__}: {error})", remedy)


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def table(checks: Iterable[Check]) -> str:
    """The checks for a terminal, the remedy below each one that is not ok."""
    lines = []
    for check in checks:
        first = f"{MARKS[check.status]:<8}{check.name:<22} "
        indent = " " * len(first)
        lines += textwrap.wrap(first + check.detail, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        if check.remedy and check.status != "ok":
            lines += textwrap.wrap(
                f"{indent}-> {check.remedy}", WIDTH, subsequent_indent=f"{indent}   ", break_on_hyphens=False
            )
    return "\n".join(lines)
