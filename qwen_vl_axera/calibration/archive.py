"""The calibration set: samples exactly as the graph's input, their archive and its manifest.

One sample is one temporal step. Samples are made, written and archived one after the other, so memory does not
grow with their number.
"""

import hashlib
import io
import math
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess import CHANNELS, PATCH_SIZE, iter_steps, patch_image_to_picture, patches_shape, to_graph_input
from qwen_vl_axera import progress
from qwen_vl_axera.calibration.manifest import ArchiveFile, Change, Manifest, Sample, read_manifest
from qwen_vl_axera.calibration.sources import Pick, Source, read_frames
from qwen_vl_axera.contract import ARCHIVE, CALIB, CALIB_MANIFEST
from qwen_vl_axera.doors import kind_of, open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import READ_SIZE, sha256_file, write_record
from qwen_vl_axera.memory import check_memory
from qwen_vl_axera.swap import aside, repair_swap, swap_directories, temporary_directory

SAMPLE_BYTES = 16 * CHANNELS  # of a pixel in a patch: as bytes and as float32, in the writer's queue, its two frames
SUFFIXES = {"numpy": ".npy", "image": ".png"}

THUMBNAIL = 16  # pixels per side
# Samples whose thumbnails differ by less than this, on average over 0..255, count as nearly identical. Frames
# 1/10 s apart differ by 0.2 to 1.5; a fixed camera over a busy square differs by more than 2 after a second.
NEAR_DIFFERENCE = 2.0
NEAR_FRACTION = 0.5  # of the samples: from here on the set is called too uniform
NEAR_REACH = 256  # earlier samples that each one is compared with: likeness is a matter of neighbours
PNG_LEVEL = 1  # patch images hardly compress: higher levels cost several times as much for a few per cent


@dataclass(frozen=True)
class CalibrationSet:
    """What was written.

    Attributes:
        archive: the tar file for Pulsar2.
        manifest: where the samples come from.
        warnings: what the user should know about the set.
    """

    archive: Path
    manifest: Manifest
    warnings: list[str]


