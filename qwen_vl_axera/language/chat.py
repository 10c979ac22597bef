"""The prompt, its M-RoPE positions, and greedy text with any vision features in the loop.

transformers' language model is used as it is; features and positions are computed outside and passed in, so
that the same clip gives the same numbers with each transformers version.
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.config import ModelConfig, load_config
from qwen_vl_axera.checkpoint.tensors import MODEL_FILES, Checkpoint
from qwen_vl_axera.checkpoint.tokenizer import check_tokenizer
from qwen_vl_axera.doors import read_bytes
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import read_json
from qwen_vl_axera.language.model import load_language_model, stop_ids
from qwen_vl_axera.language.mrope import mrope_position_ids
from qwen_vl_axera.language.template import TemplateError, render
from qwen_vl_axera.memory import check_memory


@dataclass(frozen=True)
class Prompt:
    """A prompt about one clip.

    Attributes:
        text: the question.
        input_ids: int64 (L,), the video pad repeated once per merged token.
        position_ids: int64 (3, 1, L).
        next_position: of the first generated token, on all three axes.
    """

    text: str
    input_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int


@dataclass(frozen=True)
class Token:
    """A generated token and the probability that the model gave it."""

    id: int
    probability: float


def load_tokenizer(directory: Path):
    """The checkpoint's tokenizer, with the processor's chat template where the checkpoint has one.

    Raises:
        InputError: there is none, or there is no chat template.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not (directory / "tokenizer.json").exists() and not (directory / "vocab.json").exists():
        raise InputError(f"{directory}: no tokenizer.json; copy the tokenizer files beside the weights")
    for name in filter(lambda name: os.path.lexists(directory / name), MODEL_FILES):
        # transformers opens what it finds: pipes and devices, too
        if name == "tokenizer.json":
            check_tokenizer(directory / name, read_json(directory / name))
        else:
            read_json(directory / name) if name.endswith(".json") else read_bytes(directory / name)
    if (directory / "config.json").exists():
        Checkpoint(directory).check_counts()  # transformers makes a list of its layers, however many
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"{directory}: the tokenizer does not load: {str(error)[:200]}") from None
    tokenizer.chat_template = processor_template(directory) or tokenizer.chat_template
    if not isinstance(tokenizer.chat_template, str) or not tokenizer.chat_template:
        raise InputError(f"{directory}: no chat template; copy the released chat_template.json beside the weights")
    return tokenizer


def processor_template(directory: Path) -> str | None:
    """The chat template of the processor: chat_template.jinja, else chat_template.json, as transformers has it.

    The tokenizer's own comes last: beside a Qwen2.5-VL it may be that of the text-only Qwen2.5.

    Raises:
        InputError: the file is unreadable or of another form.
    """
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not readable as text ({error})") from None
    path = directory / "chat_template.json"
    if path.exists():
        raw = read_json(path)
        if not isinstance(raw, dict) or not isinstance(raw.get("chat_template"), str):
            raise InputError(f'{path}: expected an object with a text "chat_template"')
        return raw["chat_template"]
    return None


