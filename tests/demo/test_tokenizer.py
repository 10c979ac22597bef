"""The small tokenizer, as every supported transformers reads it."""

import json

import pytest

from demo.tokenizer import ADDED_TOKENS, CONTROL_TOKENS, SMALLEST_VOCAB, TEXT_TOKENS, build_tokenizer
from qwen_vl_axera.errors import InputError

transformers = pytest.importorskip("transformers")

TEXTS = [
    "A red circle moves left.",
    "It's 42\n\n  words,  and\tmore...\n",
    "一个红色圆形向左移动。",
    "e\u0301 😀 naïve",
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>x<tool_call><|im_end|>\n",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    return directory, build_tokenizer(directory)


@pytest.fixture(scope="module", params=["auto", "Qwen2Tokenizer"])
def tokenizer(request, built):
    kind = transformers.AutoTokenizer if request.param == "auto" else transformers.Qwen2Tokenizer
    return kind.from_pretrained(built[0])


def test_ids_follow_the_ordinary_tokens_in_qwens_order(built, tokenizer):
    _, ids = built
    first = ids["vocab_size"] - len(ADDED_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(first, ids["vocab_size"]))
    assert len(tokenizer) == ids["vocab_size"] <= 416
    # The distances of the real ids, 151643 to 151664.
    real = {
        "bos_token_id": 151643,
        "im_start_token_id": 151644,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "pad_token_id": 151643,
    }
    assert {name: ids[name] - first + 151643 for name in real} == real


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer, text):
    import unicodedata

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", TEXTS)
def test_vocabulary_and_merges_say_the_same_as_tokenizer_json(built, tokenizer, text):
    from tokenizers import Tokenizer

    assert tokenizer(text)["input_ids"] == Tokenizer.from_file(str(built[0] / "tokenizer.json")).encode(text).ids


def test_words_are_cut_as_qwen_cuts_them(built):
    """Digits one by one, one leading mark per word, contractions apart, line ends apart."""
    from tokenizers import Tokenizer

    cutter = Tokenizer.from_file(str(built[0] / "tokenizer.json")).pre_tokenizer
    cut = [piece for piece, _ in cutter.pre_tokenize_str("I've 12 (red)\n\n  dots.\n")]
    assert cut == ["I", "'ve", "Ġ", "1", "2", "Ġ(", "red", ")ĊĊ", "Ġ", "Ġdots", ".Ċ"]


def test_control_tokens_are_left_out_of_text_for_people(tokenizer):
    ids = tokenizer("".join(ADDED_TOKENS))["input_ids"]
    assert len(ids) == len(ADDED_TOKENS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(TEXT_TOKENS)
    assert set(CONTROL_TOKENS) <= set(tokenizer.convert_ids_to_tokens(ids))


def render(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_template_renders_what_qwen2_5_vl_renders(tokenizer):
    content = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "描述这个视频."}]
    assert render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>描述这个视频.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_template_with_a_system_turn_pictures_and_numbers(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"image": "x.png", "type": "image"}, {"type": "video"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "image_url", "image_url": "y"}, {"type": "text", "text": "And?"}]},
    ]
    picture, video = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    assert render(tokenizer, messages) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{picture}{picture}{video}<|im_end|>\n"
        f"<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\n{picture}And?<|im_end|>\n"
    )
    numbered = render(tokenizer, messages, add_vision_id=True)
    assert f"Picture 1: {picture}Picture 2: {picture}Video 1: {video}<|im_end|>" in numbered
    assert f"Picture 3: {picture}And?" in numbered


def test_settings_beside_the_tokenizer(built):
    directory, ids = built
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert generation.eos_token_id == [ids["eos_token_id"], ids["bos_token_id"]]
    assert not generation.do_sample
    images = json.loads((directory / "preprocessor_config.json").read_text())
    assert (images["patch_size"], images["merge_size"], images["temporal_patch_size"]) == (14, 2, 2)
    # From transformers' own constants, not typed again.
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert (images["image_mean"], images["image_std"]) == (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))


def test_the_same_bytes_again(built, tmp_path):
    build_tokenizer(tmp_path)
    names = sorted(path.name for path in built[0].iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes()


def test_own_texts_get_own_tokens(tmp_path):
    ids = build_tokenizer(tmp_path, ["zebra zebra zebra zebra"], SMALLEST_VOCAB + 4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == ids["vocab_size"] == SMALLEST_VOCAB + 4
    assert len(tokenizer("zebra")["input_ids"]) == 1


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 278"):
        build_tokenizer(tmp_path, vocab_size=SMALLEST_VOCAB - 1)
    assert list(tmp_path.iterdir()) == []
