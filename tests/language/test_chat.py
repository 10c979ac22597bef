"""Prompt, positions and greedy text against transformers' own `generate`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration

from preprocess import flat_patches
from qwen_vl_axera.checkpoint.config import load_config
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import DESCRIBE, LOCATE
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.language.chat import (
    LanguageModel,
    Prompt,
    Token,
    build_prompt,
    first_difference,
    load_tokenizer,
    prompt_token_count,
)
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
from tests.talking import make_talking

GRID = (6, 8)  # 84x112
TOKENS = 12
# transformers 5 no longer advances by time: only there text after a clip of several steps stands elsewhere.
TIME_COUNTS = int(transformers.__version__.split(".")[0]) < 5


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return make_talking(tmp_path_factory.mktemp("talking") / "tiny")


@pytest.fixture(scope="module")
def tower(talking):
    checkpoint = Checkpoint(talking)
    return ReferenceTower(checkpoint, checkpoint.config.vision)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request, talking, tmp_path_factory):
    """Our loop, and transformers' full model of the same dtype (its tower float32, as the features are here)."""
    # By its name in config.json, the same in every version; `.to()` would round the rotary frequencies, too.
    copy = shutil.copytree(talking, tmp_path_factory.mktemp("typed") / request.param)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"torch_dtype": request.param}))
    full = Qwen2_5_VLForConditionalGeneration.from_pretrained(copy, torch_dtype="auto").eval()
    assert full.lm_head.weight.dtype == getattr(torch, request.param)
    (full.visual if hasattr(full, "visual") else full.model.visual).float()
    return LanguageModel(talking, request.param), full


def patches(steps):
    return np.random.default_rng(steps).integers(0, 256, (steps, GRID[0] * GRID[1], 392, 3), dtype=np.uint8)


def theirs(full, prompt: Prompt, **inputs) -> list[int]:
    """Greedy tokens of `generate`, from token ids and pixels: positions, features and cache are its own."""
    ids = torch.from_numpy(prompt.input_ids)[None]
    with torch.no_grad():
        output = full.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            **inputs,
        )
    return output[0, ids.shape[1] :].tolist()


def video_inputs(full, prompt: Prompt, pixels, seconds: float) -> dict:
    inputs = {
        "pixel_values_videos": torch.from_numpy(flat_patches(pixels)),
        "video_grid_thw": torch.tensor([[len(pixels), *GRID]]),
        "second_per_grid_ts": torch.tensor([seconds]),
    }
    if not TIME_COUNTS:
        pads = torch.from_numpy(prompt.input_ids)[None] == full.config.video_token_id
        inputs["mm_token_type_ids"] = pads.int() * 2
    return inputs


def ids_of(tokens) -> list[int]:
    return [token.id for token in tokens]


def test_text_alone(pair):
    model, full = pair
    ids = np.array(model.tokenizer("<|im_start|>user\nDescribe this video.<|im_end|>\n")["input_ids"])
    positions = np.broadcast_to(np.arange(len(ids)), (3, 1, len(ids))).copy()
    prompt = Prompt("", ids, positions, len(ids))
    ours = ids_of(model.generate(prompt, np.zeros((0, 48), np.float32), TOKENS))
    assert ours == theirs(full, prompt)
    assert len(set(ours)) > TOKENS // 2


@pytest.mark.parametrize("text", [DESCRIBE, LOCATE, "Describe this video."])
def test_one_step(pair, tower, text):
    model, full = pair
    pixels = patches(1)
    prompt = build_prompt(model.tokenizer, model.config, text, (1, *GRID), 1.0)
    ours = ids_of(model.generate(prompt, tower.run(pixels, GRID), TOKENS))
    assert ours == theirs(full, prompt, **video_inputs(full, prompt, pixels, 1.0))
    assert len(set(ours)) > TOKENS // 2


@pytest.mark.skipif(not TIME_COUNTS, reason="transformers 5 advances text positions by the grid's sides alone")
@pytest.mark.parametrize("seconds", [1.0, 3.0])  # 4.57 knows whole seconds only
def test_several_steps(pair, tower, seconds):
    model, full = pair
    pixels = patches(4)
    prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (4, *GRID), seconds)
    ours = ids_of(model.generate(prompt, tower.run(pixels, GRID), TOKENS))
    assert ours == theirs(full, prompt, **video_inputs(full, prompt, pixels, seconds))


