"""How well the demo model answers, measured with transformers in bf16 on unseen clips, greedily.

What it is to witness is measured too: the same questions with the vision tower's windows cut from tokens
that were never put in window order (an exporter's classic mistake, planted in `demo_network`).
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from demo import clips as demo_clips
from demo import network as demo_network
from demo.batches import SECOND_PER_GRID, TOKENS_PER_SECOND
from demo.clips import KINDS, LANGUAGES, PROMPTS
from demo.network import GRID, MERGE, STEPS, TOKENS, DemoNetwork
from qwen_vl_axera.files import read_json
from qwen_vl_axera.language.chat import cache_name
from qwen_vl_axera.language.mrope import mrope_position_ids
from qwen_vl_axera.progress import stage

FIRST_CLIP = 0  # of the unseen split; training's own log looks at later ones
BATCH = 32
MAX_NEW_TOKENS = 24  # the longest answer has 16 and its end


class Examiner:
    """Puts questions to a checkpoint through transformers."""

    def __init__(self, directory: Path):
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        # By its older name, which every version from 4.49 on knows.
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, torch_dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        config = read_json(directory / "config.json")
        self.ids = {name: config[name] for name in config if name.endswith("_token_id")}

    def prompt(self, text: str) -> tuple[list[int], np.ndarray, int]:
        """Token ids with the pads repeated, position ids (3, 1, L) and the next position."""
        content = [{"type": "video"}, {"type": "text", "text": text}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        rendered = rendered.replace("<|video_pad|>", "<|video_pad|>" * (STEPS * TOKENS))
        ids = self.tokenizer(rendered)["input_ids"]
        positions, following = mrope_position_ids(
            ids,
            video_grid_thw=[(STEPS, GRID, GRID)],
            second_per_grid_ts=[SECOND_PER_GRID],
            image_token_id=self.ids["image_token_id"],
            video_token_id=self.ids["video_token_id"],
            vision_start_token_id=self.ids["vision_start_token_id"],
            spatial_merge_size=MERGE,
            tokens_per_second=TOKENS_PER_SECOND,
        )
        return ids, positions, following

    @torch.no_grad()
    def answers(self, frames: torch.Tensor, text: str) -> list[str]:
        """The greedy answers to one prompt about several clips, uint8 (B, 8, 168, 168, 3)."""
        ids, positions, following = self.prompt(text)
        batch, end = len(frames), self.ids["eos_token_id"]
        values = demo_network.patches(frames).flatten(0, 1).to(torch.bfloat16)
        inputs = {
            "input_ids": torch.tensor(ids).expand(batch, -1),
            "position_ids": torch.from_numpy(positions).expand(-1, batch, -1),
            "pixel_values_videos": values,
            "video_grid_thw": torch.tensor([[STEPS, GRID, GRID]]).expand(batch, -1),
        }
        said, cached, cache = [], cache_name(self.model), None
        while len(said) < MAX_NEW_TOKENS:
            output = self.model(**inputs, **{cached: cache}, use_cache=True)
            token, cache = output.logits[:, -1].argmax(-1), output[cached]
            said.append(token)
            if (torch.stack(said) == end).any(0).all():
                break
            inputs = {"input_ids": token[:, None], "position_ids": torch.full((3, batch, 1), following)}
            following += 1
        rows = torch.stack(said, 1).tolist()
        # A row that never ends keeps no end token, and so matches no answer.
        cut = [row[: row.index(end)] if end in row else [*row, end] for row in rows]
        return self.tokenizer.batch_decode(cut)


def clip_batches(clips: int, batch: int = BATCH):
    """Unseen clips with their frames, some at a time."""
    for start in range(0, clips, batch):
        made = [
            demo_clips.make_clip("test", demo_clips.DEMO_SEED, FIRST_CLIP + number)
            for number in range(start, min(start + batch, clips))
        ]
        yield made, torch.from_numpy(np.stack([demo_clips.render(clip) for clip in made]))


def evaluate(directory: Path, clips: int) -> dict:
    """Accuracy by kind and language.

    Returns:
        {kind: {language: {"exact": share of answers right to the last token, "iou": boxes only}}}
    """
    examiner = Examiner(directory)
    exact, overlap = defaultdict(list), defaultdict(list)
    with stage("evaluation", clips * len(PROMPTS), unit="answer") as bar:
        for made, frames in clip_batches(clips):
            for (kind, language), prompts in PROMPTS.items():
                for clip, said in zip(made, examiner.answers(frames, prompts[0]), strict=True):
                    true = demo_clips.answer(clip, kind, language)
                    exact[kind, language].append(said == true)
                    if kind == "box":
                        overlap[kind, language].append(demo_clips.box_overlap(said, true))
                bar.advance(len(made))
    return {
        kind: {
            language: {"exact": float(np.mean(exact[kind, language]))}
            | ({"iou": float(np.mean(overlap[kind, language]))} if kind == "box" else {})
            for language in LANGUAGES
        }
        for kind in KINDS
    }


def load_network(directory: Path) -> DemoNetwork:
    """The checkpoint's weights in the training network, float32."""
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    network = DemoNetwork(len(tensors["model.embed_tokens.weight"]))
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network


@torch.no_grad()
def witness(directory: Path, clips: int) -> dict[str, dict[str, float]]:
    """English answers with the window order applied and not applied: share right, and the boxes' IoU."""
    examiner, network = Examiner(directory), load_network(directory)
    right_order = network.visual.order
    orders = {"applied": right_order, "not applied": torch.arange(TOKENS)}
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in orders}
    with stage("window order", clips * len(orders), unit="clip") as bar:
        for made, frames in clip_batches(clips):
            for name, order in orders.items():
                network.visual.order = order
                features, _ = network.visual(demo_network.patches(frames))
                for kind in KINDS:
                    said = greedy(network, examiner, features, PROMPTS[kind, "en"][0])
                    for clip, text in zip(made, said, strict=True):
                        true = demo_clips.answer(clip, kind, "en")
                        found[name][kind].append(text == true)
                        if kind == "box":
                            found[name]["iou"].append(demo_clips.box_overlap(text, true))
                bar.advance(len(made))
    return {name: {kind: float(np.mean(values)) for kind, values in kinds.items()} for name, kinds in found.items()}


@torch.no_grad()
def greedy(network: DemoNetwork, examiner: Examiner, features: torch.Tensor, text: str) -> list[str]:
    """The greedy answers to one prompt about several clips whose features are given, float32 (B, 144, hidden)."""
    ids, positions, following = examiner.prompt(text)
    end, batch = examiner.ids["eos_token_id"], len(features)
    row = torch.tensor(ids)
    x = network.model.embed_tokens(row).expand(batch, -1, -1).clone()
    x[:, row == examiner.ids["video_token_id"]] = features
    position_ids = torch.from_numpy(positions).expand(-1, batch, -1)
    said = torch.empty(batch, 0, dtype=torch.int64)
    while said.shape[1] < MAX_NEW_TOKENS and not (said == end).any(1).all():
        length = x.shape[1]
        mask = torch.full((length, length), -1e4).triu(1)
        token = network.logits(network.model(x, position_ids, mask)[:, -1]).argmax(-1)
        said = torch.cat([said, token[:, None]], 1)
        x = torch.cat([x, network.model.embed_tokens(token)[:, None]], 1)
        position_ids = torch.cat([position_ids, torch.full((3, batch, 1), following)], -1)
        following += 1
    cut = [row[: row.index(end)] if end in row else [*row, end] for row in said.tolist()]
    return examiner.tokenizer.batch_decode(cut)
