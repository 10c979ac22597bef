"""media.py and video.py against qwen-vl-utils, decord and Pillow; videos are made with PyAV."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from PIL import Image

from preprocess import frames_to_patches
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.frames.media import frame_size, list_pictures, load_clip
from qwen_vl_axera.frames.video import VideoFile, VideoStream
from tests.conftest import ROOT

HOSTILE = ["a b.mp4", 'it\'s "q".mp4', "-x.mp4", "视频.mp4", "a:b.mp4", "$(x)`y`;z.mp4", "100%d.mp4"]


def make_video(path: Path, count: int = 30, size=(84, 112), rate=10, codec: str = "mpeg4", gop: int = 12) -> Path:
    """A video whose frames differ, keyed every `gop` frames."""
    random = np.random.default_rng(count)
    ground = random.integers(0, 200, (size[0] // 4 + 1, size[1] // 4 + 1, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(os.path.abspath(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options={"g": str(gop)})
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(count):
            frame = np.roll(ground, 3 * number, axis=1)[: size[0], : size[1]].copy()
            frame[:8, : 2 * number + 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


def qwen(path: Path, **sampling):
    """qwen-vl-utils' answer: frames at 84x112, their numbers, and the rate after sampling."""
    from qwen_vl_utils.vision_process import fetch_video

    request = {"video": str(path), "resized_height": 84, "resized_width": 112, **sampling}
    (frames, metadata), rate = fetch_video(request, return_video_sample_fps=True, return_video_metadata=True)
    return frames.permute(0, 2, 3, 1).numpy().astype(np.uint8), metadata["frames_indices"], rate


SAMPLINGS = [({}, {"nframes": 8}), ({"num_frames": 4}, {"nframes": 4}), ({"num_frames": 5}, {"nframes": 5})]
SAMPLINGS += [({"fps": rate}, {"fps": rate}) for rate in (0.5, 1.0, 2.0, 4.0, 25.0)]


@pytest.mark.parametrize(("ours", "theirs"), SAMPLINGS)
@pytest.mark.parametrize("count", [8, 9, 30, 77])
def test_sampled_as_qwen_vl_utils_does(tmp_path, count, ours, theirs):
    path = make_video(tmp_path / "clip.mp4", count)
    frames, indices, rate = qwen(path, **theirs)
    clip = load_clip(path, **ours)
    assert (clip.kind, clip.indices, clip.sample_fps) == ("video", tuple(indices), rate)
    # The clip is made at the size that is asked for, so qwen-vl-utils' resizing changes nothing.
    assert np.array_equal(np.stack([np.asarray(frame) for frame in clip.frames]), frames)


@pytest.mark.parametrize(("ours", "theirs"), SAMPLINGS[:4])
def test_the_demo_clip_as_qwen_vl_utils_samples_it(ours, theirs):
    """Others' clips: test_real_media.py."""
    path = ROOT / "assets" / "demo.mp4"
    _, indices, rate = qwen(path, **theirs)
    clip = load_clip(path, **ours)
    assert (clip.indices, clip.sample_fps) == (tuple(indices), rate)
    expected = decord.VideoReader(str(path)).get_batch(indices).asnumpy()
    assert clip.shape == expected.shape[1:3]
    assert np.array_equal(np.stack([np.asarray(frame) for frame in clip.frames]), expected)


@pytest.mark.parametrize("area", [56 * 56, 200 * 200, 308 * 308])
def test_size_as_qwen_vl_utils_chooses_it(video, area):
    from qwen_vl_utils.vision_process import smart_resize

    clip = load_clip(video)
    assert frame_size(clip, max_pixels=area) == smart_resize(84, 112, 28, min_pixels=56 * 56, max_pixels=area)
    assert frame_size(clip) == (84, 112)
    assert frame_size(clip, size=(308, 56)) == (308, 56)


@pytest.mark.parametrize("bad", [{"size": (300, 308)}, {"size": (0, 28)}, {"max_pixels": 100}, {"size": (28, 5600)}])
def test_impossible_sizes(video, bad):
    with pytest.raises(InputError, match="expected"):
        frame_size(load_clip(video), **bad)


