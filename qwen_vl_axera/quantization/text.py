"""Answers with quantised features: what the losses mean in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from qwen_vl_axera.language.chat import LanguageModel, build_prompt, first_difference


def answers(request, clips, features: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Any]]:
    """Greedy answers to each question about each clip under each setting.

    Args:
        request: `preview.Request`: the checkpoint, the prompts and the language model's settings.
        clips: `samples.EvaluationClip`s, whose steps make up the features in order.
        features: setting -> float32 (S/4, out_hidden) for each step; "float" is what others are compared with.

    Returns:
        [{"clip", "prompt", "answers": {setting: {"text", "equal"}}}]
    """
    model = LanguageModel(request.checkpoint.directory, request.dtype, request.device)
    entries, start = [], 0
    for clip in clips:
        end = start + len(clip.pixels)
        of_clip = {
            name: np.concatenate([step.numpy() for step in steps[start:end]]) for name, steps in features.items()
        }
        for text in request.prompts:
            prompt = build_prompt(model.tokenizer, model.config, text, clip.grid_thw, clip.second_per_grid_ts)
            said = {name: model.generate(prompt, rows, request.max_new_tokens) for name, rows in of_clip.items()}
            entries.append(
                {
                    "clip": clip.name,
                    "prompt": text,
                    "answers": {
                        name: {"text": model.text(tokens), "equal": first_difference(said["float"], tokens) is None}
                        for name, tokens in said.items()
                    },
                }
            )
        start = end
    return entries
