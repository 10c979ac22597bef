"""Frames -> uint8 patch images, the vision graph's input. numpy and Pillow only: the board runs this file too.

    python preprocess.py IMAGE... [--size H W | --max-pixels N] --output pixels.npy

Reads:  pictures, taken as the frames of one clip in the order given; a single one is a still.
Writes: uint8 (T, S, 392, 3) as .npy: T steps of two frames, S patches, 392 = 2 frames · 14 rows · 14 columns.

Every value equals what transformers' Pillow image processor computes before it normalises. Each step of the
array is, byte by byte, what the compiled model takes. Patches lie in merge-block order: the four of each 2x2
block, which become one token, follow each other.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path.append(sys.path.pop(0))  # a json.py beside this script must not stand in for Python's own

import argparse
import logging
import math
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

# Of Qwen2.5-VL; another model's numbers are given as arguments.
PATCH_SIZE = 14  # pixels per side
TEMPORAL_PATCH_SIZE = 2  # frames per step
MERGE_SIZE = 2  # patches per side of a block
FACTOR = PATCH_SIZE * MERGE_SIZE  # 28: every side is a multiple
CHANNELS = 3
PATCH_PIXELS = TEMPORAL_PATCH_SIZE * PATCH_SIZE**2  # 392

# CLIP's statistics for values of 0..1, as in the checkpoints' preprocessor_config.json.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

MIN_PIXELS = 56 * 56
MAX_PIXELS = 308 * 308
MAX_ASPECT_RATIO = 200

EXIF_ORIENTATION = 0x0112
TURNED = {  # what makes a picture of this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow may take a file for: some of its other readers run programs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
# Of HEIF files, which Pillow does not read, and which look like videos: bytes 4 to 12.
HEIF = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")}
HEIF_REMEDY = "HEIC and HEIF pictures are not read: convert it to JPEG or PNG"

Frame = Image.Image | np.ndarray  # an array is uint8 (H, W, 3)


def smart_resize(
    height: int,
    width: int,
    factor: int = FACTOR,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """The size at which the model sees a picture: Qwen's rule.

    Sides become multiples of `factor`, the area stays within [min_pixels, max_pixels] where that is possible,
    and the aspect ratio changes as little as it can. The rule is that of `smart_resize` in transformers 5.23,
    models/qwen2_vl/image_processing_pil_qwen2_vl.py (https://github.com/huggingface/transformers).

    Args:
        height, width: in pixels.
        factor: patch size times merge size.
        min_pixels, max_pixels: bounds of the area, in pixels.

    Returns:
        Height and width.

    Raises:
        ValueError: a side is below 1, the bounds contradict each other, or one side is 200 times the other.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height}x{width}: expected at least one pixel per side")
    if not factor * factor <= max_pixels or not 1 <= min_pixels <= max_pixels:
        raise ValueError(
            f"min_pixels {min_pixels} and max_pixels {max_pixels}: expected 1 <= min_pixels <= max_pixels "
            f"and max_pixels >= {factor * factor}"
        )
    check_aspect_ratio(height, width)
    rows, columns = (
        round(height / factor),
        round(width / factor),
    )  # Python rounds halves to even, as Qwen's does
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def square_of_same_area(height: int, width: int) -> int | None:
    """The side of the square that the board's runtime takes a size for; None when it reads the size rightly.

    All that it knows is how many bytes the compiled model takes, so the area, and it tries a square first. The
    patches are as many, so nothing fails: the picture is squeezed and its windows are others.
    """
    side = math.isqrt(height * width)
    return side if height != width and side * side == height * width else None


def nearest_readable(height: int, width: int, factor: int = FACTOR) -> list[tuple[int, int]]:
    """For a misread size, the nearest that the board's runtime reads rightly: the longer side one block less, or more.

    If a·b and a·(b ± 1) both were squares of whole numbers, so were b·(b ± 1), which lies between two of them.
    """
    if height > width:
        return [(height - factor, width), (height + factor, width)]
    return [(height, width - factor), (height, width + factor)]


def automatic_size(
    height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS, factor: int = FACTOR
) -> tuple[int, int]:
    """The size for a picture when none is asked for: `smart_resize`'s, or beside it where the board would misread that.

    Args, returns and raises as `smart_resize`. Where no neighbour keeps the bounds, the size is Qwen's.
    """
    size = smart_resize(height, width, factor, min_pixels, max_pixels)
    if square_of_same_area(*size) is None:
        return size
    fitting = [other for other in nearest_readable(*size, factor) if min_pixels <= other[0] * other[1] <= max_pixels]
    return fitting[0] if fitting else size


