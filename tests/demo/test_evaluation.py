"""What the demo model in assets/ says of clips, the demo clip among them."""

import numpy as np
import pytest

from demo import clips as demo_clips
from demo.clips import (
    FPS,
    KINDS,
    LANGUAGES,
    NUM_FRAMES,
    PROMPTS,
    SIZE,
    answer,
    make_clip,
    render,
)
from tests.demo.assets import ASSETS


@pytest.fixture(scope="module")
def examiner():
    from demo.evaluation import Examiner

    return Examiner(ASSETS / "demo_model")


def test_the_demo_model_answers_new_clips(examiner):
    """32 unseen clips through transformers in bf16; the card's figures come from many more."""
    import torch

    clips = [make_clip("test", 9, number) for number in range(32)]
    frames = torch.from_numpy(np.stack([render(clip) for clip in clips]))
    for (kind, language), least in {("caption", "zh"): 30, ("start", "en"): 30, ("end", "zh"): 30}.items():
        said = examiner.answers(frames, PROMPTS[kind, language][0])
        right = sum(text == answer(clip, kind, language) for text, clip in zip(said, clips, strict=True))
        assert right >= least, (kind, language, right)
    # The same clips backwards: every caption must turn round with them.
    backwards = examiner.answers(frames.flip(1), PROMPTS["caption", "en"][0])
    assert not any(text == answer(clip, "caption", "en") for text, clip in zip(backwards, clips, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_demo_model_describes_the_demo_clip(examiner, kind):
    """The video file, decoded and sampled by qwen-vl-utils, compression and all, asked in every way."""
    frames = sampled_frames()
    for language in LANGUAGES:
        for prompt in PROMPTS[kind, language]:
            assert examiner.answers(frames, prompt) == [answer(demo_clips.demo_clip(), kind, language)], prompt


def sampled_frames():
    """The demo clip's frames as the processor gets them: uint8 (1, 8, 168, 168, 3)."""
    vision = pytest.importorskip("qwen_vl_utils")
    # Left to itself it would enlarge a clip of 168×168: it gives a frame 128 tokens at least.
    wanted = {"nframes": NUM_FRAMES, "resized_height": SIZE, "resized_width": SIZE}
    video, sample_fps = vision.fetch_video({"video": str(ASSETS / "demo.mp4"), **wanted}, return_video_sample_fps=True)
    assert sample_fps == pytest.approx(FPS)
    assert tuple(video.shape) == (NUM_FRAMES, 3, SIZE, SIZE)
    return video.round().clamp(0, 255).byte().permute(0, 2, 3, 1)[None].contiguous()


def test_assets_stay_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert sum(path.stat().st_size for path in (ASSETS / "demo_model").iterdir()) <= 6 * 10**6
