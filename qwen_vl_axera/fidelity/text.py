"""Greedy text from two sets of features, token by token."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_vl_axera.fidelity.chat import LanguageModel, Token, build_prompt, first_difference
from qwen_vl_axera.oracle.record import Capture


def check_text(
    model: LanguageModel,
    capture: Capture,
    prompts: Sequence[str],
    reference: np.ndarray,
    actual: np.ndarray,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Greedy text from two sets of features, token by token: the `text` entries of `fidelity.json`.

    Args:
        model: the language model.
        capture: the clip.
        prompts: the questions.
        reference: transformers' features, float32 (N, hidden).
        actual: the graph's features, float32 (N, hidden).
        max_new_tokens: per answer.
    """
    entries = []
    for text in prompts:
        prompt = build_prompt(model.tokenizer, model.config, text, capture.grid_thw, capture.second_per_grid_ts)
        answers = [model.generate(prompt, features, max_new_tokens) for features in (reference, actual)]
        entries.append(text_entry(model, text, *answers))
    return entries


def text_entry(model: LanguageModel, prompt: str, reference: list[Token], actual: list[Token]) -> dict[str, Any]:
    """One question's answers; where they differ, the first token that does with both probabilities."""
    entry = {
        "prompt": prompt,
        "reference": model.text(reference),
        "onnx": model.text(actual),
        "tokens": len(reference),
        "equal": True,
        "reference_ids": [token.id for token in reference],
        "onnx_ids": [token.id for token in actual],
        "complete": bool(reference) and reference[-1].id in model.stop_ids,  # not cut at max_new_tokens
    }
    number = first_difference(reference, actual)
    if number is not None:
        entry["equal"] = False
        entry["first_difference"] = {"token": number} | {
            name: {
                "id": answer[number].id,
                "text": model.tokenizer.decode([answer[number].id]),  # a stop token shows, too
                "probability": answer[number].probability,
            }
            for name, answer in (("reference", reference), ("onnx", actual))
            if number < len(answer)
        }
    return entry
