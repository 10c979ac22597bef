"""media.py and video.py against qwen-vl-utils, decord and Pillow; videos are made with PyAV."""

import hashlib
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
from qwen_vl_axera.frames.video import VideoFile
from tests.conftest import ROOT

HOSTILE = ["a b.mp4", 'it\'s "q".mp4', "-x.mp4", "视频.mp4", "a:b.mp4", "$(x)`y`;z.mp4", "100%d.mp4"]


def make_video(
    path: Path, count: int = 30, size=(84, 112), rate=10, codec: str = "mpeg4", gop: int = 12, bframes: int = 0
) -> Path:
    """A video whose frames differ, keyed every `gop` frames."""
    random = np.random.default_rng(count)
    ground = random.integers(0, 200, (size[0] // 4 + 1, size[1] // 4 + 1, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(os.path.abspath(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options={"g": str(gop)})
        stream.height, stream.width = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        stream.codec_context.max_b_frames = bframes
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


def test_the_demo_clips_pixels_are_those_that_were_recorded():
    """SHA-256 of all its frames as decord 0.6.0 gave them: `update(reader[i].asnumpy().tobytes())` for every i."""
    digest = hashlib.sha256()
    for frame in VideoFile(ROOT / "assets" / "demo.mp4").read(range(48)):
        digest.update(frame.tobytes())
    assert digest.hexdigest() == "fa7f97ee46bde3efc29e123001ce0cbcaf4872387e57bb0d6334aebb7fdf0683"


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
def test_the_frames_are_decords(tmp_path, codec, suffix):
    path = make_video(tmp_path / f"clip.{suffix}", 300, codec=codec)
    stream, reader = VideoFile(path), decord.VideoReader(str(path))
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
    assert VideoFile(Path(name)).count == 8
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
            VideoFile(path)
    assert capfd.readouterr().err == ""  # the decoder has nothing to add


def test_a_video_whose_end_is_lost(tmp_path, capsys):
    path = make_video(tmp_path / "clip.mp4", 120)
    with av.open(str(path)) as container:
        place = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    data = bytearray(path.read_bytes())
    start, end = place[70][0], sum(place[-1])
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert 60 <= VideoFile(path).count < 120
    clip = load_clip(path)
    assert len(list(clip.frames)) == 8
    assert clip.indices[-1] < 119
    assert "claims 120 frames, of which" in capsys.readouterr().err


def test_a_damaged_middle(tmp_path, monkeypatch):
    clip = load_clip(make_video(tmp_path / "clip.mp4"))
    monkeypatch.setattr(
        VideoFile, "read", lambda self, indices: (np.zeros((84, 112, 3), np.uint8) for index in indices if index < 12)
    )
    with pytest.raises(InputError, match=r"clip\.mp4: frame 12 "):
        list(clip.frames)


def test_a_directory_in_name_order(tmp_path, capsys):
    for name in ("10.png", "02.PNG", "1.jpg", ".hidden.png", "notes.txt"):
        Image.new("RGB", (60, 56), (len(name) * 9, 0, 0)).save(tmp_path / name, "PNG")
    assert [path.name for path in list_pictures(tmp_path)] == ["1.jpg", "02.PNG", "10.png"]
    clip = load_clip(tmp_path, fps=4.0)
    assert (clip.kind, clip.indices, clip.sample_fps, clip.shape) == ("frames", (0, 1, 2), 4.0, (56, 60))
    assert (clip.sample_fps, clip.source) == (4.0, (tmp_path,))
    assert frames_to_patches(clip.frames, (56, 56)).shape == (2, 16, 392, 3)
    assert "1 of 4 files are not taken (1 .txt)" in capsys.readouterr().err


def test_pictures(tmp_path, capsys):
    for name, size in (("b.png", (60, 90)), ("a.png", (90, 60)), ("c.png", (300, 300))):
        Image.new("RGB", size).save(tmp_path / name)
    clip = load_clip([tmp_path / "b.png", tmp_path / "a.png", tmp_path / "c.png"])
    assert (clip.kind, clip.shape, clip.sample_fps) == ("images", (90, 60), 1.0)
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


def test_where_times_do_not_tell_frames_are_counted(tmp_path):
    """Some AVI files write times that do not rise with their frames."""
    stream = VideoFile(make_video(tmp_path / "clip.mkv", 200))
    indices = [0, 7, 150, 161, 199]
    expected = list(stream.read(indices))
    keys = {time: number for time, number in stream._number.items() if number in stream._keys}
    stream._number = {time: 199 - number for time, number in stream._number.items()} | keys
    stream._timed = False
    assert all(np.array_equal(a, b) for a, b in zip(stream.read(indices), expected, strict=True))


def test_closing_streams_early_never_hangs():
    """A decoding thread that logs must not wait for the thread that closes the file."""
    code = (
        "import sys; from qwen_vl_axera.frames.video import VideoFile\n"
        "for _ in range(100): next(VideoFile(sys.argv[1]).read([3]))"
    )
    clip = str(ROOT / "assets" / "demo.mp4")  # H.264: decoded in threads
    done = subprocess.run([sys.executable, "-c", code, clip], cwd=ROOT, timeout=120, capture_output=True)
    assert done.returncode == 0


def test_importing_it_is_cheap():
    code = "import sys, qwen_vl_axera.frames.media; sys.exit(bool({'torch', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_video_of_more_frames_than_bytes(tmp_path):
    data = bytearray((ROOT / "assets" / "demo.mp4").read_bytes())
    times = data.find(b"stts")
    data[times + 12 : times + 16] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "many.mp4").write_bytes(data)
    with pytest.raises(InputError, match=r"many\.mp4: 2147483647 frames in \d+ bytes"):
        load_clip([tmp_path / "many.mp4"])


def test_a_turned_clip_is_upright(tmp_path):
    """Phones store a display matrix; capture and calibration see what a player shows, as decord does."""
    path = make_video(tmp_path / "clip.mp4", 8)
    plain = list(VideoFile(path).read(range(8)))
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # of version 0: the matrix, nine big-endian numbers
    quarter = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    for degrees, (a, b, c, d) in quarter.items():
        numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        matrix = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
        turned = tmp_path / f"{degrees}.mp4"
        turned.write_bytes(data[:at] + matrix + data[at + 36 :])
        clip = load_clip(turned)
        expected = [np.rot90(frame, -degrees // 90) for frame in plain]
        assert clip.shape == expected[0].shape[:2]
        assert all(np.array_equal(frame, other) for frame, other in zip(clip.frames, expected, strict=True))
        reader = decord.VideoReader(str(turned))
        assert all(np.array_equal(reader[i].asnumpy(), expected[i]) for i in range(8))
    mirror = [-1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    matrix = b"".join(number.to_bytes(4, "big", signed=True) for number in mirror)
    (tmp_path / "mirrored.mp4").write_bytes(data[:at] + matrix + data[at + 36 :])
    (frame,) = VideoFile(tmp_path / "mirrored.mp4").read([3])
    assert np.array_equal(frame, plain[3][:, ::-1])


def test_a_clip_that_begins_inside_a_group_of_pictures(tmp_path, capsys):
    """Cut without encoding it again: what comes before the first key frame does not decode."""
    whole, cut = make_video(tmp_path / "whole.mp4", 60, codec="libx264", gop=20), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][7:]
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    video = VideoFile(cut)
    frames = list(video.read(range(video.count)))
    assert 40 <= len(frames) == video.count < 53 and video.dropped
    expected = list(VideoFile(whole).read(range(60)))[-video.count :]
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))
    assert len(list(load_clip(cut).frames)) == 8
    assert f"of which {video.count} decode" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx"])
@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4", "avi"])
def test_frames_are_the_same_in_every_container(tmp_path, suffix, codec):
    """With B-frames, and far enough apart to be sought; a seek in a transport stream ends behind the key frame."""
    if codec == "libvpx" and suffix != "mkv":
        pytest.skip("VP8 is not put into it")
    path = make_video(tmp_path / f"clip.{suffix}", 240, codec=codec, gop=12, bframes=2)
    video = VideoFile(path)
    assert (video.count, video.dropped) == (240, 0) and video.fps == pytest.approx(10, rel=0.01)
    whole = list(video.read(range(240)))
    for indices in ([0, 239], [100, 101, 230], range(5, 240, 70)):
        assert all(np.array_equal(a, whole[i]) for a, i in zip(video.read(indices), indices, strict=True))


def test_a_transport_stream_that_ends_in_nothing(tmp_path):
    """As a download that was stopped leaves it, its place reserved: FFmpeg gives up looking for more."""
    path = make_video(tmp_path / "clip.ts", 60, codec="libx264")
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    assert VideoFile(path).count >= 59
    assert len(list(load_clip(path).frames)) == 8


def test_frames_that_an_edit_list_hides(tmp_path):
    """A trimmed clip: frames of the first half second are in the file, for decoding, and a player shows them not."""
    path = make_video(tmp_path / "clip.mp4", 16)
    whole = list(VideoFile(path).read(range(16)))
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # version 0, one entry: its length, and where it begins in the track's own time
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    data[at + 4 : at + 8] = int(Fraction(1, 2) / unit).to_bytes(4, "big")
    path.write_bytes(data)
    video = VideoFile(path)
    frames = list(video.read(range(video.count)))
    assert (len(frames), video.dropped) == (11, 0)
    assert all(np.array_equal(a, b) for a, b in zip(frames, whole[5:], strict=True))
    assert video.time(10) == pytest.approx(1.0)
    with pytest.raises(InputError, match="11 frames, ask for at most 10"):
        load_clip(path, num_frames=16)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_av1(tmp_path, suffix):
    if not {"libsvtav1", "libdav1d"} <= av.codecs_available:
        pytest.skip("this PyAV comes without AV1")
    video = VideoFile(make_video(tmp_path / f"clip.{suffix}", 16, codec="libsvtav1"))
    assert (video.count, video.dropped, len(list(video.read(range(16))))) == (16, 0, 16)


@pytest.mark.parametrize("suffix", ["ts", "avi", "mkv", "mp4", "gif"])
def test_holes_are_not_searched(tmp_path, suffix):
    path = make_video(tmp_path / f"clip.{suffix}", 8, codec="gif" if suffix == "gif" else "mpeg4")
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match="GB of it are holes"):
        load_clip(path)