def test_a_clip_can_be_read_twice(video):
    clip = load_clip(video)
    first, second = (frames_to_patches(clip.frames, (56, 84)) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(first) == 4


@pytest.mark.parametrize("codec,suffix", [("mpeg4", "mp4"), ("mpeg4", "avi"), ("mjpeg", "avi"), ("mpeg4", "mkv")])
def test_the_stream_gives_decords_frames(tmp_path, codec, suffix):
    path = make_video(tmp_path / f"clip.{suffix}", 300, codec=codec)
    stream, reader = VideoStream(path), decord.VideoReader(str(path))
    assert (stream.count, stream.shape) == (len(reader), (84, 112))
    assert stream.fps == pytest.approx(reader.get_avg_fps())
    frames = [reader.next().asnumpy() for _ in range(len(reader))]
    for indices in (range(300), range(5, 300, 90), [299], [0, 131, 132, 299]):
        decoded = list(stream.read(indices))
        assert len(decoded) == len(indices)
        # Two generations of FFmpeg round the inverse cosine transform differently; neighbours differ by far more.
        assert max(np.abs(a.astype(int) - frames[i]).max() for a, i in zip(decoded, indices, strict=True)) <= 4


def test_short_videos(tmp_path):
    for count, expected in ((1, (0,)), (2, (0, 1)), (3, (0, 2)), (7, (0, 1, 2, 4, 5, 6))):
        clip = load_clip(make_video(tmp_path / f"{count}.mp4", count))
        assert len(clip.indices) == len(expected)
        assert (clip.indices[0], clip.indices[-1]) == (0, count - 1)
        assert len(list(clip.frames)) == len(expected)
        assert len(load_clip(tmp_path / f"{count}.mp4", fps=100.0).indices) <= count


def test_too_many_frames_asked_for(video):
    with pytest.raises(InputError, match="30 frames, ask for at most 30"):
        load_clip(video, num_frames=32)


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"num_frames": 4, "fps": 1.0}])
def test_impossible_sampling(video, bad):
    with pytest.raises(InputError, match="--"):
        load_clip(video, **bad)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_video(Path(name), 8)
    assert len(list(load_clip(Path(name)).frames)) == 8
    assert VideoStream(Path(name)).count == 8
    Path(name).rename("plain.mp4")
    Path(name).with_suffix("").mkdir()
    Image.new("RGB", (56, 56)).save(Path(name).with_suffix("") / "a.png")
    assert load_clip(Path(name).with_suffix("")).kind == "frames"


