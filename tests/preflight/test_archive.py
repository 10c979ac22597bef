"""Calibration archives that would mislead the compiler, each found by its own check."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from preprocess import MEAN, STD, normalize
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.preflight.archive import read_archive
from tests.conftest import ROOT
from tests.preflight.state import (
    SAMPLES,
    SIZE,
    as_npy,
    encoded,
    numbered,
    pack,
    samples,
    truncate,
)


def every(change):
    return lambda state: pack(state.archive, numbered(change(sample) for sample in samples()))


def with_member(name, data):
    return lambda state: pack(state.archive, numbered(samples()) | {name: data})


GOOD = encoded(next(samples()))

NAN = next(samples())
NAN[0, 1, 7, 9] = np.nan

BROKEN_ARCHIVES = {
    "missing": (lambda state: state.archive.unlink(), "archive", "is missing"),
    "empty file": (lambda state: state.archive.write_bytes(b""), "archive", "not a readable tar archive"),
    "no members": (lambda state: pack(state.archive, {}), "archive", "holds no sample"),
    "truncated": (lambda state: truncate(state.archive, 5000), "archive", "not a readable tar archive"),
    "noise": (lambda state: state.archive.write_bytes(os.urandom(4096)), "archive", "not a readable tar archive"),
    "directory": (with_member("calib/x.npy", GOOD), "archive", "does not lie at the root"),
    "climbing": (with_member("../x.npy", GOOD), "archive", "does not lie at the root"),
    "absolute": (with_member("/x.npy", GOOD), "archive", "does not lie at the root"),
    "link": (with_member("x.npy", (tarfile.SYMTYPE, "/etc/passwd")), "archive", "is no file"),
    "hard link": (with_member("x.npy", (tarfile.LNKTYPE, "000.npy")), "archive", "is no file"),
    "device": (with_member("x.npy", (tarfile.CHRTYPE, "")), "archive", "is no file"),
    "subdirectory": (with_member("x", (tarfile.DIRTYPE, "")), "archive", "is no file"),
    "twice": (with_member("./000.npy", GOOD), "archive", "is in the archive twice"),
    "foreign file": (with_member("manifest.json", b"{}"), "archive", "is no sample"),
    "pickle": (with_member("x.npy", pickle.dumps([1, 2])), "archive", "not a plain array"),
    "object array": (
        with_member("x.npy", as_npy(np.array([{}], object))),
        "archive", "not a plain array",
    ),
    "half an array": (with_member("x.npy", GOOD[:1000]), "archive", "not a plain array"),
    "NaN": (with_member("x.npy", encoded(NAN)), "archive", "NaN or infinite"),
    "uint8": (every(lambda sample: sample.astype(np.uint8)), "archive", "is uint8, the graph's input is float32"),
    "float64": (every(lambda sample: sample.astype(np.float64)), "archive", "is float64"),
    "no batch axis": (with_member("x.npy", as_npy(next(samples())[0])), "archive", "has shape [3, 48, 392]"),
    "NHWC": (every(lambda sample: sample.transpose(0, 2, 3, 1)), "archive", "has shape [1, 48, 392, 3]"),
    "two shapes": (with_member("x.npy", encoded(next(samples())[:, :, :44])), "archive", "samples differ"),
    "two formats": (with_member("x.png", encoded(next(samples(format="image")))), "archive", "samples differ"),
    "another size": (every(lambda sample: sample[:, :, :44]), "archive samples", "the graph takes [1, 3, 48, 392]"),
    "values of 0..1": (every(lambda sample: sample / np.float32(255)), "archive values", "0..1, not 0..255"),
    "normalised values": (
        every(lambda sample: normalize(sample[0].transpose(1, 2, 0).astype(np.uint8))), "archive values", "normalized",
    ),
    "values beyond 255": (every(lambda sample: sample * 2), "archive values", "neither pixels nor"),
    "nothing but one value": (every(lambda sample: sample * 0 + 7), "archive values", "every value is 7"),
    "a range that the board's pixels leave": (
        every(lambda sample: np.clip(sample, 20, 238)), "archive range", "reach 20 to 238",
    ),
    "one picture": (
        lambda state: pack(state.archive, numbered([next(samples())] * SAMPLES)),
        "archive diversity", f"{SAMPLES - 1} of {SAMPLES} samples nearly repeat",
    ),
    "few samples": (
        lambda state: pack(state.archive, numbered(samples(4))), "config: few-samples", "calibrated on 4 samples",
    ),
    "pictures": (
        lambda state: pack(state.archive, numbered(samples(format="image"), "png")),
        "config: wrong-calibration-format", "holds pictures",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ARCHIVES)
def test_broken_archives(state, case):
    breaking, name, words = BROKEN_ARCHIVES[case]
    breaking(state)
    found = state.bad()
    assert words in found[name]
    assert all(other.startswith(("archive", "config")) for other in found)


def test_pictures_for_a_normalized_graph(state):
    capture = (state.workdir / "capture.json").rename(state.workdir / "aside")  # no layout tensors belong to it
    export_vision(Checkpoint(state.checkpoint), state.workdir, "video", [SIZE], input="normalized")
    capture.rename(state.workdir / "capture.json")
    pack(state.archive, numbered(samples(format="image"), "png"))
    assert state.bad() == {}  # config_video_normalized.json is taken by itself
    found = state.bad(config=ROOT / "config_video.json")
    assert "config: wrong-calibration-format" in found and "config: run-time-raw-pixels" in found
    grey = io.BytesIO()
    Image.new("L", (392, 48)).save(grey, "PNG")
    pack(state.archive, numbered(samples(format="image"), "png") | {"x.png": grey.getvalue()})
    assert "is L, expected RGB" in state.bad()["archive"]
    pack(state.archive, numbered(samples(format="image"), "png") | {"x.png": b"no picture"})
    assert "does not decode as a picture" in state.bad()["archive"]


def test_values_are_told_apart(tmp_path):
    low, high = (-np.array(MEAN) / STD).min(), ((1 - np.array(MEAN)) / STD).max()
    for bounds, kind in (((0, 255), "pixels"), ((0, 1), "unit"), ((low, high), "normalized"), ((-1, 255), "other")):
        sample = np.zeros((1, 3, 4, 392), np.float32)
        sample[0, 0, 0, :2] = bounds
        pack(tmp_path / "x.tar", numbered([sample]))
        assert read_archive(tmp_path / "x.tar").values == kind