def test_an_animated_gif(tmp_path):
    frames = [Image.new("RGB", (80, 60), (40 * number, 0, 0)) for number in range(6)]
    times = [100, 100, 1000, 100, 100, 100]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=times)
    video = VideoFile(tmp_path / "a.gif")
    assert (video.count, video.shape) == (6, (60, 80))
    assert [round(video.time(index), 2) for index in range(6)] == [0, 0.1, 0.2, 1.2, 1.3, 1.4]
    assert "0.1 to 1 s apart" in video.uneven()
    assert len(list(load_clip(tmp_path / "a.gif").frames)) == 6


def test_a_cover_picture_is_not_the_clip(tmp_path):
    clip = make_video(tmp_path / "clip.mp4", 16)
    cover, both = make_video(tmp_path / "cover.avi", 1, size=(200, 200), codec="mjpeg"), tmp_path / "both.mkv"
    with av.open(str(cover)) as first, av.open(str(clip)) as second, av.open(str(both), "w") as target:
        streams = [target.add_stream_from_template(source.streams.video[0]) for source in (first, second)]
        for source, stream in zip((first, second), streams, strict=True):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    assert (VideoFile(both).count, VideoFile(both).shape) == (16, (84, 112))


@pytest.mark.parametrize("width", [2, 14, 24, 30])
def test_narrow_clips(tmp_path, width):
    path = make_video(tmp_path / "clip.mp4", 4, size=(84, width))
    assert load_clip(path).shape == (84, width)


