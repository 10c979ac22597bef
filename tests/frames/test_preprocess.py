"""preprocess.py against transformers' processors, Pillow and qwen-vl-utils."""

import ast
import io
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import preprocess
from preprocess import MAX_PIXELS, MEAN, MIN_PIXELS, STD, frames_to_patches, normalize, patchify, to_rgb, unpatchify

COMPOSITES_ALPHA = int(version("transformers").split(".")[0]) >= 5
SIZES = [(56, 56), (308, 308), (140, 252), (252, 336), (56, 1288), (1288, 84), (1288, 1288), (28, 28)]
ALPHA_ROUNDING = 1  # of 255: qwen-vl-utils pastes, transformers composites


def pillow_processor(max_pixels: int = MAX_PIXELS):
    """transformers' Pillow image processor, wherever the installed version keeps it."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor
    except ImportError:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Processor
    return Processor(min_pixels=min(MIN_PIXELS, max_pixels), max_pixels=max_pixels)


def oracle(image: Image.Image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """transformers' patches of a still: float32 (S, 1176), each row in the order (3, 2, 14, 14)."""
    return np.asarray(pillow_processor(max_pixels)(images=[image], return_tensors="np")["pixel_values"])


def as_pixels(rows: np.ndarray) -> np.ndarray:
    """transformers' normalised rows back to uint8 (S, 392, 3)."""
    values = rows.astype(np.float64).reshape(len(rows), 3, 392).transpose(0, 2, 1)
    values = (values * STD + MEAN) * 255
    assert np.abs(values - values.round()).max() < 1e-3  # else they would not be pixels
    return values.round().astype(np.uint8)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random but smooth enough that a bicubic filter overshoots at edges."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(picture(90, 120)).quantize(32)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=3)
    return Image.open(buffer)


def modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(picture(150, 220))
    return {
        "RGB": rgb,
        "L": rgb.convert("L"),
        "1": rgb.convert("1"),
        "P": rgb.quantize(64),
        "CMYK": rgb.convert("CMYK"),
        "YCbCr": rgb.convert("YCbCr"),
        "RGBA": Image.fromarray(picture(150, 220, 4)),
        "LA": Image.merge("LA", [rgb.getchannel(0), rgb.getchannel(1)]),
        "P transparent": palette_with_transparency(),
    }


@pytest.mark.parametrize("mode", list(modes()))
def test_every_mode_as_transformers_converts_it(mode):
    image = modes()[mode]
    if not COMPOSITES_ALPHA and mode in ("RGBA", "LA", "P transparent"):
        pytest.skip("transformers 4.x drops alpha")
    patches = frames_to_patches([image])
    rows = oracle(image)
    assert np.array_equal(patches[0], as_pixels(rows))
    assert np.array_equal(normalize(patches[0])[0].transpose(1, 0, 2).reshape(rows.shape), rows)


def test_transparency_as_qwen_shows_it():
    from qwen_vl_utils.vision_process import to_rgb as qwen_to_rgb

    image = modes()["RGBA"]
    difference = np.abs(np.asarray(to_rgb(image)).astype(int) - np.asarray(qwen_to_rgb(image)))
    assert difference.max() <= ALPHA_ROUNDING


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_as_transformers_loads_it(tmp_path, orientation):
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture(96, 160)).save(path, exif=exif)
    upright = load_image(str(path))
    with Image.open(path) as image:
        assert preprocess.frame_shape(image) == upright.size[::-1]
        assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(upright))
        assert np.array_equal(frames_to_patches([image])[0], as_pixels(oracle(upright)))


def test_rgb_is_not_copied():
    image = Image.fromarray(picture(40, 40))
    assert to_rgb(image) is image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", [(211, 307), (720, 640)])
