"""A fault at every write and rename of the writers: what has a name is the old one or the new one, and nothing is left.

Each writer runs once to count its calls, then once for every call (of a package every few) with the fault there:
killed (in a process of its own), no space, an input or output error.
"""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen_vl_axera import files, swap
from qwen_vl_axera.board.package import assemble
from qwen_vl_axera.calibration.archive import make_calibration_set
from qwen_vl_axera.calibration.sources import open_inputs, pick_steps
from qwen_vl_axera.checkpoint.embedding import extract_embedding
from qwen_vl_axera.checkpoint.tensors import Checkpoint

CALLS = ("replace", "rename", "fsync", "fdopen", "chmod", "unlink")  # of os, where a writer may be caught
MOST = 20  # faults a writer; a package makes more calls than that, and each of them waits for the disk
ERRORS = {"no space": errno.ENOSPC, "input/output error": errno.EIO}


def json_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    files.write_json(place / "x.json", {"new": new})


def array_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    files.write_array(place / "x.npy", np.full(9999, new))


def calibration_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    sources, _ = open_inputs([frames])
    make_calibration_set(place, sources, pick_steps(sources, 1 + new), (56, 56))


def linked_calibration_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    if not (place / "calib").exists():
        (place / "elsewhere").mkdir()
        (place / "calib").symlink_to("elsewhere")
    calibration_writer(place, checkpoint, frames, new)


def embedding_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    name = "bfloat16" if new else "float32"
    extract_embedding(Checkpoint(checkpoint), place, name)


def package_writer(place: Path, checkpoint: Path, frames: Path, new: bool) -> None:
    """The embeddings are there before: they are a step's of their own."""
    out = place / "out"
    out.mkdir(exist_ok=True)
    (out / f"{checkpoint.name}_vision_308x308.axmodel").write_bytes(b"x")
    if not (out / "model.embed_tokens.weight.bfloat16.bin").exists():
        extract_embedding(Checkpoint(checkpoint), out)
    assemble(Checkpoint(checkpoint), out, place, 128 if new else 512)


WRITERS = (json_writer, array_writer, calibration_writer, linked_calibration_writer, embedding_writer, package_writer)


class Fault:
    """Counts the calls of os' functions, and does something at one of them."""

    def __init__(self, monkeypatch, at: int | None = None, act=None):
        self.count = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name), at, act))
        monkeypatch.setattr(swap, "exchange", self.wrapped(swap.exchange, at, act))

    def wrapped(self, function, at, act):
        def call(*args, **kwargs):
            self.count += 1
            if act is not None and self.count == at:
                act()
            return function(*args, **kwargs)

        return call


def state(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and ".tmp" not in path.as_posix()
    }


def raising(number: int):
    def act():
        raise OSError(number, os.strerror(number))

    return act


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("fault", ["kill", *ERRORS])
def test_a_fault_anywhere(writer, fault, tiny_dir, frames_dir, tmp_path):
    """Also: the run after it ends well, and clears what the killed one left."""
    new = tmp_path / "new"
    new.mkdir()
    writer(new, tiny_dir, frames_dir, False)
    old = state(new)
    with pytest.MonkeyPatch.context() as patch:
        counting = Fault(patch)
        writer(new, tiny_dir, frames_dir, True)
    assert counting.count >= 3
    after = state(new)
    for at in range(1, counting.count + 1, -(-counting.count // MOST)):
        place = tmp_path / f"{at}"
        place.mkdir()
        writer(place, tiny_dir, frames_dir, False)
        if fault == "kill":
            if not (child := os.fork()):
                Fault(pytest.MonkeyPatch(), at, lambda: os._exit(9))
                writer(place, tiny_dir, frames_dir, True)
                os._exit(0)
            os.waitpid(child, 0)
        else:
            with pytest.MonkeyPatch.context() as patch:
                Fault(patch, at, raising(ERRORS[fault]))
                try:
                    writer(place, tiny_dir, frames_dir, True)
                except OSError as error:
                    assert error.errno == ERRORS[fault]
        now = state(place)
        assert now in (old, after) or (writer is package_writer and "out/manifest.json" not in now), (at, sorted(now))
        writer(place, tiny_dir, frames_dir, True)
        assert state(place) == after
        left = [path.name for path in place.rglob("*") if ".tmp" in path.name or ".replaced" in path.name]
        assert not left, (at, left)


def test_a_file_system_that_exchanges_nothing(tmp_path, monkeypatch):
    """Two renames then, and a kill between them is repaired by the next run."""
    monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    target, building = tmp_path / "calib", tmp_path / "calib.tmp-1"
    for path in (target, building):
        path.mkdir()
        (path / "name").write_text(path.name)
    swap.swap_directories(building, target)
    assert (target / "name").read_text() == "calib.tmp-1"
    assert os.listdir(tmp_path) == ["calib"]
    os.rename(target, tmp_path / ".calib.replaced")  # killed just then
    swap.repair_swap(target)
    assert (target / "name").read_text() == "calib.tmp-1"


def test_a_temporary_file_in_use_is_left_alone(tmp_path):
    with files.atomic_write(tmp_path / "x") as outer:
        outer.write(b"outer")
        files.write_json(tmp_path / "x", json.loads("[]"))
    assert (tmp_path / "x").read_bytes() == b"outer"
    (tmp_path / ".x.deadbeef.tmp").write_bytes(b"left by a killed run")
    files.write_json(tmp_path / "x", [])
    assert os.listdir(tmp_path) == ["x"]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks and exchanges of Linux")
