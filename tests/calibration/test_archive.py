"""The samples and the archive that holds them."""

import hashlib
import io
import tarfile

import av
import numpy as np
import pytest
from PIL import Image

from preprocess import unpatchify
from qwen_vl_axera.calibration import archive as calibration
from qwen_vl_axera.calibration.archive import count_near, make_calibration_set, restore_range, widen_range
from qwen_vl_axera.calibration.manifest import read_manifest
from qwen_vl_axera.calibration.sources import open_inputs, pick_steps
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.video import VideoFile
from qwen_vl_axera.preflight.archive import read_archive
from tests.calibration.calibrate import SIZE, calibrate, expected_patches


def test_numpy_samples_are_the_graphs_input(media, tmp_path):
    manifest, calib = calibrate(media / "a.mp4", media / "x.png", workdir=tmp_path)
    assert (manifest["format"], manifest["size"], manifest["num_samples"]) == ("numpy", [56, 84], 6)
    for sample in manifest["samples"]:
        data = (calib / sample["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sample["sha256"]
        values = np.load(io.BytesIO(data), allow_pickle=False)
        assert (values.dtype, values.shape, values.flags.c_contiguous) == (np.float32, (1, 3, 24, 392), True)
        assert np.array_equal(values[0].transpose(1, 2, 0), expected_patches(sample))


@pytest.mark.parametrize("format", ["numpy", "image"])
def test_two_values_of_one_sample_make_the_range_exact(tmp_path, format):
    dull = np.random.default_rng(4).integers(40, 200, (8, 56, 84, 3), np.uint8)
    (tmp_path / "dull").mkdir()
    for number, frame in enumerate(dull):
        Image.fromarray(frame).save(tmp_path / "dull" / f"{number}.png")
    _, calib = calibrate(tmp_path / "dull", workdir=tmp_path, more=["--format", format, "--num-samples", "3"])
    archive = read_archive(calib / "hidden_states.tar")
    assert (archive.minimum, archive.maximum) == (0, 255)
    first, *others = read_manifest(calib).samples
    assert [change.after for change in first.range] == [0, 255]
    assert not any(sample.range for sample in others)
    if format == "numpy":
        kept = np.load(calib / first.file)[0].transpose(1, 2, 0).astype(np.uint8)
        original = restore_range(kept, first.range)
        assert (original != kept).sum() == 2
        assert (original.min(), original.max()) == (40, 199)


def test_a_full_range_is_left_alone():
    patches = np.random.default_rng(4).integers(0, 256, (24, 392, 3), np.uint8)
    kept, changes = widen_range(patches)
    assert changes is None
    assert np.array_equal(kept, patches)


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


def test_pictures_named_like_samples_are_not_ours(media, tmp_path):
    """Only what the manifest knows by its hash is replaced."""
    (tmp_path / "calib").mkdir()
    mine = tmp_path / "calib" / "sample_00000.png"
    mine.write_bytes((media / "x.png").read_bytes())
    for inputs in (media / "a.mp4", mine):
        with pytest.raises(InputError, match=r"sample_00000\.png|which is replaced"):
            calibrate(inputs, workdir=tmp_path)
    assert mine.read_bytes() == (media / "x.png").read_bytes()


def test_a_changed_sample_is_not_ours_and_an_input_is_not_replaced(media, tmp_path):
    _, calib = calibrate(media / "x.png", workdir=tmp_path, more=["--format", "image"])
    with pytest.raises(InputError, match="which is replaced: move it"):
        calibrate(calib / "sample_00000.png", workdir=tmp_path, more=["--format", "image"])
    (calib / "sample_00000.png").write_bytes((media / "x.png").read_bytes())
    with pytest.raises(InputError, match=r"holds 'sample_00000\.png', which is not of a calibration set"):
        calibrate(media / "x.png", workdir=tmp_path)


def test_another_archive_beside_our_samples_stays(media, tmp_path):
    """Of as many bytes, too: one sample changed by hand."""
    _, calib = calibrate(media / "a.mp4", workdir=tmp_path)
    ours = (calib / "hidden_states.tar").read_bytes()
    for other in (b"the only copy", b"", ours[:900] + bytes([ours[900] ^ 1]) + ours[901:], ours[:4000]):
        (calib / "hidden_states.tar").write_bytes(other)
        with pytest.raises(InputError, match=r"holds 'hidden_states\.tar', which is not"):
            calibrate(media / "a.mp4", workdir=tmp_path)
        assert (calib / "hidden_states.tar").read_bytes() == other
    (calib / "hidden_states.tar").unlink()
    calibrate(media / "a.mp4", workdir=tmp_path)


def test_directories_with_names_like_ours_stay(media, tmp_path):
    for name in ("calib.replaced", "calib.tmp-old", "calib.tmp-12345678", ".calib.tmp-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("the only copy")
    for _ in range(2):
        calibrate(media / "a.mp4", workdir=tmp_path)
    assert len(list(tmp_path.glob("*/thesis.txt"))) == 4
    (tmp_path / ".calib.replaced").mkdir()
    (tmp_path / ".calib.replaced" / "thesis.txt").write_text("the only copy")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        calibrate(media / "a.mp4", workdir=tmp_path)


def test_the_times_of_an_uneven_clip_are_true(tmp_path):
    frames = [Image.fromarray(np.full((56, 84, 3), 30 * number, np.uint8)) for number in range(6)]
    times = [100, 100, 1000, 100, 100, 100]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=times)
    manifest, _ = calibrate(tmp_path / "clip.gif", workdir=tmp_path)
    shown = [0, 0.1, 0.2, 1.2, 1.3, 1.4]
    for sample in manifest["samples"]:
        assert sample["timestamps"] == pytest.approx([shown[index] for index in sample["frames"]])


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
    read = VideoFile.read
    monkeypatch.setattr(VideoFile, "read", lambda self, indices: read(self, [index for index in indices if index < 20]))
    manifest, calib = calibrate(media / "a.mp4", media / "x.png", workdir=tmp_path)
    assert "fell on frames that do not decode" in capsys.readouterr().err
    assert manifest["samples"][-1]["source"] == [str(media / "x.png")]
    for sample in manifest["samples"]:
        assert max(sample["frames"]) < 20
        assert np.array_equal(np.load(calib / sample["file"])[0].transpose(1, 2, 0), expected_patches(sample))


def test_nothing_decodes(media, tmp_path, monkeypatch):
    sources, _ = open_inputs([media / "a.mp4"])
    monkeypatch.setattr(
        VideoFile, "read", lambda self, indices: iter([np.zeros((84, 112, 3), np.uint8)][: len(indices) == 1])
    )
    with pytest.raises(InputError, match="no calibration sample"):
        make_calibration_set(tmp_path, sources, pick_steps(sources, 4), SIZE)
    assert list(tmp_path.iterdir()) == []
