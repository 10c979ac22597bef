"""Preflight: the calibration archive, read member by member as the compiler will, nothing unpacked."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from preprocess import MEAN, STD, patch_side, patches_shape
from qwen_vl_axera.calibration.archive import NEAR_FRACTION, count_near, thumbnail
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.media import open_picture
from qwen_vl_axera.memory import check_memory
from qwen_vl_axera.preflight.checks import Check

CALIBRATE_AGAIN = "run get_calib.py again"
DECODED = 4  # times a member's size: its bytes, its values, what is made of them for looking at
LEVELS = 255
SLACK = 1e-3  # beyond the exact range of normalised values: float32 rounding


@dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
        format: "numpy" or "image".
        num_samples: members.
        shape: of each as the graph's input, (1, 3, S, 392).
        minimum, maximum: over all samples.
        values: what the range says the samples hold: "pixels", "normalized", "unit" (0..1) or "other".
        near: samples that nearly repeat an earlier one, or None where the picture's size is unknown.
    """

    format: Literal["numpy", "image"]
    num_samples: int
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    values: str
    near: int | None


def read_archive(path: Path, size: tuple[int, int] | None = None) -> Archive:
    """Reads every member of a tar archive.

    Args:
        path: the archive.
        size: height and width of the pictures behind the patch images; None: diversity is not looked at.

    Raises:
        InputError: no tar file, or a member is none of the compiler's: in a directory, a link, broken, pickled,
            of another dtype or shape than the others, NaN or infinite.
    """
    shapes: dict[tuple[str, tuple[int, ...]], str] = {}
    low, high, thumbnails, count = np.inf, -np.inf, [], 0
    known = size is not None
    for values, name, kind in iter_samples(path):
        shapes.setdefault((kind, values.shape), name)
        if len(shapes) > 1:
            break  # said below, and no more of it is read
        low, high, count = min(low, float(values.min())), max(high, float(values.max())), count + 1
        _, _, *patches = values.shape
        if known and (1, *patches, 3) == patches_shape(1, size, patch_side(patches[1])):
            thumbnails.append(thumbnail(as_pixels(values), size))
        elif known:
            break  # of another size than the graph: said by `archive_checks`, and no more of it is read
    if not count:
        raise InputError(f"{path}: holds no sample")
    if len(shapes) > 1:
        found = ", ".join(f"{name} is {kind} {list(shape)}" for (kind, shape), name in list(shapes.items())[:3])
        raise InputError(f"{path}: samples differ: {found}")
    ((kind, shape),) = shapes
    near = count_near(thumbnails) if len(thumbnails) == count else None
    return Archive(kind, count, shape, low, high, _kind_of_values(low, high), near)


def iter_samples(path: Path) -> Iterator[tuple[np.ndarray, str, str]]:
    """The members of a tar archive, one at a time.

    Yields:
        float32 (1, 3, S, 392), the member's name, and its format: "numpy" or "image".

    Raises:
        InputError: as `read_archive`.
    """
    try:
        # "r:": not compressed, as get_calib.py writes it; a few compressed bytes would unpack into any number.
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            seen = set()
            for member in tar:
                tar.members.clear()  # tarfile keeps them all
                if (name := member.name.removeprefix("./")) in seen:
                    raise InputError(f"{name!r} is in the archive twice: unpacked, one replaces the other")
                seen.add(name)
                values, kind = _read_member(tar, member)
                yield values, member.name, kind
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except Exception as error:  # whatever damaged headers lead tarfile to
        raise InputError(f"{path}: not a readable tar archive ({error})") from None


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[np.ndarray, str]:
    """A member as float32 (1, 3, S, 392) and its format."""
    name = member.name
    if not member.isfile():
        raise InputError(f"{name!r} is no file; samples lie at the root of the archive")
    if "/" in name.removeprefix("./") or name.startswith(("/", "..")):
        raise InputError(f"{name!r} does not lie at the root of the archive")
    if not name.endswith((".npy", ".png")):
        raise InputError(f"{name!r} is no sample: expected .npy or .png")
    if member.issparse():
        raise InputError(f"{name!r} is a sparse file; get_calib.py writes none")
    check_memory(DECODED * member.size, name)
    data = io.BytesIO(tar.extractfile(member).read())
    return (_numpy(name, data), "numpy") if name.endswith(".npy") else (_image(name, data), "image")


