"""What the board's runtime makes of frames, settings and a question, against what this project makes of them."""

import json

import numpy as np
import pytest
from PIL import Image

from preprocess import num_patches, num_tokens, patchify
from qwen_vl_axera.board.settings import SYSTEM_PROMPT, VisionModel, runtime_config
from qwen_vl_axera.board.timing import time_settings
from qwen_vl_axera.contract import PROMPTS
from qwen_vl_axera.language.chat import build_prompt, load_tokenizer
from tests.board import runtime
from tests.board.test_timing import capture

SIZES = [(56, 56), (84, 112), (168, 168), (308, 308), (252, 336), (336, 252)]


def settings_for(tiny, size, rate: float = 1.0, steps: int = 4) -> dict:
    time = time_settings(capture(rate, steps), tiny.config.vision.tokens_per_second)
    config = runtime_config("tiny", tiny.config, VisionModel("tiny_vision", "video", size), 512, time, SYSTEM_PROMPT)
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_patches(tiny, size, count):
    frames = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    settings = settings_for(tiny, size)
    theirs, ours = runtime.cut_patches(list(frames), settings), patchify(frames)
    assert [run.tobytes() for run in ours] == theirs
    assert runtime.infer_size(len(theirs[0]), settings) == size
    assert len(theirs[0]) == num_patches(*size) * 392 * 3


def test_a_directory_of_frames(tmp_path):
    """Names are sorted as text; what is no picture of a known kind is passed over."""
    for name in ("0002.png", "0010.png", "0001.PNG", "2.webp", "note.txt", "check.json", "x.gif", "y.tiff"):
        Image.new("RGB", (28, 28)).save(tmp_path / name, "PNG")
    names = [path.name for path in runtime.frame_files(tmp_path)]
    assert names == ["0001.PNG", "0002.png", "0010.png", "2.webp"]


@pytest.mark.parametrize("text", [*PROMPTS, "What is in this video?"])
@pytest.mark.parametrize(
    ("size", "steps", "rate"),
    [((168, 168), 4, 4.0), ((308, 308), 4, 1.0), ((252, 336), 3, 0.8), ((56, 84), 1, 2.0), ((84, 56), 16, 2.5)],
)
def test_prompt_and_positions(tiny, tiny_dir, text, size, steps, rate):
    tokenizer, config = load_tokenizer(tiny_dir), tiny.config
    grid = (steps, size[0] // 14, size[1] // 14)
    ours = build_prompt(tokenizer, config, text, grid, 2 / rate)
    settings = settings_for(tiny, size, rate, steps)
    rendered = runtime.prompt_text(text, steps * num_tokens(*size), settings)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids == ours.input_ids.tolist()
    theirs = runtime.positions(ids, config.video_token_id, grid, settings)
    assert theirs == ours.position_ids[:, 0].tolist()


@pytest.mark.parametrize("beginning", runtime.BEFORE_MEDIA)
def test_a_question_that_the_runtime_misplaces(tiny, tiny_dir, beginning):
    """A known difference, of which package_model.py and check_board.py warn."""
    tokenizer, text = load_tokenizer(tiny_dir), f"{beginning}what moves?"
    ours = build_prompt(tokenizer, tiny.config, text, (1, 4, 4), 1.0)
    ids = tokenizer(runtime.prompt_text(text, 4, settings_for(tiny, (56, 56))), add_special_tokens=False)["input_ids"]
    assert sorted(ids) == sorted(ours.input_ids.tolist()) and ids != ours.input_ids.tolist()
