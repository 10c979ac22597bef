"""`calib/manifest.json`: what a calibration set holds, and where each sample comes from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from preprocess import MERGE_SIZE, TEMPORAL_PATCH_SIZE, check_size
from qwen_vl_axera.contract import CALIB_MANIFEST
from qwen_vl_axera.files import read_record
from qwen_vl_axera.record import Amount, Count, Positive, Sha256, Text, record

MADE_BY = "get_calib.py"


@record
class Change:
    """A value of a sample that is not the frame's, so that the set's range is that of pixels.

    Attributes:
        index: patch, pixel within it and channel, of uint8 (S, 392, 3).
        before, after: the frame's value, and the sample's.
    """

    index: tuple[Count, Count, Count]
    before: Count
    after: Count


@record
class Sample:
    """One sample.

    Attributes:
        file: its name, beside the manifest and in the archive.
        source: the file or files that its frames come from.
        frames: their numbers there, from 0; twice the same for a still.
        timestamps: of the frames in seconds; None where time has no meaning.
        sha256: of the file.
        range: what was changed in it; None: nothing.
    """

    file: Annotated[str, Field(pattern=r"^[^/\\\x00]+\.(npy|png)$")]
    source: Annotated[list[Text], Field(min_length=1)]
    frames: Annotated[list[Count], Field(min_length=TEMPORAL_PATCH_SIZE, max_length=TEMPORAL_PATCH_SIZE)]
    timestamps: list[Amount] | None
    sha256: Sha256
    range: list[Change] | None = None


@record
class ArchiveFile:
    """The archive: its name beside the manifest, and its size in bytes."""

    file: Text
    bytes: Positive


@record
class Manifest:
    """`calib/manifest.json`.

    Attributes:
        format: "numpy" or "image".
        size: height and width in pixels.
        num_samples: how many.
        nearly_identical: those that nearly repeat an earlier one.
        archive: the tar file.
        samples: in the archive's order.

    Raises:
        ValueError: a field is of another type or out of range, or two contradict each other.
    """

    format: Literal["numpy", "image"]
    size: tuple[Positive, Positive]
    num_samples: Positive
    nearly_identical: Count
    archive: ArchiveFile
    samples: list[Sample]

    def __post_init__(self):
        check_size(*self.size, MERGE_SIZE)
        if self.num_samples != len(self.samples):
            raise ValueError(f"num_samples is {self.num_samples}, samples holds {len(self.samples)}")
        if self.nearly_identical >= self.num_samples:
            raise ValueError(f"nearly_identical is {self.nearly_identical} of {self.num_samples}")


def read_manifest(directory: Path) -> Manifest:
    """The manifest in a calibration set's directory.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(Path(directory) / CALIB_MANIFEST, Manifest, MADE_BY)
