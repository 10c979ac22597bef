"""get_calib.py, calibration.py and calibration_sources.py."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import get_calib
from preprocess import frames_to_patches, patchify, unpatchify
from qwen_vl_axera.calibration import archive as calibration
from qwen_vl_axera.calibration.archive import count_near, make_calibration_set
from qwen_vl_axera.calibration.sources import Source, open_inputs, pick_steps
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import write_array, write_json
from qwen_vl_axera.frames.video import VideoStream
from qwen_vl_axera.oracle.record import Capture
from tests.frames.test_media import HOSTILE, make_video

SIZE = 56, 84
ARGUMENTS = ["--size", "56", "84", "--num-samples", "6"]


def calibrate(*inputs: Path, workdir: Path, more=()) -> tuple[dict, Path]:
    """Runs the script and returns its manifest and directory."""
    given_inputs = ["--inputs", *map(str, inputs)] if inputs else []
    assert get_calib.main([*given_inputs, *ARGUMENTS, "--workdir", str(workdir), *more]) == 0
    calib = workdir / "calib"
    return json.loads((calib / "manifest.json").read_text(encoding="utf-8")), calib


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("calibration")
    make_video(directory / "a.mp4", 40)
    make_video(directory / "b.mp4", 31)
    random = np.random.default_rng(3)
    for name in ("x.png", "y.jpg"):
        Image.fromarray(random.integers(0, 256, (120, 90, 3), np.uint8)).save(directory / name)
    return directory


def expected_patches(sample: dict) -> np.ndarray:
    """What a manifest entry says is in its sample, decoded by Pillow or in one go from the start of the video."""
    first, second = sample["frames"]
    if Path(sample["source"][0]).suffix == ".mp4":
        with av.open(sample["source"][0]) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        pair = [frames[first], frames[second]]
    else:
        pair = [Image.open(path) for path in (sample["source"][0], sample["source"][-1])]
    resized = [image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC) for image in pair]
    return patchify(np.stack(resized))[0]


def test_numpy_samples_are_the_graphs_input(media, tmp_path):
    manifest, calib = calibrate(media / "a.mp4", media / "x.png", workdir=tmp_path)
    assert (manifest["format"], manifest["size"], manifest["num_samples"]) == ("numpy", [56, 84], 6)
    for sample in manifest["samples"]:
        data = (calib / sample["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sample["sha256"]
        values = np.load(io.BytesIO(data), allow_pickle=False)
        assert (values.dtype, values.shape, values.flags.c_contiguous) == (np.float32, (1, 3, 24, 392), True)
        assert np.array_equal(values[0].transpose(1, 2, 0), expected_patches(sample))


def test_image_samples_are_lossless(media, tmp_path):
    manifest, calib = calibrate(media / "b.mp4", media / "y.jpg", workdir=tmp_path, more=["--format", "image"])
    assert manifest["format"] == "image"
    for sample in manifest["samples"]:
        with Image.open(calib / sample["file"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (392, 24))
            patches = np.asarray(image)
        assert np.array_equal(patches, expected_patches(sample))
        assert unpatchify(patches[None], *SIZE).shape == (2, *SIZE, 3)


@pytest.mark.parametrize("format", ["numpy", "image"])
def test_the_archive(media, tmp_path, format):
    manifest, calib = calibrate(media / "a.mp4", workdir=tmp_path, more=["--format", format])
    archive = calib / "hidden_states.tar"
    assert archive.stat().st_size == manifest["archive"]["bytes"]
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names) == [sample["file"] for sample in manifest["samples"]]
        assert all("/" not in name for name in names)
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode, m.type) for m in members} == {
            (0, 0, "", "", 0, 0o644, tarfile.REGTYPE)
        }
        assert all(tar.extractfile(member).read() == (calib / member.name).read_bytes() for member in members)
    assert archive.read_bytes()[257:265] == b"ustar\x0000"
    assert {path.name for path in calib.iterdir()} == {*names, "hidden_states.tar", "manifest.json"}


@pytest.mark.parametrize("format", ["numpy", "image"])
def test_same_inputs_same_bytes(media, tmp_path, format):
    contents = []
    for name in ("one", "two"):
        _, calib = calibrate(media / "a.mp4", media / "x.png", workdir=tmp_path / name, more=["--format", format])
        contents.append({path.name: path.read_bytes() for path in calib.iterdir()})
    assert contents[0] == contents[1]


def test_the_seed_chooses_frames(media, tmp_path):
    frames = [
        [
            sample["frames"]
            for sample in calibrate(media / "a.mp4", workdir=tmp_path, more=["--seed", seed])[0]["samples"]
        ]
        for seed in ("0", "1", "0")
    ]
    assert frames[0] == frames[2] != frames[1]


def test_a_new_run_replaces_the_old(media, tmp_path):
    calibrate(media / "a.mp4", workdir=tmp_path, more=["--num-samples", "9"])
    manifest, calib = calibrate(media / "x.png", workdir=tmp_path, more=["--format", "image"])
    assert [path.name for path in sorted(calib.iterdir())] == ["hidden_states.tar", "manifest.json", "sample_00000.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["calib"]
    assert manifest["samples"][0]["frames"] == [0, 0]


def test_a_failing_run_keeps_the_old(media, tmp_path, monkeypatch):
    _, calib = calibrate(media / "a.mp4", workdir=tmp_path)
    before = {path.name: path.read_bytes() for path in calib.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration, "encode", full_disk)
    with pytest.raises(OSError, match="No space"):
        calibrate(media / "b.mp4", workdir=tmp_path)
    assert {path.name: path.read_bytes() for path in calib.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["calib"]


def test_files_of_others_are_not_removed(media, tmp_path):
    (tmp_path / "calib").mkdir()
    (tmp_path / "calib" / "thesis.txt").write_text("the only copy")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        calibrate(media / "a.mp4", workdir=tmp_path)
    assert (tmp_path / "calib" / "thesis.txt").read_text() == "the only copy"


def test_samples_are_spread_over_all_inputs(media, tmp_path):
    manifest, _ = calibrate(media / "a.mp4", media / "b.mp4", media / "x.png", workdir=tmp_path)
    counts = Counter(Path(sample["source"][0]).name for sample in manifest["samples"])
    assert counts == {"a.mp4": 3, "b.mp4": 2, "x.png": 1}
    for sample in manifest["samples"]:
        rate = 10 if sample["source"][0].endswith(".mp4") else None
        assert sample["timestamps"] == (rate and [index / rate for index in sample["frames"]])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 200), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
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


def test_fewer_than_asked_for(media, tmp_path, capsys):
    calibrate(media / "x.png", media / "b.mp4", workdir=tmp_path, more=["--num-samples", "32"])
    assert "32 samples asked for, 16 distinct ones" in capsys.readouterr().err


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
    capture = Capture((56, 84), (3, 4, 6), kind, [str(path) for path in source], [0, 1], 2.0, 1.0, "tiny", {})
    write_json(workdir / "capture.json", capture.__dict__)
    if pixels is not None:
        write_array(workdir / "pixels.npy", pixels)


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
    assert [sample["source"] for sample in manifest["samples"]] == [[str(media / "x.png"), str(media / "y.jpg")]]


def test_a_captured_clip_that_is_gone(media, tmp_path, capsys):
    pixels = frames_to_patches([Image.open(media / name) for name in ("x.png", "y.jpg")] * 3, SIZE)
    write_capture(tmp_path, "video", [tmp_path / "gone.mp4"], pixels)
    manifest, calib = calibrate(workdir=tmp_path)
    assert "gone" in capsys.readouterr().err
    values = np.stack([np.load(calib / sample["file"])[0] for sample in manifest["samples"]])
    assert np.array_equal(values.transpose(0, 2, 3, 1), pixels)
    with pytest.raises(InputError, match="56x84, not 84x84"):
        calibrate(workdir=tmp_path, more=["--size", "84", "84"])


def test_nearly_identical_samples_are_reported(media, tmp_path, capsys):
    still = tmp_path / "still.mp4"
    with av.open(str(still), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = 56, 84
        for number in range(20):
            frame = np.full((56, 84, 3), 128, np.uint8)
            frame[0, number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    manifest, _ = calibrate(still, workdir=tmp_path)
    assert manifest["nearly_identical"] == 5
    assert "5 of 6 samples are nearly identical" in capsys.readouterr().err
    manifest, _ = calibrate(media / "a.mp4", media / "x.png", media / "y.jpg", workdir=tmp_path)
    assert manifest["nearly_identical"] == 0
    assert "identical" not in capsys.readouterr().err


def test_the_measure_of_likeness():
    base = np.random.default_rng(0).integers(0, 200, (16, 16, 3), np.uint8)
    assert count_near([base, base + 1, base + 50, base + 51, 255 - base]) == 2
    assert count_near([]) == 0
    assert count_near([base]) == 0


def test_frames_that_do_not_decode_are_left_out(media, tmp_path, capsys, monkeypatch):
    read = VideoStream.read
    monkeypatch.setattr(
        VideoStream, "read", lambda self, indices: read(self, [index for index in indices if index < 20])
    )
    manifest, calib = calibrate(media / "a.mp4", media / "x.png", workdir=tmp_path)
    assert "fell on frames that do not decode" in capsys.readouterr().err
    assert manifest["samples"][-1]["source"] == [str(media / "x.png")]
    for sample in manifest["samples"]:
        assert max(sample["frames"]) < 20
        assert np.array_equal(np.load(calib / sample["file"])[0].transpose(1, 2, 0), expected_patches(sample))


def test_nothing_decodes(media, tmp_path, monkeypatch):
    sources, _ = open_inputs([media / "a.mp4"])
    monkeypatch.setattr(
        VideoStream, "read", lambda self, indices: iter([np.zeros((84, 112, 3), np.uint8)][: len(indices) == 1])
    )
    with pytest.raises(InputError, match="no calibration sample"):
        make_calibration_set(tmp_path, sources, pick_steps(sources, 4), SIZE)
    assert list(tmp_path.iterdir()) == []


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
def test_bad_input(run_script, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (56, 56)).save(tmp_path / "fine.png")
    Image.new("RGB", (4000, 20)).save(tmp_path / "flat.png")
    done = run_script("get_calib.py", *arguments, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "calib").exists()


def test_the_script(run_script, media, tmp_path):
    done = run_script("get_calib.py", "--inputs", media / "a.mp4", *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 numpy samples at 56x84 from 1 of 1 inputs" in done.stdout
    assert (tmp_path / "calib" / "hidden_states.tar").is_file()
