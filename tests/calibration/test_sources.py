"""What can be sampled, and which frames are."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import get_calib
from preprocess import frames_to_patches
from qwen_vl_axera.calibration.sources import Source, open_inputs, pick_steps
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import write_array, write_record
from qwen_vl_axera.made_from import made_from
from qwen_vl_axera.oracle.record import Capture
from tests.calibration.calibrate import SIZE, calibrate, with_range


def test_the_seed_chooses_frames(media, tmp_path):
    frames = [
        [
            sample["frames"]
            for sample in calibrate(media / "a.mp4", workdir=tmp_path, more=["--seed", seed])[0]["samples"]
        ]
        for seed in ("0", "1", "0")
    ]
    assert frames[0] == frames[2] != frames[1]


def test_samples_are_spread_over_all_inputs(media, tmp_path):
    manifest, _ = calibrate(media / "a.mp4", media / "b.mp4", media / "x.png", workdir=tmp_path)
    counts = Counter(Path(sample["source"][0]).name for sample in manifest["samples"])
    assert counts == {"a.mp4": 3, "b.mp4": 2, "x.png": 1}
    for sample in manifest["samples"]:
        rate = 10 if sample["source"][0].endswith(".mp4") else None
        assert sample["timestamps"] == (rate and [index / rate for index in sample["frames"]])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 200), st.integers(0, 9))
@settings(max_examples=200)
def test_spreading(counts, wanted, seed):
    sources = [Source(count, None) for count in counts]
    picks = pick_steps(sources, wanted, seed)
    assert len(picks) == min(wanted, sum(source.capacity for source in sources))
    shares = Counter(pick.source for pick in picks)
    full = {index for index, source in enumerate(sources) if shares[index] == source.capacity}
    others = [shares[index] for index in range(len(sources)) if index not in full]
    assert max(others, default=0) - min(others, default=0) <= 1  # nobody has less than his neighbour without reason
    for index, count in enumerate(counts):
        frames = [frame for pick in picks if pick.source == index for frame in pick.frames]
        if count == 1:
            assert frames in ([], [0, 0])
        else:
            assert frames == sorted(set(frames))
            gaps = np.diff([-1, *frames, count])
            assert not frames or gaps.max() <= 2 * (count / len(frames)) + 1  # over the whole length
    assert picks == sorted(picks, key=lambda pick: (pick.source, pick.frames))


def test_directories(media, tmp_path):
    same, mixed = tmp_path / "frames", tmp_path / "photos"
    for directory, sides in ((same, (60, 60, 60, 60)), (mixed, (60, 90, 120))):
        directory.mkdir()
        for number, side in enumerate(sides):
            Image.new("RGB", (side, 60), (40 * number, 0, 0)).save(directory / f"{number}.png")
    sources, notes = open_inputs([same, mixed, media])
    assert [source.count for source in sources] == [4, 1, 1, 1, 40, 31, 2]
    assert "1 clips, 0 stills" in notes[0]
    assert "0 clips, 3 stills" in notes[1]
    manifest, _ = calibrate(same, workdir=tmp_path, more=["--num-samples", "2"])
    first, second = (sample["source"] for sample in manifest["samples"])
    assert [Path(path).name for path in first + second] == ["0.png", "1.png", "2.png", "3.png"]


def write_capture(workdir: Path, kind: str, source: list[Path], pixels: np.ndarray | None = None) -> None:
    workdir.mkdir(exist_ok=True)
    paths = [str(path) for path in source]
    capture = Capture((56, 84), (3, 4, 6), kind, paths, list(range(6)), 2.0, 1.0, "tiny", {}, [0, 2])
    if pixels is not None:
        write_array(workdir / "pixels.npy", pixels)
        capture = replace(capture, made_from=made_from([workdir / "pixels.npy"], workdir))
    write_record(workdir / "capture.json", Capture, capture)


def test_the_captured_clip_is_the_default(media, tmp_path, monkeypatch):
    write_capture(tmp_path, "video", [media / "a.mp4"])
    assert get_calib.main(["--workdir", str(tmp_path), "--num-samples", "4"]) == 0
    manifest = json.loads((tmp_path / "calib" / "manifest.json").read_text())
    assert manifest["size"] == [56, 84]
    assert {path for sample in manifest["samples"] for path in sample["source"]} == {str(media / "a.mp4")}
    # Other inputs still take the capture's size, unless told otherwise.
    assert get_calib.main(["--inputs", str(media / "x.png"), "--workdir", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "calib" / "manifest.json").read_text())["size"] == [56, 84]


def test_captured_pictures_are_one_clip(media, tmp_path):
    write_capture(tmp_path, "images", [media / "y.jpg", media / "x.png"])
    manifest, _ = calibrate(workdir=tmp_path)
    assert [sample["source"] for sample in manifest["samples"]] == [[str(media / "y.jpg"), str(media / "x.png")]]


def test_a_captured_clip_that_is_gone(media, tmp_path, capsys):
    pixels = frames_to_patches([Image.open(media / name) for name in ("x.png", "y.jpg")] * 3, SIZE)
    write_capture(tmp_path, "video", [tmp_path / "gone.mp4"], pixels)
    manifest, calib = calibrate(workdir=tmp_path)
    assert "gone" in capsys.readouterr().err
    values = np.stack([np.load(calib / sample["file"])[0] for sample in manifest["samples"]])
    expected = [with_range(*pair) for pair in zip(pixels, manifest["samples"], strict=True)]
    assert np.array_equal(values.transpose(0, 2, 3, 1), expected)
    with pytest.raises(InputError, match="56x84, not 84x84"):
        calibrate(workdir=tmp_path, more=["--size", "84", "84"])