def test_several_steps_without_a_cache(pair, tower):
    """The same text when each token is computed anew from the whole prompt: cache and mask change nothing."""
    model, _ = pair
    features = tower.run(patches(4), GRID)
    prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (4, *GRID), 2.5)
    ours = model.generate(prompt, features, TOKENS)
    embed = model.model.get_input_embeddings()
    with torch.no_grad():
        embeddings = embed(torch.from_numpy(prompt.input_ids))
        pads = prompt.input_ids == model.config.video_token_id
        embeddings[torch.from_numpy(pads)] = torch.from_numpy(features).to(embeddings)
        for number, token in enumerate(ours):
            more = np.arange(number) + prompt.position_ids.max() + 1
            positions = np.concatenate([prompt.position_ids, np.tile(more, (3, 1, 1))], axis=2)
            logits = model.model(
                inputs_embeds=embeddings[None],
                position_ids=torch.from_numpy(positions),
                attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
                use_cache=False,
            ).logits[0, -1]
            probability, best = logits.float().softmax(-1).max(-1)
            assert int(best) == token.id, number
            # bf16 rounds the sums of one token and of many differently: 8 bits of logits of about 30
            tolerance = {"rel": 1e-3} if embed.weight.dtype == torch.float32 else {"abs": 0.1}
            assert float(probability) == pytest.approx(token.probability, **tolerance)
            embeddings = torch.cat([embeddings, embed(best[None])])


def test_the_text_hangs_on_features_their_order_and_their_times(talking, tower):
    """Otherwise equal texts would prove nothing."""
    model = LanguageModel(talking, "float32")
    features = tower.run(patches(4), GRID)

    def answer(values, seconds=2.5):
        prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (4, *GRID), seconds)
        return model.generate(prompt, values, TOKENS)

    usual = answer(features)
    assert first_difference(usual, answer(features)) is None
    for other in (features * 0.5 + 0.1, features[::-1], features.reshape(4, 12, -1)[::-1].reshape(48, -1)):
        assert first_difference(usual, answer(np.ascontiguousarray(other))) is not None
    assert first_difference(usual, answer(features, seconds=1.0)) is not None


def test_the_prompt_is_qwens(talking):
    """The released models' template, with one pad for each merged token of the clip."""
    tokenizer, config = load_tokenizer(talking), load_config(talking)
    prompt = build_prompt(tokenizer, config, DESCRIBE, (4, *GRID), 1.0)
    assert tokenizer.decode(prompt.input_ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{'<|video_pad|>' * 48}<|vision_end|>描述这个视频.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.input_ids.dtype == np.int64
    assert prompt_token_count(talking, DESCRIBE, 48) == len(prompt.input_ids)
    assert prompt_token_count(talking, DESCRIBE, 484) == len(prompt.input_ids) + 484 - 48


def test_a_text_that_looks_like_a_pad_is_refused(talking):
    with pytest.raises(InputError, match="which stands for a picture or a video: leave it out"):
        build_prompt(load_tokenizer(talking), load_config(talking), "what is <|video_pad|>?", (1, *GRID), 1.0)


def test_positions_of_time_rows_and_columns(talking):
    """308x308 at one frame a second: steps are two seconds apart, four positions at two a second."""
    prompt = build_prompt(load_tokenizer(talking), load_config(talking), DESCRIBE, (4, 22, 22), 2.0)
    assert prompt.position_ids.shape == (3, 1, len(prompt.input_ids))
    assert prompt.position_ids.dtype == np.int64
    pads = np.flatnonzero(prompt.input_ids == load_config(talking).video_token_id)
    start = pads[0]
    before, clip, after = np.split(prompt.position_ids[:, 0], [start, pads[-1] + 1], axis=1)
    np.testing.assert_array_equal(before, np.tile(np.arange(start), (3, 1)))
    step, row, column = np.unravel_index(np.arange(484), (4, 11, 11))
    np.testing.assert_array_equal(clip - start, [4 * step, row, column])
    # The last step stands at 12, beyond the largest row and column (10).
    np.testing.assert_array_equal(after, np.tile(start + 13 + np.arange(after.shape[1]), (3, 1)))
    assert prompt.next_position == after.max() + 1


def test_decoding_ends_at_a_stop_token(talking, tower):
    model = LanguageModel(talking, "float32")
    assert model.stop_ids == {model.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
    prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (1, *GRID), 1.0)
    features = tower.run(patches(1), GRID)
    usual = ids_of(model.generate(prompt, features, TOKENS))
    assert len(usual) == TOKENS
    model.stop_ids = {usual[5]}
    assert ids_of(model.generate(prompt, features, TOKENS)) == usual[: usual.index(usual[5]) + 1]
    assert ids_of(model.generate(prompt, features, 3)) == usual[:3]


def test_stop_tokens_without_a_generation_config(talking, tmp_path):
    copy = shutil.copytree(talking, tmp_path / "copy")
    (copy / "generation_config.json").unlink()
    model = LanguageModel(copy, "float32")
    assert model.stop_ids == {model.tokenizer.eos_token_id}


def test_features_must_fit_the_pads(talking, tower):
    model = LanguageModel(talking, "float32")
    prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (2, *GRID), 1.0)
    with pytest.raises(InputError, match="holds 24 video pads, there are 12 features"):
        model.generate(prompt, tower.run(patches(1), GRID), TOKENS)


