"""The demo's clips, the network they train, and the assets made with both."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from demo import clips as demo_clips
from demo.clips import (
    COLOURS,
    FPS,
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

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
CLIPS = [make_clip("test", 5, number) for number in range(60)]


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


def test_patches_lie_as_transformers_lays_them():
    pytest.importorskip("torchvision")
    import torch
    from transformers import Qwen2VLImageProcessor

    from demo.network import patches

    frames = render(CLIPS[0])
    processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=SIZE * SIZE)
    ours = patches(torch.from_numpy(frames[None]))[0].numpy().reshape(4, 144, 3, 2, 196)
    for slot, frame in [(slot, frames[slot]) for slot in (0, 1, 7)]:
        # A picture fills both slots of its step with itself.
        theirs = processor(images=[frame], return_tensors="np")["pixel_values"].reshape(144, 3, 2, 196)
        np.testing.assert_allclose(ours[slot // 2, :, :, slot % 2], theirs[:, :, 0], atol=2e-6)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, run_script):
    """A model trained for two steps, as a user would."""
    out = tmp_path_factory.mktemp("smoke") / "model"
    done = run_script("demo/train.py", out, "--smoke", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return out


def test_training_leaves_a_checkpoint_and_a_card(smoke):
    config = json.loads((smoke / "config.json").read_text())
    assert "text_config" not in config
    card = (smoke / "README.md").read_text()
    assert "holds no weight of any Qwen model" in card
    assert "2 unseen clips" in card
    result = json.loads((smoke.with_name("model.training") / "result.json").read_text())
    assert set(result["accuracy"]) == set(KINDS)
    assert set(result["witness"]) == {"applied", "not applied"}


def test_training_does_not_overwrite_and_resumes(smoke, run_script):
    again = run_script("demo/train.py", smoke, "--smoke", "--threads", 1)
    assert again.returncode == 2
    assert "holds a model already" in again.stderr
    before = (smoke / "model.safetensors").read_bytes()
    resumed = run_script("demo/train.py", smoke, "--smoke", "--threads", 1, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (smoke / "model.safetensors").read_bytes() == before


def test_bad_arguments_are_refused(tmp_path, run_script):
    done = run_script("demo/train.py", tmp_path / "x", "--steps", 0)
    assert done.returncode == 2 and "--steps is 0" in done.stderr
    done = run_script("demo/train.py", tmp_path / "x", "--evaluate-only")
    assert done.returncode == 2 and "model.safetensors is missing" in done.stderr


def test_training_resumes_to_the_same_weights(tmp_path):
    """Two steps, stopped and two more, give what four in one go give."""
    import dataclasses

    import torch

    from demo import batches as demo_batches
    from demo import training as demo_training
    from demo.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    ids = build_tokenizer(tmp_path, demo_clips.all_texts(), 512)
    prompts = demo_batches.Prompts(tmp_path, ids)
    settings = demo_training.Settings(steps=4, batch=2)

    def run(name, **options):
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        return demo_training.train(settings, prompts, ids["vocab_size"], work, **options)[0].state_dict()

    whole = run("whole", resume=False)
    half = run("parts", stop=2)
    assert not all(torch.equal(whole[name], half[name]) for name in whole)
    parts = run("parts", resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    from qwen_vl_axera.errors import InputError

    with pytest.raises(InputError, match="--resume"):
        run("parts", resume=False)
    settings = dataclasses.replace(settings, batch=3)
    with pytest.raises(InputError, match="other settings"):
        run("parts", resume=True)


@pytest.fixture(scope="module")
def examiner():
    from demo.evaluation import Examiner

    return Examiner(ASSETS / "demo_model")


def test_network_computes_what_transformers_computes(examiner):
    """Trained weights, float32: features and logits of our training network against the reference."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from demo.evaluation import load_network
    from demo.network import patches

    directory = ASSETS / "demo_model"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, torch_dtype=torch.float32).eval()
    network = load_network(directory)
    ids, positions, _ = examiner.prompt(PROMPTS["caption", "en"][0])
    row, position_ids = torch.tensor([ids]), torch.from_numpy(positions)
    values = patches(torch.from_numpy(render(CLIPS[1])[None]))
    with torch.no_grad():
        theirs = model(
            input_ids=row,
            position_ids=position_ids,
            pixel_values_videos=values[0],
            video_grid_thw=torch.tensor([[4, 12, 12]]),
        ).logits[0]
        features, _ = network.visual(values)
        x = network.model.embed_tokens(row)
        x[row == examiner.ids["video_token_id"]] = features[0]
        mask = torch.full((len(ids), len(ids)), -1e4).triu(1)
        ours = network.logits(network.model(x, position_ids, mask))[0]
    # float32 sums in another order; the logits span about ±20.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


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


def test_assets_stay_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert sum(path.stat().st_size for path in (ASSETS / "demo_model").iterdir()) <= 6 * 10**6
