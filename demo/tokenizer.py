"""A small tokenizer of Qwen2.5-VL's kind, for the demo model and for random test checkpoints.

Byte-level BPE with Qwen2.5's pre-tokenizer rule, NFC and its 22 added tokens, trained on a handful
of sentences: a few hundred tokens instead of 151,665. Every file that transformers needs beside a
checkpoint's weights and `config.json` is written: tokenizer, chat template, generation settings and
image processor settings.

    ids = build_tokenizer("some/checkpoint")      # {"video_token_id": 412, ..., "vocab_size": 421}

Writes: tokenizer.json tokenizer_config.json vocab.json merges.txt chat_template.json
generation_config.json preprocessor_config.json. The same texts and size give the same bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, write_json

SYSTEM_PROMPT = "You are a helpful assistant."

# Qwen2.5's rule: contractions, words with one leading mark, single digits, punctuation, white space.
PRE_TOKENIZER_RULE = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# In Qwen2.5's order, which the ids follow. The first group is dropped when text is decoded for people.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
ADDED_TOKENS = CONTROL_TOKENS + TEXT_TOKENS
BYTE_TOKENS = 256
SMALLEST_VOCAB = BYTE_TOKENS + len(ADDED_TOKENS)

# The names of config.json and generation_config.json for the ids that a model must know.
CONFIG_IDS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
    "im_start_token_id": "<|im_start|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}

# Renders what Qwen2.5-VL's template renders: a default system turn, and one pad token per picture or clip
# (the processor repeats it). `add_vision_id` numbers them.
CHAT_TEMPLATE = """\
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- macro medium(pad) -%}<|vision_start|>{{ pad }}<|vision_end|>{%- endmacro -%}
{%- if messages and messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ seen.pictures ~ ': ' -}}{%- endif -%}
{{- medium('<|image_pad|>') -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
{{- medium('<|video_pad|>') -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

DEFAULT_TEXTS = (
    "system\n" + SYSTEM_PROMPT,
    "user\nDescribe this video.",
    "user\nDescribe this image.",
    "user\n描述这个视频.",
    "user\n描述这张图片.",
    "assistant\nA red circle moves left.",
    "assistant\nA blue square moves right.",
    "assistant\n一个红色圆形向左移动。",
    "assistant\n一个蓝色方形向右移动。",
)


def build_tokenizer(
    directory: Path | str, texts: Iterable[str] = DEFAULT_TEXTS, vocab_size: int = 416
) -> dict[str, int]:
    """Trains the tokenizer and writes its files.

    Args:
        directory: where the files go; made when missing.
        texts: sentences that the merges are learned from. What they do not cover is spelled in bytes.
        vocab_size: at most this many tokens, the 256 bytes and the 22 added tokens included.

    Returns:
        Token ids by their name in config.json (`image_token_id`, `video_token_id`,
        `vision_start_token_id`, `vision_end_token_id`, `eos_token_id`, ...), and `vocab_size`, the
        number of tokens in fact: ids run from 0 to `vocab_size` - 1, added tokens last.

    Raises:
        InputError: `vocab_size` has no room for the bytes and the added tokens.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise InputError(f"vocab_size is {vocab_size}, expected at least {SMALLEST_VOCAB} (256 bytes, 22 added tokens)")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)

    tokenizer = _train(texts, vocab_size)
    model = json.loads(tokenizer.to_str())["model"]
    ids = {name: tokenizer.token_to_id(token) for name, token in CONFIG_IDS.items()}

    with atomic_write(directory / "tokenizer.json", "w") as file:
        file.write(tokenizer.to_str(pretty=True) + "\n")
    write_json(directory / "vocab.json", dict(sorted(model["vocab"].items(), key=lambda item: item[1])))
    with atomic_write(directory / "merges.txt", "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"]))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(tokenizer))
    write_json(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(directory / "generation_config.json", _generation_config(ids))
    write_json(directory / "preprocessor_config.json", _preprocessor_config())
    return ids | {"vocab_size": tokenizer.get_vocab_size()}


def _train(texts: Iterable[str], vocab_size: int):
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_RULE), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Added after training: their ids follow the ordinary ones, as in the real tokenizer.
    for token in ADDED_TOKENS:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in CONTROL_TOKENS)])
    return tokenizer


def _tokenizer_config(tokenizer) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": token in CONTROL_TOKENS}
            for token in ADDED_TOKENS
        },
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _generation_config(ids: dict[str, int]) -> dict:
    return {
        "bos_token_id": ids["bos_token_id"],
        "do_sample": False,
        "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]],
        "pad_token_id": ids["pad_token_id"],
    }


def _preprocessor_config() -> dict:
    return {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
