"""get_calib.py as a user runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image

import get_calib
from tests.calibration.calibrate import ARGUMENTS, calibrate
from tests.conftest import run_main
from tests.frames.test_media import HOSTILE


def test_fewer_than_asked_for(media, tmp_path, capsys):
    calibrate(media / "x.png", media / "b.mp4", workdir=tmp_path, more=["--num-samples", "32"])
    assert "32 samples asked for, 16 distinct ones" in capsys.readouterr().err


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(media, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((media / "a.mp4").read_bytes())
    workdir = Path(f"work {name}")
    assert get_calib.main([f"--inputs=./{name}", *ARGUMENTS, f"--workdir={workdir}"]) == 0
    assert json.loads((workdir / "calib" / "manifest.json").read_text("utf-8"))["num_samples"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "gone.mp4"], "gone.mp4"),
        (["--inputs", "text.mp4"], "does not decode"),
        (["--inputs", "text.png"], "does not decode"),
        (["--inputs", "empty"], "no pictures"),
        (["--inputs", "flat.png"], "aspect ratio"),
        (["--inputs", "fine.png", "--size", "300", "308"], "308 308"),
        (["--inputs", "fine.png", "--size", "28", "5600"], "--size 28 5600: expected one side to be below"),
        (["--inputs", "fine.png", "--num-samples", "0"], "positive"),
        (["--inputs", "fine.png", "--format", "jpeg"], "numpy"),
        (["--inputs", "fine.png", "--workdir", "text.mp4"], "expected a directory"),
        ([], "run_video_by_sec.py"),
    ],
)
def test_bad_input(capsys, monkeypatch, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (56, 56)).save(tmp_path / "fine.png")
    Image.new("RGB", (4000, 20)).save(tmp_path / "flat.png")
    monkeypatch.chdir(tmp_path)
    code, _, error = run_main(get_calib.main, capsys, *arguments)
    assert (code, len(error.splitlines())) == (2, 1), error
    assert message in error
    assert not (tmp_path / "calib").exists()


def test_the_script(run_script, media, tmp_path):
    done = run_script("get_calib.py", "--inputs", media / "a.mp4", *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 numpy samples at 56x84 from 1 of 1 inputs" in done.stdout
    assert (tmp_path / "calib" / "hidden_states.tar").is_file()
