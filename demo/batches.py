"""The demo model's training data: batches of clips with packed questions.

One row holds one clip and four questions behind it, one of each kind, each in a random language and wording.
"""

from pathlib import Path

import numpy as np
import torch

from demo import clips as demo_clips
from demo import network as demo_network
from demo.clips import COLOURS, FPS, KINDS, LANGUAGES, NUM_FRAMES, PROMPTS, SHAPES
from demo.network import STEPS, TOKENS
from demo.tokenizer import SYSTEM_PROMPT
from qwen_vl_axera.language.mrope import mrope_position_ids

SECOND_PER_GRID = demo_network.SLOTS / FPS
TOKENS_PER_SECOND = 2
IGNORED = -100


class Prompts:
    """Token ids and positions of the packed rows.

    Args:
        directory: holds the tokenizer's files.
        ids: what `build_tokenizer` returned.
    """

    def __init__(self, directory: Path, ids: dict[str, int]):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text).ids

        pad = ids["video_token_id"]
        head = encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>")
        self.encode, self.before = encode, len(head)
        self.prefix = np.array(head + [pad] * STEPS * TOKENS + [ids["vision_end_token_id"]])
        self.end = ids["eos_token_id"]
        self.positions, self.next_position = mrope_position_ids(
            self.prefix,
            video_grid_thw=[(STEPS, demo_network.GRID, demo_network.GRID)],
            second_per_grid_ts=[SECOND_PER_GRID],
            image_token_id=ids["image_token_id"],
            video_token_id=pad,
            vision_start_token_id=ids["vision_start_token_id"],
            spatial_merge_size=demo_network.MERGE,
            tokens_per_second=TOKENS_PER_SECOND,
        )
        self.questions = {
            (kind, language, number): encode(f"{prompt}<|im_end|>\n<|im_start|>assistant\n")
            for (kind, language), prompts in PROMPTS.items()
            for number, prompt in enumerate(prompts)
        }
        longest_answer = max(len(encode(text)) for text in [*demo_clips.all_answers(), "[1,1,1,1]"])
        self.length = max(map(len, self.questions.values())) + longest_answer + 1

    def segment(self, clip: demo_clips.Clip, kind: str, language: str, number: int) -> tuple[list[int], list[int]]:
        """Ids of one question with its answer, and the token that each of them should be followed by."""
        question = self.questions[kind, language, number]
        said = [*self.encode(demo_clips.answer(clip, kind, language)), self.end]
        spare = self.length - len(question) - len(said)
        row = question + said + [self.end] * spare
        following = [IGNORED] * (len(question) - 1) + said + [IGNORED] * (spare + 1)
        return row, following


class Batches(torch.utils.data.Dataset):
    """Batch number n: always the same clips and questions."""

    def __init__(self, prompts: Prompts, split: str, size: int, seed: int, first: int = 0):
        self.prompts, self.split, self.size, self.seed, self.first = prompts, split, size, seed, first

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        size, seed = self.size, self.seed
        rng = np.random.default_rng([demo_clips.SPLITS[self.split], seed, number, 2])
        clips = [demo_clips.make_clip(self.split, seed, self.first + number * size + row) for row in range(size)]
        segments = [
            [self.prompts.segment(clip, kind, LANGUAGES[rng.integers(2)], int(rng.integers(2))) for kind in KINDS]
            for clip in clips
        ]
        moments = np.linspace(0, 1, NUM_FRAMES)
        arrays = {
            "frames": np.stack([demo_clips.render(clip) for clip in clips]),
            "ids": np.array([[row for row, _ in rows] for rows in segments]),  # (B, 4, S)
            "following": np.array([[following for _, following in rows] for rows in segments]),
            "boxes": np.array([[clip.box(moment) for moment in moments] for clip in clips], np.float32),
            "colour": np.array([list(COLOURS).index(clip.colour) for clip in clips]),
            "shape": np.array([list(SHAPES).index(clip.shape) for clip in clips]),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