def make_calibration_set(
    workdir: Path,
    sources: Sequence[Source],
    picks: Sequence[Pick],
    size: tuple[int, int],
    format: str = "numpy",
    patch_size: int = PATCH_SIZE,
) -> CalibrationSet:
    """Writes WORKDIR/calib: the samples, `hidden_states.tar` and `manifest.json`.

    All of it is built in a directory beside it, which takes its place at the end: a run that fails leaves the
    set of the run before as it was.

    Args:
        workdir: an existing directory.
        sources: what is sampled.
        picks: which of their steps.
        size: height and width, multiples of 28.
        format: "numpy": float32 (1, 3, S, 392), 0..255; "image": RGB PNG, 392 wide and S high.
        patch_size: pixels per side.

    Raises:
        InputError: nothing decodes, or `calib` holds something else than a calibration set.
    """
    # A link is kept: the set that it leads to is replaced.
    target = Path(workdir) / CALIB
    if target.is_symlink() and not target.is_dir():
        raise InputError(
            f"{target}: expected a directory or a link to one, found a link to something else; move it away"
        )
    target = target.resolve() if target.is_symlink() else target
    check_replaceable(aside(target))
    repair_swap(target)
    check_replaceable(target)
    for pick in picks:
        for file in sources[pick.source].files(pick.frames):
            if Path(file).resolve().parent == target.resolve():
                raise InputError(f"{file}: lies in {target}, which is replaced: move it to a place of its own")
    check_memory(SAMPLE_BYTES * math.prod(patches_shape(1, size, patch_size)), f"a sample of {size[0]}x{size[1]}")
    building, lock = temporary_directory(target.parent, f".{target.name}.tmp-")
    try:
        samples, thumbnails = _write_samples(building, sources, picks, size, format, patch_size)
        if not samples:
            raise InputError("no calibration sample could be made: the frames chosen do not decode")
        manifest = Manifest(
            format=format,
            size=tuple(size),
            num_samples=len(samples),
            nearly_identical=count_near(thumbnails),
            archive=ArchiveFile(ARCHIVE, (building / ARCHIVE).stat().st_size),
            samples=samples,
        )
        write_record(building / CALIB_MANIFEST, Manifest, manifest)
        building.chmod(0o755)
        swap_directories(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        os.close(lock)
    return CalibrationSet(target / ARCHIVE, manifest, _warnings(manifest, len(picks)))


def _write_samples(
    building: Path,
    sources: Sequence[Source],
    picks: Sequence[Pick],
    size: tuple[int, int],
    format: str,
    patch_size: int,
) -> tuple[list[Sample], list[np.ndarray]]:
    taken: deque[Pick] = deque()  # read, but not yet through the resizing threads
    written: deque[Future[Sample]] = deque()
    samples: list[Sample] = []
    thumbnails: list[np.ndarray] = []
    with (
        open(building / ARCHIVE, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=READ_SIZE) as tar,
        ThreadPoolExecutor(1) as writer,  # one thread: the archive's members come in order
        progress.stage("calibration samples", len(picks), unit="sample") as stage,
    ):
        for patches in iter_steps(read_frames(sources, picks, taken), size, patch_size=patch_size):
            pick = taken.popleft()
            name = f"sample_{len(thumbnails):05d}{SUFFIXES[format]}"
            changes = None
            if not thumbnails:  # the sample that is there whatever calibration_size says
                patches, changes = widen_range(patches)
            thumbnails.append(thumbnail(patches, size))
            source = sources[pick.source]
            written.append(writer.submit(_write_sample, building, tar, name, source, pick, patches, changes))
            if len(written) > 2:  # the disk lags behind: wait instead of holding ever more samples
                samples.append(written.popleft().result())
            stage.advance()
        samples += [future.result() for future in written]
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    return samples, thumbnails


def _write_sample(
    building: Path,
    tar: tarfile.TarFile,
    name: str,
    source: Source,
    pick: Pick,
    patches: np.ndarray,
    changes: list[Change] | None,
) -> Sample:
    """Writes one sample to its file and to the archive."""
    encoded = encode(patches, name)
    with encoded.getbuffer() as data, open(building / name, "wb") as file:
        digest = hashlib.sha256(data).hexdigest()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    member = tarfile.TarInfo(name)  # owner 0, time 0 and mode 0644 are its defaults
    member.size = encoded.seek(0, io.SEEK_END)
    encoded.seek(0)
    tar.addfile(member, encoded)
    tar.members.clear()  # tarfile keeps them all for reading back
    times = source.times(pick.frames)
    timestamps = None if times is None else [round(time, 6) for time in times]
    return Sample(name, source.files(pick.frames), list(pick.frames), timestamps, digest, changes)


def widen_range(patches: np.ndarray) -> tuple[np.ndarray, list[Change] | None]:
    """Takes the darkest red value of a sample to 0 and its brightest blue one to 255.

    The compiler takes the input's range from the archive: with 238 as its brightest value, every brighter pixel on
    the board would be clipped, and the step would be 238/255 instead of 1. Red and blue, because they reach the lowest
    and the highest value once mean and std are applied.

    Args:
        patches: uint8 (S, 392, 3).

    Returns:
        The patches, and what was changed.
    """
    patches, changes = patches.copy(), []
    for channel, find, level in ((0, np.argmin, 0), (2, np.argmax, 255)):
        patch, pixel = np.unravel_index(find(patches[..., channel]), patches.shape[:2])
        place = int(patch), int(pixel), channel
        if patches[place] != level:
            changes.append(Change(place, int(patches[place]), level))
            patches[place] = level
    return patches, changes or None


def restore_range(patches: np.ndarray, changes: Sequence[Change] | None) -> np.ndarray:
    """The inverse of `widen_range`."""
    patches = patches.copy()
    for change in changes or ():
        patches[change.index] = change.before
    return patches


def encode(patches: np.ndarray, name: str) -> io.BytesIO:
    """One sample's file.

    Args:
        patches: uint8 (S, 392, 3).
        name: of the file. `.npy` holds float32 (1, 3, S, 392), 0..255; `.png` is RGB, 392 wide and S high.
    """
    buffer = io.BytesIO()
    if name.endswith(SUFFIXES["numpy"]):
        np.save(buffer, to_graph_input(patches), allow_pickle=False)
    else:
        Image.fromarray(patches).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer


def thumbnail(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A step's first frame, uint8 (16, 16, 3), for comparisons."""
    picture = patch_image_to_picture(patches, *size)
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def count_near(thumbnails: Sequence[np.ndarray]) -> int:
    """How many samples are nearly identical to an earlier one.

    Args:
        thumbnails: uint8 (16, 16, 3) each, in the samples' order.
    """
    if not thumbnails:
        return 0
    flat = np.stack(thumbnails).reshape(len(thumbnails), -1).astype(np.int16)
    near = 0
    for index in range(1, len(flat)):
        earlier = flat[max(0, index - NEAR_REACH) : index]
        near += bool(np.abs(earlier - flat[index]).mean(axis=1).min() < NEAR_DIFFERENCE)
    return near


def _warnings(manifest: Manifest, picked: int) -> list[str]:
    made, near = manifest.num_samples, manifest.nearly_identical
    warnings = []
    if made < picked:
        warnings.append(f"{picked - made} of {picked} samples fell on frames that do not decode and were left out")
    if near and near >= NEAR_FRACTION * made:
        warnings.append(
            f"{near} of {made} samples are nearly identical to an earlier one: ranges measured on them will not "
            "fit other scenes; add other videos or pictures (--inputs A B ...)"
        )
    return warnings


def check_replaceable(target: Path) -> None:
    """Makes sure that nothing but an earlier calibration set would be replaced.

    Raises:
        InputError: `target` is no directory, or holds other files.
    """
    if not target.is_dir():
        if os.path.lexists(target):
            raise InputError(f"{target}: expected a directory, found {kind_of(os.lstat(target).st_mode)}; move it away")
        return
    files = sorted(target.iterdir())
    strange = [path for path in files if path.is_symlink() or not path.is_file()]
    if strange:
        raise InputError(f"{strange[0]}: expected a file of a calibration set, found something else; move it away")
    try:
        manifest = read_manifest(target) if files else None
    except InputError:
        manifest = None
    samples = {sample.file: sample.sha256 for sample in manifest.samples} if manifest else {}
    for path in files:
        if path.name == ARCHIVE:
            ours = _members(path) == list(samples.items())
        else:
            ours = path.name == CALIB_MANIFEST if path.name not in samples else sha256_file(path) == samples[path.name]
        if not (ours and manifest):
            raise InputError(f"{target}: holds {path.name!r}, which is not of a calibration set; move it away")


def _members(archive: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of each member of a tar file; none of another file."""
    with suppress(tarfile.TarError, OSError, EOFError), open_file(archive) as file, tarfile.open(fileobj=file) as tar:
        return [
            (member.name, hashlib.file_digest(data, "sha256").hexdigest())
            for member in tar
            if (data := tar.extractfile(member)) is not None
        ]
    return []