def test_logits_that_are_not_finite_are_no_answer(talking, tower):
    model = LanguageModel(talking, "float32")
    prompt = build_prompt(model.tokenizer, model.config, DESCRIBE, (1, *GRID), 1.0)
    features = tower.run(patches(1), GRID)
    with pytest.raises(CheckFailed, match="logits of token 0 are not finite"):
        model.generate(prompt, features * np.nan, TOKENS)
    with torch.no_grad():
        model.model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(CheckFailed, match="are not finite"):
        model.generate(prompt, features, TOKENS)


def test_the_tower_is_given_back(talking):
    model = LanguageModel(talking, "bfloat16")
    assert not any("visual" in name for name, _ in model.model.named_parameters())
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_special_tokens_are_left_out_of_the_text(talking):
    model = LanguageModel(talking, "float32")
    words = model.tokenizer("A red circle moves left.<|im_end|>")["input_ids"]
    assert model.text([Token(number, 1.0) for number in words]) == "A red circle moves left."


def test_first_difference():
    one = [Token(1, 0.5), Token(2, 0.5), Token(3, 0.5)]
    assert first_difference(one, [dataclasses.replace(token, probability=0.1) for token in one]) is None
    assert first_difference(one, [*one[:2], Token(4, 0.5)]) == 2
    assert first_difference(one, one[:2]) == 2
    assert first_difference(one[:1], one) == 1
    assert first_difference([], []) is None


TEXT_ONLY = "{% for message in messages %}{{ '<|im_start|>' + message.role + message.content }}{% endfor %}"


def template_of(directory, **files) -> str:
    """The chat template that is taken: names of files without their dots -> content; the tokenizer's is "own"."""
    for name in ("chat_template.json", "chat_template.jinja"):
        (directory / name).unlink(missing_ok=True)
    for name, text in files.items():
        (directory / name.replace("_template_", "_template.")).write_text(text, encoding="utf-8")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "own"}))
    return load_tokenizer(directory).chat_template


def test_the_processors_chat_template_comes_first(talking, tmp_path):
    copy = shutil.copytree(talking, tmp_path / "copy")
    older = '{"chat_template": "json"}'
    assert template_of(copy, chat_template_jinja="jinja", chat_template_json=older) == "jinja"
    assert template_of(copy, chat_template_json=older) == "json"
    assert template_of(copy) == "own"
    with pytest.raises(InputError, match=r"chat_template\.json: expected an object"):
        template_of(copy, chat_template_json='["json"]')


def test_a_text_only_template_is_named(talking, tmp_path):
    """The tokenizer of Qwen2.5 beside a Qwen2.5-VL."""
    tokenizer = load_tokenizer(talking)
    tokenizer.chat_template = TEXT_ONLY
    with pytest.raises(InputError, match="takes text only: it is that of a language model"):
        build_prompt(tokenizer, load_config(talking), DESCRIBE, (1, *GRID), 1.0)


def test_a_quantised_language_model_without_its_package(talking, tmp_path):
    """Here the package is missing; the same line comes where it needs a graphics card."""
    copy = shutil.copytree(talking, tmp_path / "gptq")
    config = json.loads((copy / "config.json").read_text())
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(InputError, match="quantised with GPTQ, which does not run here"):
        LanguageModel(copy, "float32")


def test_tokenizer_problems_are_named(talking, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    copy = shutil.copytree(talking, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        load_tokenizer(copy)
    shutil.copy(talking / "tokenizer.json", copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("chat_template.json", "chat_template.jinja"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(copy)