def broken(directory: Path) -> dict[str, Path]:
    content = make_video(directory / "whole.mp4").read_bytes()
    files = {"truncated.mp4": content[: len(content) // 2], "text.mp4": b"no video\n" * 50, "empty.mp4": b""}
    files |= {"text.png": b"no picture", "noise": bytes(range(256)) * 40}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    with av.open(str(directory / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return {name: directory / name for name in BROKEN}


BROKEN = ["truncated.mp4", "text.mp4", "empty.mp4", "text.png", "noise", "sound.mp4", "gone.mp4"]
BROKEN.append("https://example.org/a.mp4")


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_do_not_decode(tmp_path, capfd, name):
    path = broken(tmp_path)[name]
    capfd.readouterr()
    with pytest.raises(InputError) as caught:
        load_clip(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    if path.suffix == ".mp4" and path.exists():
        with pytest.raises(InputError, match="does not decode"):
            VideoStream(path)
    assert capfd.readouterr().err == ""  # the decoders have nothing to add


def test_a_video_whose_end_is_lost(tmp_path, capsys):
    path = make_video(tmp_path / "clip.mp4", 120)
    with av.open(str(path)) as container:
        place = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    data = bytearray(path.read_bytes())
    start, end = place[70][0], sum(place[-1])
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    reader = VideoFile(path)
    if not reader.drop_undecodable():
        pytest.skip("this FFmpeg conceals the loss")
    clip = load_clip(path)
    assert len(list(clip.frames)) == 8
    assert clip.indices[-1] < 119
    assert "decode" in capsys.readouterr().err


def test_a_damaged_middle(tmp_path, monkeypatch):
    clip = load_clip(make_video(tmp_path / "clip.mp4"))
    monkeypatch.setattr(
        VideoFile, "read", lambda self, indices: (np.zeros((84, 112, 3), np.uint8) for index in indices if index < 12)
    )
    with pytest.raises(InputError, match=r"clip\.mp4: frame 12 "):
        list(clip.frames)


def test_a_directory_in_name_order(tmp_path):
    for name in ("10.png", "02.PNG", "1.jpg", ".hidden.png", "notes.txt"):
        Image.new("RGB", (60, 56), (len(name) * 9, 0, 0)).save(tmp_path / name, "PNG")
    assert [path.name for path in list_pictures(tmp_path)] == ["02.PNG", "1.jpg", "10.png"]
    clip = load_clip(tmp_path, fps=4.0)
    assert (clip.kind, clip.indices, clip.sample_fps, clip.shape) == ("frames", (0, 1, 2), 4.0, (56, 60))
    assert (clip.sample_fps, clip.source) == (4.0, (tmp_path,))
    assert frames_to_patches(clip.frames, (56, 56)).shape == (2, 16, 392, 3)


def test_pictures(tmp_path, capsys):
    for name, size in (("b.png", (60, 90)), ("a.png", (90, 60)), ("c.png", (300, 300))):
        Image.new("RGB", size).save(tmp_path / name)
    clip = load_clip([tmp_path / "b.png", tmp_path / "a.png", tmp_path / "c.png"])
    assert (clip.kind, clip.shape, clip.sample_fps) == ("images", (60, 90), 1.0)
    assert "resized to the size that fits the first" in capsys.readouterr().err
    assert len(load_clip([tmp_path / "c.png"], num_frames=8).indices) == 1
    assert "all 1 pictures are taken" in capsys.readouterr().err


def test_a_turned_picture_counts_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (560, 280)).save(tmp_path / "a.jpg", exif=exif)
    clip = load_clip(tmp_path / "a.jpg")
    assert clip.shape == (560, 280)
    assert frame_size(clip) == (420, 196)


@pytest.mark.parametrize("what", ["empty", "mixture", "nothing", "flat", "directories", "cut"])
def test_pictures_that_can_not_be_used(tmp_path, video, what):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (2000, 10)).save(tmp_path / "flat.png")
    Image.effect_noise((200, 200), 80).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:9000])
    cases = {
        "empty": ([tmp_path / "a"], "no pictures"),
        "mixture": ([tmp_path / "flat.png", video], "mixture"),
        "nothing": ([], "no input"),
        "flat": ([tmp_path / "flat.png"], "aspect ratio"),
        "directories": ([tmp_path / "a", tmp_path], "mixture"),
        "cut": ([tmp_path / "cut.png"], "does not decode as a picture"),
    }
    paths, message = cases[what]
    with pytest.raises(InputError, match=message):
        list(load_clip(paths).frames)


def test_times_are_trusted_at_key_frames_only(tmp_path):
    """Some AVI files write times that do not rise with their frames."""
    stream = VideoStream(make_video(tmp_path / "clip.mkv", 200))
    indices = [0, 7, 150, 161, 199]
    expected = list(stream.read(indices))
    keys = {time: number for time, number in stream._number.items() if number in stream._keys}
    stream._number = {time: 199 - number for time, number in stream._number.items()} | keys
    assert all(np.array_equal(a, b) for a, b in zip(stream.read(indices), expected, strict=True))


def test_closing_streams_early_never_hangs():
    """A decoding thread that logs must not wait for the thread that closes the file."""
    code = (
        "import sys; from qwen_vl_axera.frames.video import VideoStream\n"
        "for _ in range(100): next(VideoStream(sys.argv[1]).read([3]))"
    )
    clip = str(ROOT / "assets" / "demo.mp4")  # H.264: decoded in threads
    done = subprocess.run([sys.executable, "-c", code, clip], cwd=ROOT, timeout=120, capture_output=True)
    assert done.returncode == 0


def test_importing_it_is_cheap():
    code = "import sys, qwen_vl_axera.frames.media; sys.exit(bool({'torch', 'decord', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_video_of_more_frames_than_bytes(tmp_path):
    """decord makes a table of what the header says, and ends the process where it can't."""
    data = bytearray((ROOT / "assets" / "demo.mp4").read_bytes())
    times = data.find(b"stts")
    data[times + 12 : times + 16] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "many.mp4").write_bytes(data)
    with pytest.raises(InputError, match=r"many\.mp4: 2147483647 frames in \d+ bytes"):
        load_clip([tmp_path / "many.mp4"])
