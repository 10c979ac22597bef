"""The demo's clips: what is said of them is true of the pixels."""

import re

import numpy as np
import pytest

from demo import clips as demo_clips
from demo.clips import (
    COLOURS,
    KINDS,
    LANGUAGES,
    NUM_FRAMES,
    PROMPTS,
    SHAPES,
    SIZE,
    answer,
    make_clip,
    render,
)
from tests.demo.assets import ASSETS, CLIPS


@pytest.mark.parametrize("clip", CLIPS[:12], ids=lambda clip: f"{clip.colour}-{clip.shape}-{clip.direction}")
def test_answers_are_true_of_the_pixels(clip):
    """Colour, direction and box, read off the frames with a threshold instead of the clip's own numbers."""
    frames = render(clip)
    assert frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8
    # A shape's weakest strong channel is far above the darkest ground's strongest.
    ys, xs = zip(*(np.nonzero(frame.max(-1) > 130) for frame in frames), strict=True)
    centres = [((x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2) for x, y in zip(xs, ys, strict=True)]
    moved = np.subtract(centres[-1], centres[0])
    seen = ("left", "right")[int(moved[0] > 0)] if abs(moved[0]) > abs(moved[1]) else ("up", "down")[int(moved[1] > 0)]
    middle = frames[0][round(centres[0][1]), round(centres[0][0])].astype(int)
    colour = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name][1]).sum())
    assert answer(clip, "caption", "en") == f"A {colour} {clip.shape} moves {seen}."

    edges = [xs[-1].min(), ys[-1].min(), xs[-1].max() + 1, ys[-1].max() + 1]
    assert answer(clip, "box", "zh") == "[" + ",".join(str(round(edge / 16.8)) for edge in edges) + "]"
    row, column = (int(centres[-1][axis] * 3 / SIZE) for axis in (1, 0))
    names = [[f"{r} {c}." for c in ("left", "centre", "right")] for r in ("Top", "Middle", "Bottom")]
    assert answer(clip, "end", "en") == names[row][column]


def test_shapes_fill_their_share_of_the_box():
    """What tells the four shapes apart: the filled part of the bounding box."""
    share = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 0.34 * 2 - 0.34**2}
    for shape in SHAPES:
        clip = next(clip for clip in CLIPS if clip.shape == shape)
        filled = (render(clip)[0].max(-1) > 130).sum()
        assert filled / (2 * clip.radius) ** 2 == pytest.approx(share[shape], abs=0.05)


def test_every_word_occurs_in_both_languages():
    said = {language: " ".join(answer(clip, "caption", language) for clip in CLIPS) for language in LANGUAGES}
    for name, (zh, _) in COLOURS.items():
        assert name in said["en"] and zh in said["zh"]
    assert "描述这个视频." in PROMPTS["caption", "zh"]
    assert set(PROMPTS) == {(kind, language) for kind in KINDS for language in LANGUAGES}


def test_no_answer_hangs_on_a_pixel():
    for clip in CLIPS:
        edges = np.array(clip.box(1.0)) / 16.8
        assert np.abs(edges - edges.round()).max() <= 0.3
        assert re.fullmatch(r"\[\d,\d,\d,\d\]", answer(clip, "box", "en"))
        for x_or_y in (*clip.start, *clip.end):
            assert min(abs(x_or_y - 56), abs(x_or_y - 112)) >= 6
        assert min(clip.box(0.0) + clip.box(1.0)) >= 0 and max(clip.box(0.0) + clip.box(1.0)) <= SIZE


def test_clips_repeat_and_splits_share_no_ground():
    np.testing.assert_array_equal(render(make_clip("train", 0, 3)), render(make_clip("train", 0, 3)))
    grounds = {
        render(make_clip(split, seed, number))[0].tobytes()
        for split in ("train", "test")
        for seed in (0, 1)
        for number in range(10)
    }
    assert len(grounds) == 40


@pytest.mark.parametrize(
    ("said", "overlap"),
    [("[1,1,3,3]", 1.0), ("[1,1,3,2]", 0.5), ("[5,5,6,6]", 0.0), ("[3,3,1,1]", 0.0), ("red", 0.0), ("[1,1]", 0.0)],
)
def test_box_overlap(said, overlap):
    assert demo_clips.box_overlap(said, "[1,1,3,3]") == overlap


def test_the_demo_clip_is_the_generators(tmp_path, run_script):
    """The file in assets/ shows the generator's clip; other encoders may write other bytes of it."""
    pytest.importorskip("av")
    done = run_script("demo/clips.py", tmp_path / "again.mp4")
    assert done.returncode == 0, done.stderr
    assert answer(demo_clips.demo_clip(), "caption", "zh") in done.stdout
    import decord

    kept, again = (
        decord.VideoReader(str(path)).get_batch(range(48)).asnumpy()
        for path in (ASSETS / "demo.mp4", tmp_path / "again.mp4")
    )
    drawn = render(demo_clips.demo_clip(), 48)
    for decoded in (kept, again):
        # Colours of small areas suffer from 4:2:0; the mean does not.
        assert np.abs(decoded.astype(int) - drawn).mean() < 8