def video_token_ids(tokenizer, config: ModelConfig, text: str, num_tokens: int) -> np.ndarray:
    """The prompt's token ids, int64 (L,), with the video pad repeated `num_tokens` times.

    Raises:
        InputError: the text, the template or the tokenizer do not make such a prompt, or it is longer than the model.
    """
    place = Path(tokenizer.name_or_path)
    if pad := next((pad for pad in ("<|image_pad|>", "<|video_pad|>") if pad in text), None):
        raise InputError(f"the question {text[:40]!r} holds {pad}, which stands for a picture or a video: leave it out")
    content = [{"type": "video"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    variables = tokenizer.special_tokens_map | {"messages": messages, "add_generation_prompt": True}
    try:
        rendered = render(tokenizer.chat_template, variables, place)
    except TemplateError as error:  # whatever a template does with a list of parts that it does not expect
        raise InputError(
            f"{place}: the chat template takes text only: it is that of a language model, not of Qwen2.5-VL "
            f"({error}); copy the released chat_template.json beside the weights"
        ) from None
    try:
        rendered.encode()
        ids = np.array(tokenizer(rendered, add_special_tokens=False)["input_ids"], np.int64)
    except UnicodeEncodeError:  # bytes of the command line, or a template's escapes
        raise InputError(f"{place}: the prompt {text[:40]!r} is no UTF-8 text, rendered by its chat template") from None
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"{place}: the tokenizer does not take the prompt: {str(error)[:200]}") from None
    pads = np.flatnonzero(ids == config.video_token_id)
    if len(pads) != 1:
        raise InputError(
            f"{place}: the chat template renders {len(pads)} video pads (id {config.video_token_id}) for one video, "
            "expected 1"
        )
    if ids.max() >= config.text.vocab_size:
        raise InputError(
            f"{place}: the tokenizer gives the id {ids.max()}, the model has {config.text.vocab_size} rows (vocab_size "
            "in config.json): the tokenizer is another model's"
        )
    length, longest = len(ids) - 1 + num_tokens, config.text.max_position_embeddings
    if length > longest:
        raise InputError(f"{place}: the prompt takes {length} tokens, the model has {longest} positions")
    return np.concatenate([ids[: pads[0]], np.full(num_tokens, config.video_token_id), ids[pads[0] + 1 :]])


def prompt_token_count(directory: Path, text: str, num_tokens: int) -> int:
    """How many tokens a prompt about a clip of `num_tokens` merged tokens takes, template included."""
    return len(video_token_ids(load_tokenizer(directory), load_config(directory), text, num_tokens))


def build_prompt(
    tokenizer, config: ModelConfig, text: str, grid_thw: Sequence[int], second_per_grid_ts: float
) -> Prompt:
    """A prompt about one clip.

    Args:
        tokenizer: from `load_tokenizer`.
        config: of the checkpoint.
        text: the question.
        grid_thw: temporal steps, rows and columns of patches.
        second_per_grid_ts: seconds of one temporal step.
    """
    num_tokens = int(np.prod(grid_thw)) // config.vision.merge_unit
    ids = video_token_ids(tokenizer, config, text, num_tokens)
    position_ids, next_position = mrope_position_ids(
        ids,
        video_grid_thw=[list(grid_thw)],
        second_per_grid_ts=[second_per_grid_ts],
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        spatial_merge_size=config.vision.spatial_merge_size,
        tokens_per_second=config.vision.tokens_per_second,
    )
    return Prompt(text, ids, position_ids, next_position)


class LanguageModel:
    """transformers' Qwen2.5-VL without its vision tower.

    Args:
        directory: the checkpoint.
        dtype: "bfloat16" or "float32".
        device: "cpu", "cuda", ...
        tokenizer: the checkpoint's, where it is loaded already.
    """

    def __init__(self, directory: Path, dtype: str = "bfloat16", device: str = "cpu", tokenizer: Any = None):
        checkpoint = Checkpoint(directory)
        self.config, self.device = checkpoint.config, device
        self.tokenizer = tokenizer or load_tokenizer(directory)
        self.stop_ids = stop_ids(checkpoint.directory, self.tokenizer)
        self.model = load_language_model(checkpoint, dtype, device)

    def generate(self, prompt: Prompt, features: np.ndarray, max_new_tokens: int) -> list[Token]:
        """Greedy decoding.

        Args:
            prompt: from `build_prompt`.
            features: float32 (N, hidden), one per video pad.
            max_new_tokens: at most this many; decoding ends earlier at a stop token, which is included.

        Raises:
            InputError: the number of features is not the number of pads.
            CheckFailed: the model gives NaN or infinite logits.
        """
        import torch

        length = len(prompt.input_ids)
        check_memory(length * length, f"a prompt of {length} tokens, with the mask of its attention,")
        with torch.no_grad():
            ids = torch.from_numpy(prompt.input_ids).to(self.device)
            pads = ids == self.config.video_token_id
            if int(pads.sum()) != len(features):
                raise InputError(f"the prompt holds {int(pads.sum())} video pads, there are {len(features)} features")
            embeddings = self.model.get_input_embeddings()(ids)
            embeddings[pads] = torch.from_numpy(np.array(features)).to(embeddings)
            return self._decode(prompt, embeddings[None], max_new_tokens)

    def _decode(self, prompt: Prompt, embeddings: Any, max_new_tokens: int) -> list[Token]:
        import torch

        cached = cache_name(self.model)
        tokens: list[Token] = []
        positions = torch.from_numpy(prompt.position_ids).to(self.device)  # (3, 1, L)
        cache, length = None, embeddings.shape[1]
        with progress.stage("generate", max_new_tokens, unit="token") as stage:
            while len(tokens) < max_new_tokens:
                output = self.model(
                    inputs_embeds=embeddings,
                    position_ids=positions,
                    attention_mask=torch.ones(1, length, dtype=torch.long, device=self.device),
                    use_cache=True,
                    **{cached: cache},
                )
                probabilities = output.logits[0, -1].float().softmax(-1)
                if not probabilities.isfinite().all():
                    raise CheckFailed(f"the language model's logits of token {len(tokens)} are not finite")
                best = int(probabilities.argmax())
                tokens.append(Token(best, float(probabilities[best])))
                stage.advance()
                if best in self.stop_ids:
                    break
                cache = output[cached]
                embeddings = self.model.get_input_embeddings()(torch.tensor([[best]], device=self.device))
                positions = torch.full((3, 1, 1), prompt.next_position + len(tokens) - 1, device=self.device)
                length += 1
        return tokens

    def text(self, tokens: Sequence[Token]) -> str:
        """The words of generated tokens, special tokens left out."""
        return self.tokenizer.decode([token.id for token in tokens], skip_special_tokens=True).strip()


def cache_name(model: Any) -> str:
    """What the key-value cache is called, as an argument and in the output: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def first_difference(reference: Sequence[Token], actual: Sequence[Token]) -> int | None:
    """The index of the first token in which two answers differ, or None when they are equal."""
    for number in range(max(len(reference), len(actual))):
        one = reference[number].id if number < len(reference) else None
        other = actual[number].id if number < len(actual) else None
        if one != other:
            return number
    return None