def _numpy(name: str, data: io.BytesIO) -> np.ndarray:
    try:
        values = np.load(data, allow_pickle=False)
    except Exception:  # whatever hostile bytes lead numpy's reader to; its words advise to allow pickles
        raise InputError(f"{name}: not a plain array") from None
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        raise InputError(f"{name} is {getattr(values, 'dtype', 'no array')}, the graph's input is float32")
    if values.ndim != 4 or values.shape[:2] != (1, 3) or not values.size:
        raise InputError(f"{name} has shape {list(values.shape)}, expected (1, 3, S, 392)")
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite values")
    return values


def _image(name: str, data: io.BytesIO) -> np.ndarray:
    with open_picture(data, name) as picture:
        if picture.mode != "RGB":
            raise InputError(f"{name} is {picture.mode}, expected RGB of 8 bits")
        pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def _kind_of_values(low: float, high: float) -> str:
    mean, std = np.array(MEAN), np.array(STD)
    if low >= 0 and high <= 1:
        return "unit" if high > 0 else "other"
    if low >= 0 and high <= LEVELS:
        return "pixels"
    if low >= (-mean / std).min() - SLACK and high <= ((1 - mean) / std).max() + SLACK:
        return "normalized"
    return "other"


def as_pixels(values: np.ndarray) -> np.ndarray:
    """A sample as uint8 (S, 392, 3) for looking."""
    patches = values[0].transpose(1, 2, 0)
    if patches.min() < 0:
        patches = (patches * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * LEVELS
    return np.clip(np.rint(patches), 0, LEVELS).astype(np.uint8)


def archive_checks(archive: Archive, contract: str, expected: tuple[int, ...] | None, path: Path) -> Iterator[Check]:
    """The samples against the graph.

    Args:
        archive: from `read_archive`.
        contract: what the graph's input holds, "pixels" or "normalized".
        expected: shape of the graph's input; None when there is no graph.
        path: the archive, for messages.
    """
    kind = f"{archive.num_samples} {archive.format} samples of {list(archive.shape)}"
    if expected is not None and archive.shape != tuple(expected):
        detail = f"{kind}, the graph takes {list(expected)}"
        if archive.format == "image":
            detail += ": the tool would resize them silently, and scramble the patches"
        yield Check("archive samples", "failed", detail, f"{CALIBRATE_AGAIN}, with the graph's --size")
    else:
        yield Check("archive samples", "ok", f"{path.name}: {kind}")

    bounds = f"{archive.minimum:g} to {archive.maximum:g}"
    wanted = "pixels" if archive.format == "image" else contract
    if archive.minimum == archive.maximum:
        yield Check("archive values", "failed", f"every value is {archive.minimum:g}", CALIBRATE_AGAIN)
    elif archive.values == wanted:
        yield Check("archive values", "ok", f"{bounds}: {wanted}")
        if wanted == "pixels" and (archive.minimum, archive.maximum) != (0, LEVELS):
            detail = (
                f"the samples reach {bounds}: the compiler takes the input's range from them, so pixels beyond are "
                f"clipped on the board, and a step of the input is {(archive.maximum - archive.minimum) / LEVELS:.3g}"
            )
            yield Check("archive range", "warning", detail, f"{CALIBRATE_AGAIN}: it makes the range 0 to {LEVELS}")
    else:
        found = {"unit": "0..1, not 0..255", "other": "neither pixels nor normalised values"}
        detail = f"{bounds}: {found.get(archive.values, archive.values)}; the graph was exported for {contract}"
        yield Check("archive values", "failed", detail, f"{CALIBRATE_AGAIN}, or export.py --input")

    if archive.near is None:
        yield Check(
            "archive diversity", "warning", "not looked at: the pictures' size is unknown", "run export.py first"
        )
    elif archive.near and archive.near >= NEAR_FRACTION * archive.num_samples:
        detail = f"{archive.near} of {archive.num_samples} samples nearly repeat an earlier one"
        yield Check(
            "archive diversity", "warning", detail, "add other videos and pictures: get_calib.py --inputs A B ..."
        )
    else:
        yield Check("archive diversity", "ok", f"{archive.near} of {archive.num_samples} nearly repeat an earlier one")