def check_aspect_ratio(height: int, width: int) -> None:
    """Refuses a picture of which one side is 200 times the other, or more.

    Raises:
        ValueError: it is one.
    """
    ratio = aspect_ratio(height, width)
    if ratio >= MAX_ASPECT_RATIO:
        raise ValueError(
            f"a picture of {height}x{width} (height x width) has an aspect ratio of {ratio:.4g}: "
            f"expected below {MAX_ASPECT_RATIO}, crop it first"
        )


def aspect_ratio(height: int, width: int) -> float:
    """The longer side over the shorter one."""
    return max(height, width) / min(height, width)


def check_size(height: int, width: int, factor: int = FACTOR) -> tuple[int, int]:
    """A size that was asked for, checked.

    Raises:
        ValueError: a side is no positive multiple of `factor` (the message names the nearest that is), or one
            is 200 times the other.
    """
    if height < factor or width < factor or height % factor or width % factor:
        nearest = " ".join(str(max(1, round(side / factor)) * factor) for side in (height, width))
        raise ValueError(f"size {height} {width}: expected multiples of {factor}; the nearest is {nearest}")
    if aspect_ratio(height, width) >= MAX_ASPECT_RATIO:
        raise ValueError(f"size {height} {width}: expected one side to be below {MAX_ASPECT_RATIO} times the other")
    return height, width


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as upright RGB: EXIF rotation applied, transparency laid over white.

    The rotation is that of transformers' `load_image`, the conversion that of its image processor from 5.x on
    (4.x and `load_image` drop the alpha channel and show whatever colours lie under it; qwen-vl-utils, Qwen's
    own reader, uses white).

    Args:
        image: any mode that Pillow converts to RGB.

    Returns:
        The same object when there is nothing to do.
    """
    if (turned := TURNED.get(orientation(image))) is not None:
        image = image.transpose(turned)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """How a picture lies by its EXIF data, 1 to 8; 1 (upright) where those are damaged, or there are none."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # whatever damaged bytes lead to
        return 1


def check_depth(image: Image.Image) -> None:
    """Refuses a picture of more than 8 bits a channel: Pillow would make it all white or all black.

    Raises:
        ValueError: it is one.
    """
    if image.mode.startswith(("I", "F")):
        kind = "floating-point" if image.mode.startswith("F") else "16- or 32-bit"
        raise ValueError(f"holds {kind} grey values: scale them to 8 bits first (0..255)")


def is_heif(start: bytes) -> bool:
    """Whether a file that begins with these bytes, 64 of them, is a HEIF picture, such as phones make."""
    return start[4:12] in HEIF and b"avif" not in start


def further_frames(image: Image.Image) -> int:
    """How many frames a picture file holds after the first. Previews that cameras put into a JPEG don't count."""
    return 0 if image.format == "MPO" else getattr(image, "n_frames", 1) - 1


def only_first(cut: dict[Path, int]) -> str:
    """What is said of pictures of which only the first frame is taken, {picture: further frames}."""
    others = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
    return f"{next(iter(cut))}{others}: only the first frame is taken, {sum(cut.values())} further ones are not"


def open_formats() -> list[str]:
    """Those of FORMATS that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic on uint8, the model's own filter. `reducing_gap` and `draft` would be faster but change bits.

    Args:
        image: RGB.
        size: height and width.
    """
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC)