def test_numbers_in_names_count_as_numbers(tmp_path):
    for number in range(1, 13):
        Image.new("RGB", (56, 56)).save(tmp_path / f"frame{number}.png")
    assert [path.stem for path in list_pictures(tmp_path)] == [f"frame{number}" for number in range(1, 13)]


def test_pictures_keep_the_order_in_which_they_are_given(tmp_path):
    names = ["c.png", "a.png", "b.png"]
    for shade, name in enumerate(names):
        Image.new("RGB", (56, 56), (shade, 0, 0)).save(tmp_path / name)
    clip = load_clip([tmp_path / name for name in names])
    assert [frame.getpixel((0, 0))[0] for frame in clip.frames] == [0, 1, 2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_and_jpeg_are_turned_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.linear_gradient("L").resize((160, 120)).convert("RGB")
    picture.save(tmp_path / "a.tif", exif=exif)
    picture.save(tmp_path / "a.png", exif=exif)
    one, other = (load_clip(tmp_path / name) for name in ("a.tif", "a.png"))
    assert one.shape == other.shape == ((120, 160) if orientation < 5 else (160, 120))
    assert np.array_equal(*(frames_to_patches(clip.frames, (112, 112)) for clip in (one, other)))


@pytest.mark.parametrize(
    ("mode", "name"), [("I;16", "a.png"), ("I", "a.tif"), ("F", "a.tif"), ("I;16", "a.tif"), ("F", "a.pfm")]
)
def test_more_than_8_bits_a_channel_are_refused(tmp_path, mode, name):
    Image.new(mode, (56, 56), 1).save(tmp_path / name)
    with pytest.raises(InputError, match="scale them to 8 bits first"):
        load_clip(tmp_path / name)


def test_heif_is_named(tmp_path):
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400)
    for name in ("a.HEIC", "b.heif", "c", "d.mp4"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="not read: convert it to JPEG or PNG"):
            load_clip(tmp_path / name)


def test_a_directory_of_heif_is_named(tmp_path):
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400)
    for name in ("a.HEIC", "b.heic"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="convert its 2 HEIC files to JPEG or PNG"):
        load_clip(tmp_path)
    Image.new("RGB", (56, 56)).save(tmp_path / "c.png")
    assert "2 of 3 files are not taken" in load_clip(tmp_path).notes[0]
    (tmp_path / "d.jpg").write_bytes(data)  # as phones and converters misname them
    with pytest.raises(InputError, match=r"d\.jpg: HEIC and HEIF pictures are not read: convert it to JPEG or PNG"):
        load_clip(tmp_path)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_further_frames_of_a_picture_are_counted(tmp_path, name, capsys):
    frames = [Image.new("RGB", (56, 56), (40 * number, 0, 0)) for number in range(6)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert len(load_clip(tmp_path / name).indices) == 1
    assert "only the first frame is taken, 5 further ones are not" in capsys.readouterr().err
