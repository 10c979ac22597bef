"""Greedy text from two sets of features, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.language.chat import LanguageModel, Prompt, Token, build_prompt, first_difference, load_tokenizer
from qwen_vl_axera.language.model import check_language, stop_ids
from qwen_vl_axera.language.record import Answer, AnswerToken, Difference
from qwen_vl_axera.oracle.record import Capture


@dataclass(frozen=True)
class Questions:
    """What is asked about a clip, with the checkpoint that answers and its tokenizer."""

    directory: Path
    tokenizer: Any
    prompts: tuple[Prompt, ...]


def read_questions(checkpoint: Checkpoint, capture: Capture, texts: Sequence[str]) -> Questions:
    """The prompts about a clip: made before anything is computed, so that a mistyped one costs nothing.

    Raises:
        InputError: as of `check_language`, `load_tokenizer`, `stop_ids` and `build_prompt`.
    """
    check_language(checkpoint)
    tokenizer, clip = load_tokenizer(checkpoint.directory), (capture.grid_thw, capture.second_per_grid_ts)
    stop_ids(checkpoint.directory, tokenizer)
    return Questions(
        checkpoint.directory,
        tokenizer,
        tuple(build_prompt(tokenizer, checkpoint.config, text, *clip) for text in texts),
    )


def check_text(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    reference: np.ndarray,
    actual: np.ndarray,
    max_new_tokens: int,
) -> list[Answer]:
    """Greedy text from two sets of features, token by token: the `text` entries of `fidelity.json`.

    Args:
        model: the language model.
        prompts: the questions.
        reference: transformers' features, float32 (N, hidden).
        actual: the graph's features, float32 (N, hidden).
        max_new_tokens: per answer.
    """
    answers = []
    for prompt in prompts:
        pair = [model.generate(prompt, features, max_new_tokens) for features in (reference, actual)]
        answers.append(compare_answers(model, prompt.text, *pair))
    return answers


def compare_answers(model: LanguageModel, prompt: str, reference: list[Token], actual: list[Token]) -> Answer:
    """One question's answers; where they differ, the first token that does with both probabilities."""
    number = first_difference(reference, actual)
    return Answer(
        prompt=prompt,
        reference=model.text(reference),
        onnx=model.text(actual),
        tokens=len(reference),
        equal=number is None,
        reference_ids=[token.id for token in reference],
        onnx_ids=[token.id for token in actual],
        complete=bool(reference) and reference[-1].id in model.stop_ids,  # not cut at max_new_tokens
        first_difference=None
        if number is None
        else Difference(number, *(shown(model, answer[number:]) for answer in (reference, actual))),
    )


def shown(model: LanguageModel, tokens: list[Token]) -> AnswerToken | None:
    """The first of some tokens, a stop token's text included; None where the answer has ended."""
    return AnswerToken(tokens[0].id, model.tokenizer.decode([tokens[0].id]), tokens[0].probability) if tokens else None
