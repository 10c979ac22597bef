"""The demo's clips: one coloured shape moving over a dark, noisy ground, with questions and answers.

Each answer needs something that a conversion can break: colours the channel order, shapes the patch
layout, the direction the order of the frames, cells and boxes the positions. Clips of the two splits
never share a seed, and so no background either. A clip whose answer would hang on a pixel or two (a
box edge half-way between two tenths, a centre on the border of two cells) is drawn again.

    python demo/clips.py assets/demo.mp4     # an unseen clip as a video file: 2 s at 24 fps

Writes: the video file; the same arguments give the same pictures.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.tokenizer import SYSTEM_PROMPT
from qwen_vl_axera import cli
from qwen_vl_axera.files import atomic_write

SIZE = 168  # pixels per side: 12 patches, 6 merged tokens, no multiple of a window's 4
NUM_FRAMES = 8
FPS = 4.0
TENTH = SIZE / 10
CELL = SIZE / 3

SPLITS = {"train": 0, "test": 1}
LANGUAGES = ("en", "zh")
KINDS = ("caption", "start", "end", "box")

# R and B swapped maps red to blue and yellow to cyan.
COLOURS = {
    "red": ("红色", (225, 50, 50)),
    "green": ("绿色", (50, 205, 50)),
    "blue": ("蓝色", (50, 50, 225)),
    "yellow": ("黄色", (225, 215, 50)),
    "cyan": ("青色", (50, 215, 225)),
    "purple": ("紫色", (200, 50, 200)),
}
SHAPES = {"circle": "圆形", "square": "方形", "triangle": "三角形", "cross": "十字形"}
DIRECTIONS = {"left": ("左", (-1, 0)), "right": ("右", (1, 0)), "up": ("上", (0, -1)), "down": ("下", (0, 1))}
ROWS, COLUMNS = ("Top", "Middle", "Bottom"), ("left", "centre", "right")
CELLS_ZH = (("左上", "中上", "右上"), ("左中", "正中", "右中"), ("左下", "中下", "右下"))

# The first prompt of each list is the one that accuracy is measured with.
PROMPTS = {
    ("caption", "en"): ("Describe this video.", "What happens in this video?"),
    ("caption", "zh"): ("描述这个视频.", "描述这个视频。"),
    ("start", "en"): ("Where is the object at the start?", "Where does the object start?"),
    ("start", "zh"): ("物体开始时在哪里?", "物体开始时在哪里？"),
    ("end", "en"): ("Where is the object at the end?", "Where does the object end?"),
    ("end", "zh"): ("物体最后在哪里?", "物体最后在哪里？"),
    ("box", "en"): ("Locate the object at the end.", "Give the box of the object at the end."),
    ("box", "zh"): ("给出物体最后的位置框.", "给出物体最后的位置框。"),
}

RADIUS = (18.0, 28.0)  # half the side of the shape's box, pixels
TRAVEL = (42.0, 104.0)  # pixels from the first frame to the last
EDGE_MARGIN = 0.3  # of a tenth: how far a box edge may lie from the tenth it is called by
CELL_MARGIN = 6.0  # pixels from a centre to the nearest border between cells
NOISE = 12  # largest amplitude of a frame's own noise, of 255

DEMO_SEED, DEMO_INDEX = 0, 100_253  # a red circle that moves left; beyond what accuracy is measured on
VIDEO_FPS, VIDEO_SECONDS = 24, 2


@dataclass(frozen=True)
class Clip:
    """What one clip shows. Points are (x, y) in pixels; `key` seeds everything that is random in it."""

    key: tuple[int, int, int]
    colour: str
    shape: str
    direction: str
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]

    def centre(self, moment: float) -> tuple[float, float]:
        """Where the shape's centre is at a moment between 0 (first frame) and 1 (last)."""
        return tuple(a + (b - a) * moment for a, b in zip(self.start, self.end, strict=True))

    def box(self, moment: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge of the shape, in pixels."""
        x, y = self.centre(moment)
        return (x - self.radius, y - self.radius, x + self.radius, y + self.radius)


def make_clip(split: str, seed: int, index: int) -> Clip:
    """The clip with a number. Clips of different splits, seeds or numbers are independent."""
    key = (SPLITS[split], seed, index)
    rng = np.random.default_rng([*key, 0])
    colour, shape, direction = (list(names)[rng.integers(len(names))] for names in (COLOURS, SHAPES, DIRECTIONS))
    step = np.array(DIRECTIONS[direction][1])
    while True:
        radius = rng.uniform(*RADIUS)
        start = rng.uniform(radius + 1, SIZE - radius - 1, size=2)
        end = start + step * rng.uniform(*TRAVEL)
        if not (radius + 1 <= end.min() and end.max() <= SIZE - radius - 1):
            continue
        edges = np.concatenate([end - radius, end + radius]) / TENTH
        points = np.concatenate([start, end])
        if (
            np.abs(edges - np.round(edges)).max() <= EDGE_MARGIN
            and edges.max() < 9.5
            and np.abs(points[:, None] - [CELL, 2 * CELL]).min() >= CELL_MARGIN
        ):
            return Clip(key, colour, shape, direction, float(radius), tuple(start.tolist()), tuple(end.tolist()))


def render(clip: Clip, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The clip's frames, evenly spaced from first moment to last: uint8 (frames, 168, 168, 3), RGB."""
    rng = np.random.default_rng([*clip.key, 1])
    ground = _ground(rng)
    colour = np.array(COLOURS[clip.colour][1]) + rng.integers(-22, 23, size=3)
    amplitude = int(rng.integers(0, NOISE + 1))
    frames = np.empty((num_frames, SIZE, SIZE, 3), np.int16)
    for number, moment in enumerate(np.linspace(0, 1, num_frames)):
        frames[number] = ground
        _draw(frames[number], clip, colour, float(moment))
    frames += rng.integers(-amplitude, amplitude + 1, size=frames.shape, dtype=np.int8)
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A dark background, int16 (168, 168, 3): blotches of a random scale over a random dark colour."""
    from PIL import Image

    cells = int(rng.integers(3, 25))
    blotches = rng.integers(0, int(rng.integers(8, 56)), size=(cells, cells, 3), dtype=np.uint8)
    smooth = Image.fromarray(blotches).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(smooth, np.int16) + rng.integers(0, 36, size=3, dtype=np.int16)


def _draw(frame: np.ndarray, clip: Clip, colour: np.ndarray, moment: float) -> None:
    """Draws the shape into an int16 frame with smooth edges, so that half a pixel of motion shows."""
    left, top, right, bottom = clip.box(moment)
    x0, y0, x1, y1 = int(left) - 1, int(top) - 1, int(right) + 3, int(bottom) + 3
    x0, y0 = max(x0, 0), max(y0, 0)
    region = frame[y0:y1, x0:x1]
    centre_x, centre_y = clip.centre(moment)
    x = np.arange(x0, x0 + region.shape[1], dtype=np.float32)[None] + 0.5 - centre_x
    y = np.arange(y0, y0 + region.shape[0], dtype=np.float32)[:, None] + 0.5 - centre_y
    cover = np.clip(0.5 - _distance(clip.shape, x, y, clip.radius), 0, 1)[..., None]
    region[:] = np.round(region * (1 - cover) + colour * cover)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Pixels from a point to the shape's outline, negative inside (near enough for smooth edges)."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius
    if shape == "triangle":
        return np.maximum((2 * np.abs(x) - y - radius) / np.sqrt(5), y - radius)
    arm = 0.34 * radius
    upright = np.maximum(np.abs(x) - arm, np.abs(y) - radius)
    across = np.maximum(np.abs(x) - radius, np.abs(y) - arm)
    return np.minimum(upright, across)


def cell(point: tuple[float, float]) -> tuple[int, int]:
    """Row and column (0 to 2) of the ninth of the picture that a point lies in."""
    return int(point[1] // CELL), int(point[0] // CELL)


def answer(clip: Clip, kind: str, language: str) -> str:
    """The true answer to a question of a kind, in a language."""
    if kind == "box":
        return "[" + ",".join(str(round(edge / TENTH)) for edge in clip.box(1.0)) + "]"
    if kind in ("start", "end"):
        row, column = cell(clip.start if kind == "start" else clip.end)
        return f"{ROWS[row]} {COLUMNS[column]}." if language == "en" else f"{CELLS_ZH[row][column]}。"
    if language == "en":
        verb = f"moves {clip.direction}."
        return f"A {clip.colour} {clip.shape} {verb}"
    return f"一个{COLOURS[clip.colour][0]}{SHAPES[clip.shape]}向{DIRECTIONS[clip.direction][0]}移动。"


def box_overlap(said: str, true: str) -> float:
    """Intersection over union of two boxes written as `[left,top,right,bottom]`; 0 for what is no box."""
    try:
        boxes = [[int(part) for part in text.strip("[]").split(",")] for text in (said, true)]
        (a, b, c, d), (e, f, g, h) = boxes
    except ValueError:
        return 0.0
    if c <= a or d <= b:
        return 0.0
    shared = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
    return shared / ((c - a) * (d - b) + (g - e) * (h - f) - shared)


def all_answers() -> list[str]:
    """Every answer that can occur, but for the boxes."""
    nowhere = (0.0, 0.0)
    clips = [Clip((0, 0, 0), *named, 1.0, nowhere, nowhere) for named in itertools.product(COLOURS, SHAPES, DIRECTIONS)]
    captions = [answer(clip, "caption", language) for clip in clips for language in LANGUAGES]
    cells = [f"{row} {column}." for row in ROWS for column in COLUMNS]
    return captions + cells + [f"{name}。" for row in CELLS_ZH for name in row]


def all_texts() -> list[str]:
    """What the tokenizer is trained on, repeated so that nothing drowns among the many captions."""
    prompts = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    answers = all_answers()
    captions = len(COLOURS) * len(SHAPES) * len(DIRECTIONS) * len(LANGUAGES)
    chat = [f"system\n{SYSTEM_PROMPT}", "user\n", "assistant\n"]
    return 40 * (chat + prompts) + answers[:captions] + 40 * answers[captions:]


def demo_clip() -> Clip:
    """The clip of `assets/demo.mp4`: of the unseen split, and none that accuracy is measured on."""
    return make_clip("test", DEMO_SEED, DEMO_INDEX)


def write_video(clip: Clip, path: Path) -> None:
    """Writes a clip as H.264 in an MP4 file, 2 s at 24 fps, whose frames run evenly from start to end."""
    import io

    import av

    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        # One thread: x264 divides the work, and so the bits, by the number of threads.
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "16", "threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in render(clip, VIDEO_FPS * VIDEO_SECONDS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with atomic_write(path) as file:
        file.write(memory.getvalue())


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("video", metavar="FILE", type=Path, help="the MP4 file to write")
    parser.add_argument("--index", type=int, default=DEMO_INDEX, metavar="N", help="number of the unseen clip")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    clip = make_clip("test", DEMO_SEED, args.index)
    write_video(clip, args.video)
    for kind, language in PROMPTS:
        print(f"{PROMPTS[kind, language][0]} -> {answer(clip, kind, language)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
