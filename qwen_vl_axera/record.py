"""The JSON records that the steps hand each other: a class each, in the package that writes them.

`files.write_record` and `files.read_record` both go through a record's class, so its writer and its readers cannot
disagree.
"""

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")

# An unknown field is refused: it is a misspelt one, or of a release that means something else by the rest.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

LARGEST = 2**53  # every whole number up to it is also a float

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass_transform(frozen_default=True)
def record(kind: type[T]) -> type[T]:
    """Makes a class a record: a frozen dataclass whose fields are checked, types included, without conversions.

    A field whose default is None is left out of the JSON where it is None.
    """
    return dataclass(frozen=True, config=STRICT)(kind)