def frame_to_array(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """One frame as the model sees it.

    Args:
        frame: a picture of any mode, or uint8 (H, W, 3).
        size: height and width, multiples of 28.

    Returns:
        uint8 (height, width, 3).
    """
    image = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
    return np.frombuffer(resize(to_rgb(image), size).tobytes(), np.uint8).reshape(*size, CHANNELS)


def _blocks(frames: np.ndarray, patch_size: int) -> np.ndarray:
    """Cuts frames up without copying.

    Args:
        frames: uint8 (T, 2, H, W, 3), contiguous.
        patch_size: pixels per side.

    Returns:
        A view of void elements, each one patch row (14 pixels are 42 bytes, moved at once), of shape
        (T, block rows, block columns, 2, 2, frame, patch row).
    """
    steps, pair, height, width, channels = frames.shape
    row_of_patch = np.dtype((np.void, patch_size * channels))
    cut = (
        steps,
        pair,
        height // (patch_size * MERGE_SIZE),
        MERGE_SIZE,
        patch_size,
        width // (patch_size * MERGE_SIZE),
        MERGE_SIZE,
        row_of_patch.itemsize,
    )
    return frames.reshape(cut).view(row_of_patch)[..., 0].transpose(0, 2, 5, 3, 6, 1, 4)


def patchify(frames: np.ndarray, patch_size: int = PATCH_SIZE) -> np.ndarray:
    """Frames of the model's size -> patch images.

    Args:
        frames: uint8 (N, H, W, 3), sides multiples of 28. When N is odd the last frame is repeated.
        patch_size: pixels per side; 28 is twice, 392 twice the square of the default, 14.

    Returns:
        uint8 (T, S, 392, 3): T = ceil(N / 2) steps of S = (H / 14)·(W / 14) patches.

    Raises:
        ValueError: another shape or dtype, or no frames.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != CHANNELS or not len(frames):
        raise ValueError(f"frames {frames.dtype} {frames.shape}: expected uint8 (N, H, W, 3), N at least 1")
    if len(frames) % TEMPORAL_PATCH_SIZE:
        frames = np.concatenate([frames, frames[-1:]])
    height, width = check_size(*frames.shape[1:3], patch_size * MERGE_SIZE)
    pairs = np.ascontiguousarray(frames).reshape(-1, TEMPORAL_PATCH_SIZE, height, width, CHANNELS)
    blocks = _blocks(pairs, patch_size)
    patches = np.empty(patches_shape(len(blocks), (height, width), patch_size), np.uint8)
    patches.reshape(-1).view(blocks.dtype).reshape(blocks.shape)[...] = blocks
    return patches


def unpatchify(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """The exact inverse of `patchify`.

    Args:
        patches: uint8 (T, S, 392, 3); the patch size is read from the 392 = 2 · 14 · 14.
        height, width: of the frames.

    Returns:
        uint8 (2·T, height, width, 3).

    Raises:
        ValueError: the patches are not of that size.
    """
    patch_size = patch_side(patches.shape[2]) if patches.ndim == 4 else PATCH_SIZE
    check_size(height, width, patch_size * MERGE_SIZE)
    expected = patches_shape(len(patches), (height, width), patch_size)
    if patches.dtype != np.uint8 or patches.shape != expected:
        raise ValueError(
            f"patches {patches.dtype} {patches.shape}: a size of {height}x{width} takes uint8 (T, "
            f"{', '.join(map(str, expected[1:]))})"
        )
    frames = np.empty((len(patches), TEMPORAL_PATCH_SIZE, height, width, CHANNELS), np.uint8)
    blocks = _blocks(frames, patch_size)
    blocks[...] = np.ascontiguousarray(patches).reshape(-1).view(blocks.dtype).reshape(blocks.shape)
    return frames.reshape(-1, height, width, CHANNELS)


def patches_shape(steps: int, size: tuple[int, int], patch_size: int = PATCH_SIZE) -> tuple[int, int, int, int]:
    """Of the patch images of some steps: (T, S, 392, 3)."""
    return steps, num_patches(*size, patch_size), TEMPORAL_PATCH_SIZE * patch_size**2, CHANNELS


def patch_side(pixels: int) -> int:
    """The patch size whose patches hold so many pixels over their two frames: 14 for 392."""
    return max(1, math.isqrt(pixels // TEMPORAL_PATCH_SIZE))


def num_patches(height: int, width: int, patch_size: int = PATCH_SIZE) -> int:
    """Patches of one step: S."""
    return (height // patch_size) * (width // patch_size)


def num_tokens(height: int, width: int, patch_size: int = PATCH_SIZE) -> int:
    """Tokens of the language model that one step becomes: S / 4, one per merge block."""
    return num_patches(height, width, patch_size * MERGE_SIZE)


def patch_image_to_picture(
    patch_image: Image.Image | np.ndarray, height: int, width: int, frame: int = 0
) -> Image.Image:
    """A patch image turned back, for looking at it.

    Args:
        patch_image: uint8 (S, 392, 3), or the picture of it, RGB, 392 wide and S high.
        height, width: of the frames in it.
        frame: which of the two.
    """
    return Image.fromarray(unpatchify(np.asarray(patch_image)[None], height, width)[frame])


def iter_steps(
    frames: Iterable[Frame], size: tuple[int, int], workers: int | None = None, patch_size: int = PATCH_SIZE
) -> Iterator[np.ndarray]:
    """Resizes frames in threads (Pillow releases the interpreter's lock) and yields step after step.

    Only a few frames are held at a time, so memory does not grow with the clip. A frame that comes again while it
    is in work (a still in both slots) is not resized twice.

    Args:
        frames: pictures or arrays; they may be read lazily, but not be changed afterwards.
        size: height and width, multiples of 28.
        workers: threads; default: one per processor.
        patch_size: pixels per side.

    Yields:
        uint8 (S, 392, 3), a new array for every step.
    """
    check_size(*size, patch_size * MERGE_SIZE)
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        running = deque()  # frames and their futures, in order
        try:
            for frame in frames:
                # Two threads must not decode one lazily opened picture.
                again = next((future for other, future in running if other is frame), None)
                running.append((frame, again or pool.submit(frame_to_array, frame, size)))
                if len(running) >= TEMPORAL_PATCH_SIZE * (workers + 1):
                    yield _next_step(running, patch_size)
            while running:
                yield _next_step(running, patch_size)
        finally:
            for _, future in running:
                future.cancel()


def _next_step(running: deque, patch_size: int) -> np.ndarray:
    pair = [running.popleft()[1].result() for _ in range(min(TEMPORAL_PATCH_SIZE, len(running)))]
    return patchify(np.stack(pair), patch_size)[0]


def frames_to_patches(
    images: Iterable[Frame],
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    patch_size: int = PATCH_SIZE,
) -> np.ndarray:
    """Pictures or frames -> uint8 (T, S, 392, 3), bit for bit what transformers' Pillow path computes.

    Args:
        images: pictures of any size and mode, or uint8 (H, W, 3) arrays; an iterator is consumed once. When
            their count is odd the last one is repeated.
        size: height and width; default: what `automatic_size` gives for the first one.
        workers: threads; default: one per processor.
        patch_size: pixels per side.

    Raises:
        ValueError: there are none, or the size is not one the model takes.
    """
    iterator = iter(images)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no frames: expected at least one")
    factor = patch_size * MERGE_SIZE
    size = check_size(*size, factor) if size is not None else automatic_size(*frame_shape(first), factor=factor)
    steps = iter_steps(_chain(first, iterator), size, workers, patch_size)
    try:
        count = -(-len(images) // TEMPORAL_PATCH_SIZE)
    except TypeError:  # an iterator
        return np.stack(list(steps))
    patches = np.empty(patches_shape(count, size, patch_size), np.uint8)
    done = 0
    for step in steps:
        patches[done] = step
        done += 1
    return patches[:done]


def _chain(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


def frame_shape(frame: Frame) -> tuple[int, int]:
    """Height and width of a frame as it is seen, EXIF rotation applied."""
    if isinstance(frame, np.ndarray):
        return frame.shape[0], frame.shape[1]
    lying = orientation(frame) in (5, 6, 7, 8)
    return frame.size if lying else frame.size[::-1]


def normalize(patches: np.ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> np.ndarray:
    """The values that transformers feeds the tower, exactly: one table entry per channel and pixel value.

    Args:
        patches: uint8 (S, 392, 3) or (T, S, 392, 3).
        mean, std: of the channels, for values of 0..1.

    Returns:
        float32 (T, 3, S, 392), T = 1 for a single step.
    """
    # transformers scales in float64, rounds to float32, then subtracts and divides in float32.
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    tables = [(scaled - np.float32(mean)) / np.float32(std) for mean, std in zip(mean, std, strict=True)]
    steps = patches.reshape(-1, *patches.shape[-3:])
    normalised = np.empty((len(steps), CHANNELS, *steps.shape[1:3]), np.float32)
    for step, target in zip(steps, normalised, strict=True):  # numpy widens indices: a step's fit the cache
        for channel, table in enumerate(tables):
            np.take(table, step[..., channel], out=target[channel], mode="clip")  # no value is clipped
    return normalised


def flat_patches(patches: np.ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> np.ndarray:
    """Normalised patches as transformers' tower takes them (`pixel_values`), one a row.

    Args:
        patches: uint8 (S, 392, 3) or (T, S, 392, 3).
        mean, std: of the channels, for values of 0..1.

    Returns:
        float32 (T·S, 1176), each row in the order channel, frame, patch row, patch column.
    """
    values = normalize(patches, mean, std)  # (T, 3, S, 392)
    return values.transpose(0, 2, 1, 3).reshape(-1, CHANNELS * values.shape[-1])


def to_graph_input(patches: np.ndarray) -> np.ndarray:
    """Patches as the `pixels` graph takes them: the same values, 0..255, channels first.

    Args:
        patches: uint8 (S, 392, 3) or (T, S, 392, 3).

    Returns:
        float32 (T, 3, S, 392), T = 1 for a single step.
    """
    steps = patches.reshape(-1, *patches.shape[-3:])
    return steps.transpose(0, 3, 1, 2).astype(np.float32, order="C")


class _Parser(argparse.ArgumentParser):
    """As that of `qwen_vl_axera.cli`, which the board does not have: one line for an error, without the usage."""

    def error(self, message: str):
        self.exit(2, _line(f"{self.prog}: error: {message} (--help lists the flags)") + "\n")


def _line(text: object) -> str:
    """A message as one line that is safe to show, whatever file names are in it."""
    spaced = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in spaced)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures, in the order of the clip")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="exact size, multiples of 28")
    size.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest area (default: 308·308)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .npy file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    warnings.simplefilter("ignore")  # Pillow's, about tags that it can't read: more than a line each
    logging.disable(logging.CRITICAL)
    try:
        shape = frame_shape(_read(args.images[0]))
        size = tuple(args.size) if args.size else automatic_size(*shape, max_pixels=args.max_pixels)
        _check_memory(len(args.images), *size)
        _check_output(args.output, args.images)
        cut: dict[Path, int] = {}
        patches = frames_to_patches((_read(path, cut) for path in args.images), size)
        _write(args.output, patches)
        if cut:
            print(f"note: {_line(only_first(cut))}", file=sys.stderr)
        steps, rows = patches.shape[:2]
        shown = f"{_line(args.output)}: {steps} steps of {rows} patches at {size[0]}x{size[1]}, uint8 {patches.shape}"
        print(shown, flush=True)
    except MemoryError:
        print(f"error: not enough memory for {args.size or 'these pictures'}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check_memory(count: int, height: int, width: int) -> None:
    """Refuses a size of which the frames in work and the patches would take more than half of the memory."""
    in_work = TEMPORAL_PATCH_SIZE * ((os.cpu_count() or 1) + 2)
    needed = (count + in_work) * CHANNELS * height * width
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory / 2:
        raise ValueError(
            f"{count} frames of {height}x{width} take {needed / 1e9:.1f} GB of {memory / 1e9:.1f} GB of memory: "
            "take fewer, or a smaller size"
        )


def _read(path: Path, cut: dict[Path, int] | None = None) -> Image.Image:
    """A decoded picture; where it holds further frames, their number is noted in `cut`."""
    if not path.is_file():
        raise ValueError(f"{path}: {'expected a picture, found something else' if path.exists() else 'no such file'}")
    with open(path, "rb") as file:
        if is_heif(file.read(64)):
            raise ValueError(f"{path}: {HEIF_REMEDY}")
    try:
        image = Image.open(path, formats=open_formats())
        further = further_frames(image)
        image.load()
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead to
        reason = "no picture in a known format" if "cannot identify" in str(error) else str(error)
        raise ValueError(f"{path}: does not decode as a picture ({reason}); replace or remove it") from None
    try:
        check_depth(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if further and cut is not None:
        cut[path] = further
    return image


def _check_output(path: Path, inputs: Sequence[Path]) -> None:
    """That nothing is replaced but a patch image that this script made."""
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path}: would be replaced, expected a file or nothing")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}")
    if path.exists() and any(path.samefile(image) for image in inputs):
        raise ValueError(f"{path}: would be replaced, and is one of the pictures; give another name")
    if path.exists() and not _is_patch_image(path):
        raise ValueError(f"{path}: would be replaced, and is no patch image; give another name")


def _is_patch_image(path: Path) -> bool:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array.dtype == np.uint8 and array.ndim == 4 and array.shape[2:] == (PATCH_PIXELS, CHANNELS)
    except Exception:  # whatever bytes lead numpy to
        return False


def _write(path: Path, array: np.ndarray) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(f"{path}: not written ({error.strerror or error})") from None
        raise


if __name__ == "__main__":
    sys.exit(main())
