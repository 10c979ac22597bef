"""`steps.json`: what each step of the chain took."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_record, write_record
from qwen_vl_axera.record import Amount, Count, Text, record


@record
class StepCost:
    """An entry of `steps.json`.

    Attributes:
        name: the step's.
        seconds: that it took.
        peak_bytes: of memory.
        returncode: of its command; -N when signal N ended it.
        command: the words of its command line.
        skipped: its outputs were up to date: the other figures are those of the run that made them.
    """

    name: Text
    seconds: Amount
    peak_bytes: Count
    returncode: int
    command: Annotated[list[str], Field(min_length=1)]
    skipped: bool


def read_steps(path: Path) -> list[StepCost]:
    """Reads `steps.json`, in the order of the run.

    Raises:
        InputError: it is missing or not such a list.
    """
    return read_record(path, list[StepCost], "export_video.sh")


def add_step(path: Path, cost: StepCost) -> None:
    """Adds a step's entry to `steps.json`, in place of its earlier one; an unusable file is begun anew."""
    try:
        others = [entry for entry in read_steps(path) if entry.name != cost.name]
    except InputError:
        others = []
    write_record(path, list[StepCost], [*others, cost])