def test_every_size_as_transformers_resizes_it(size, source):
    image = Image.fromarray(picture(*source))
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
    patches = frames_to_patches([image], size)
    # At its own size transformers leaves a picture as it is: what is left to compare is the order of patches.
    rows = oracle(Image.fromarray(resized), max_pixels=size[0] * size[1]) if min(size) >= 56 else None
    assert rows is None or np.array_equal(patches[0], as_pixels(rows))
    assert np.array_equal(unpatchify(patches, *size), np.stack([resized, resized]))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_steps_as_the_video_processor_cuts_them(count):
    module = pytest.importorskip("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    frames = np.stack([picture(84, 140, seed=seed) for seed in range(count)])
    processor = module.Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    rows = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"].numpy()
    patches = patchify(frames)
    assert patches.shape == (-(-count // 2), 6 * 10, 392, 3)
    assert np.array_equal(patches.reshape(-1, 392, 3), as_pixels(rows))


@given(st.integers(28, 4000), st.integers(28, 4000), st.sampled_from([(3136, 94864), (3136, 50176), (1, 1003520)]))
@settings(max_examples=300)
def test_smart_resize_as_qwen_has_it(height, width, bounds):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    least, most = bounds
    expected = smart_resize(height, width, 28, min_pixels=least, max_pixels=most)
    if min(expected) >= 28:  # 4.49 gives sides of 0 to very flat pictures
        assert preprocess.smart_resize(height, width, min_pixels=least, max_pixels=most) == expected


@pytest.mark.parametrize("shape", [(14, 2800), (2800, 14), (0, 50), (50, -1)])
def test_impossible_shapes(shape):
    with pytest.raises(ValueError, match="expected"):
        preprocess.smart_resize(*shape)


@pytest.mark.parametrize("bounds", [(0, 3136), (5000, 3136), (1, 783)])
def test_impossible_bounds(bounds):
    with pytest.raises(ValueError, match="min_pixels"):
        preprocess.smart_resize(100, 100, min_pixels=bounds[0], max_pixels=bounds[1])


@pytest.mark.parametrize(
    ("size", "nearest"), [((300, 310), "308 308"), ((1, 56), "28 56"), ((-28, 56), "28 56"), ((57, 83), "56 84")]
)
def test_other_sizes_name_the_nearest(size, nearest):
    with pytest.raises(ValueError, match=nearest):
        preprocess.check_size(*size)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_and_iterators_change_nothing(workers):
    images = [Image.fromarray(picture(60, 80, seed=seed)) for seed in range(7)]
    expected = np.concatenate([frames_to_patches(images[at : at + 2], (56, 84), workers=1) for at in range(0, 7, 2)])
    assert np.array_equal(frames_to_patches(images, (56, 84), workers), expected)
    assert np.array_equal(frames_to_patches(iter(images), (56, 84), workers), expected)
    assert np.array_equal(frames_to_patches([np.asarray(image) for image in images], (56, 84), workers), expected)


def test_frames_are_read_as_they_are_needed():
    opened = []

    def frames():
        for number in range(100):
            opened.append(number)
            yield Image.fromarray(picture(30, 30))

    steps = preprocess.iter_steps(frames(), (28, 28), workers=2)
    next(steps)
    assert len(opened) < 10
    steps.close()


def test_a_lazily_opened_picture_may_come_again(tmp_path):
    paths = [tmp_path / f"{seed}.png" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(400, 400, seed=seed)).save(path)
    expected = frames_to_patches([Image.open(path).convert("RGB") for path in paths] * 3, (56, 56), workers=1)
    for _ in range(20):
        assert np.array_equal(
            frames_to_patches([Image.open(path) for path in paths] * 3, (56, 56), workers=6), expected
        )


def test_graph_inputs():
    patches = frames_to_patches([Image.fromarray(picture(56, 84))] * 2, (56, 84))[0]
    values = preprocess.to_graph_input(patches)
    assert (values.dtype, values.shape, values.flags.c_contiguous) == (np.float32, (1, 3, 24, 392), True)
    assert np.array_equal(values[0].transpose(1, 2, 0), patches)
    assert preprocess.to_graph_input(np.stack([patches] * 3)).shape == (3, 3, 24, 392)
    assert normalize(patches).dtype == np.float32


@pytest.mark.parametrize(
    "frames",
    [np.zeros((0, 56, 56, 3), np.uint8), np.zeros((2, 56, 56, 3), np.float32), np.zeros((2, 57, 56, 3), np.uint8)],
)
def test_patchify_refuses(frames):
    with pytest.raises(ValueError, match="expected"):
        patchify(frames)


def test_unpatchify_refuses_another_size():
    with pytest.raises(ValueError, match="56x84"):
        unpatchify(np.zeros((1, 16, 392, 3), np.uint8), 56, 84)


def test_a_patch_image_can_be_looked_at():
    frames = np.stack([picture(56, 84, seed=seed) for seed in (1, 2)])
    patch_image = Image.fromarray(patchify(frames)[0])  # as a PNG of the calibration set
    assert patch_image.size == (392, 24)
    for number in (0, 1):
        shown = preprocess.patch_image_to_picture(patch_image, 56, 84, number)
        assert np.array_equal(np.asarray(shown), frames[number])


def test_it_needs_numpy_and_pillow_only():
    tree = ast.parse(Path(preprocess.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy", "PIL"}


def test_the_script(run_script, frames_dir, tmp_path):
    pictures = sorted(frames_dir.glob("*.png"))[:3]
    output = tmp_path / "a 'b' 像素.npy"
    done = run_script("preprocess.py", *pictures, "--size", "84", "112", "--output", output)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(output), frames_to_patches([Image.open(path) for path in pictures], (84, 112)))
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def broken_png(path: Path) -> Path:
    """A sound header with damage behind it: Pillow calls that a SyntaxError."""
    data = (b"IHDR", struct.pack(">IIBBBBB", 56, 56, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    chunks = [struct.pack(">I", len(text)) + kind + text + b"\0\0\0\0" for kind, text in data]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("wrong", ["no picture", "broken", "missing", "size", "output"])
def test_the_script_refuses(run_script, frames_dir, tmp_path, wrong):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    broken = broken_png(tmp_path / "broken.png")
    images = {"no picture": text, "broken": broken, "missing": tmp_path / "gone.png"}
    image = images.get(wrong, frames_dir / "000.png")
    output = tmp_path / ("gone/x.npy" if wrong == "output" else "x.npy")
    size = ("57", "56") if wrong == "size" else ("56", "56")
    done = run_script("preprocess.py", image, "--size", *size, "--output", output)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not output.exists()


sides = st.integers(1, 10).map(lambda number: 28 * number)


@given(sides, sides, st.integers(1, 5))
def test_patches_can_be_put_together_again(height, width, count):
    frames = np.random.default_rng(height * width + count).integers(0, 256, (count, height, width, 3), np.uint8)
    patches = patchify(frames)
    assert patches.shape == ((count + 1) // 2, height * width // 196, 392, 3)
    again = unpatchify(patches, height, width)
    np.testing.assert_array_equal(again[:count], frames)
    if count % 2:
        np.testing.assert_array_equal(again[count], frames[-1])


def test_the_script_replaces_nothing_but_a_patch_image(run_script, tmp_path):
    picture, output = tmp_path / "a.png", tmp_path / "pixels.npy"
    Image.new("RGB", (56, 56)).save(picture)
    for _ in range(2):  # its own is replaced
        assert run_script("preprocess.py", picture, "--output", output).returncode == 0
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    np.save(tmp_path / "other.npy", np.zeros((2, 3), np.uint8))
    for name, words in (("model.safetensors", "no patch image"), ("other.npy", "no patch image"), ("a.png", "one of")):
        before = (tmp_path / name).read_bytes()
        done = run_script("preprocess.py", picture, "--output", tmp_path / name)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and words in done.stderr
        assert (tmp_path / name).read_bytes() == before


def test_the_script_counts_the_frames_it_leaves_out(run_script, tmp_path):
    frames = [Image.new("RGB", (56, 56), (40 * number, 0, 0)) for number in range(6)]
    for name in ("a.png", "b.webp", "c.tif", "d.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    paths = sorted(tmp_path.iterdir())
    done = run_script("preprocess.py", *paths, "--output", tmp_path / "x.npy")
    assert done.returncode == 0
    assert done.stderr == f"note: {paths[0]} and 3 more: only the first frame is taken, 20 further ones are not\n"


def test_the_script_opens_known_formats_only(run_script, tmp_path):
    """Pillow would start Ghostscript for this one."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\nshowpage\n")
    Image.new("I;16", (56, 56)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400))
    refused = {"a.png": "no picture in a known format", "b.png": "scale them to 8 bits first", "c.jpg": "convert it to"}
    for name, words in refused.items():
        done = run_script("preprocess.py", tmp_path / name, "--output", tmp_path / "x.npy")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and words in done.stderr
