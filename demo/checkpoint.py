"""The demo model's files: config.json, weights in the hub's layout, a model card of measured values."""

from pathlib import Path

import torch

from demo import clips as demo_clips
from demo.batches import TOKENS_PER_SECOND
from demo.clips import PROMPTS
from demo.network import MERGE, PATCH, SLOTS, TEXT, VISION, WINDOW, DemoNetwork
from qwen_vl_axera.files import atomic_write, write_json

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
CONFIG_ID_NAMES = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "image_token_id",
    "video_token_id",
)
TARGETS = {"caption": 0.98, "start": 0.99, "end": 0.99, "iou": 0.90}


def config(ids: dict[str, int]) -> dict:
    """config.json, flat as on the hub: transformers 4.49, 4.57 and 5 read it alike."""
    return {
        "architectures": [ARCHITECTURE],
        "attention_dropout": 0.0,
        **{name: ids[name] for name in CONFIG_ID_NAMES},
        "hidden_act": "silu",
        "hidden_size": TEXT["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": TEXT["mlp"],
        "max_position_embeddings": 4096,
        "max_window_layers": TEXT["layers"],
        "model_type": "qwen2_5_vl",
        "num_attention_heads": TEXT["heads"],
        "num_hidden_layers": TEXT["layers"],
        "num_key_value_heads": TEXT["kv_heads"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": list(TEXT["section"]), "type": "mrope"},
        "rope_theta": TEXT["theta"],
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": VISION["depth"],
            "fullatt_block_indexes": list(VISION["full"]),
            "hidden_act": "silu",
            "hidden_size": VISION["hidden"],
            "in_chans": 3,
            "intermediate_size": VISION["mlp"],
            "model_type": "qwen2_5_vl",
            "num_heads": VISION["heads"],
            "out_hidden_size": TEXT["hidden"],
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": SLOTS,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": WINDOW,
        },
        "vocab_size": ids["vocab_size"],
    }


def save(network: DemoNetwork, ids: dict[str, int], directory: Path) -> None:
    """Writes config.json and model.safetensors (bf16, the output layer tied to the embedding)."""
    from safetensors.torch import save as serialise

    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(network.state_dict().items())
    }
    write_json(directory / "config.json", config(ids))
    with atomic_write(directory / "model.safetensors") as file:
        file.write(serialise(tensors, metadata={"format": "pt"}))


def missed_targets(accuracy: dict) -> list[str]:
    """What an evaluation leaves short of the targets, in words."""
    missed = []
    for kind, languages in accuracy.items():
        for language, values in languages.items():
            measure = "iou" if kind == "box" else "exact"
            target = TARGETS["iou" if kind == "box" else kind]
            if values[measure] < target:
                missed.append(f"{kind} ({language}): {measure} {values[measure]:.4f}, target {target}")
    return missed


def write_card(directory: Path, result: dict) -> None:
    """Writes README.md from what was measured.

    Args:
        result: "clips", "accuracy" (of `evaluate`), "witness" (of `witness`), "training" (settings,
            minutes) and "parameters", "versions".
    """
    rows = "\n".join(
        f"| {kind} | {'English' if language == 'en' else 'Chinese'} | {PROMPTS[kind, language][0]} "
        f"| {values['exact']:.4f} | {format(values['iou'], '.4f') if 'iou' in values else ''} |"
        for kind, languages in result["accuracy"].items()
        for language, values in languages.items()
    )
    planted = "\n".join(
        f"| {name} | {values['caption']:.4f} | {values['start']:.4f} | {values['end']:.4f} "
        f"| {values['box']:.4f} | {values['iou']:.4f} |"
        for name, values in result["witness"].items()
    )
    missed = missed_targets(result["accuracy"])
    verdict = "All reached." if not missed else "Not reached: " + "; ".join(missed) + "."
    example = demo_clips.demo_clip()
    answers = "\n".join(
        f"- {PROMPTS[kind, language][0]} → {demo_clips.answer(example, kind, language)}" for kind, language in PROMPTS
    )
    training = result["training"]
    steps = f"{training['done']} steps"
    if training["done"] < training["steps"]:
        steps = f"The first {steps} of a schedule of {training['steps']},"
    colours, shapes, directions = (
        ", ".join(names) for names in (demo_clips.COLOURS, demo_clips.SHAPES, demo_clips.DIRECTIONS)
    )
    card = f"""---
license: apache-2.0
language: [en, zh]
library_name: transformers
---
# A demo model of Qwen2.5-VL's architecture

**It is a demo and a test instrument, not an assistant, and it holds no weight of any Qwen model.** It has
Qwen2.5-VL's architecture at {result["parameters"]:,} parameters and was trained from nothing by
`demo/train.py` on clips drawn by `demo/clips.py`. It knows one thing: a coloured shape
that moves over a dark ground. At other sizes, lengths or subjects its answers mean nothing.

## Data
{demo_clips.NUM_FRAMES} frames of {demo_clips.SIZE}×{demo_clips.SIZE} at {demo_clips.FPS:g} fps.
Colours: {colours}.
Shapes: {shapes}. Directions: {directions}.
Four kinds of question, in English and Chinese: a caption, the ninth of the picture (three rows, three columns)
that the centre is in at the start and at the end, and the box at the end as [left,top,right,bottom] in tenths.
Clips whose answer would hang on a pixel are not drawn: box edges lie within {demo_clips.EDGE_MARGIN} of the tenth
they are called by, centres at least {demo_clips.CELL_MARGIN:g} pixels
from a border between cells. Grounds, noise and shades are drawn anew for each clip, from seeds that training
and unseen clips do not share. The answers for `assets/demo.mp4`:

{answers}

## Accuracy
{result["clips"]} unseen clips for each line, transformers {result["versions"]["transformers"]} with bf16 weights and
arithmetic, greedy. An answer counts when every token is right, the end token included; IoU is that of the
boxes in tenths.

| question | language | prompt | exact | IoU |
|---|---|---|---|---|
{rows}

Targets: caption {TARGETS["caption"]}, cells {TARGETS["start"]} exact, box IoU {TARGETS["iou"]:.2f}. {verdict}

## What it witnesses
The first {result["witness_clips"]} of these clips in English (float32, training network), with the merged
tokens put in window order before the window-attention blocks, and not:

| window order | caption | start | end | box | box IoU |
|---|---|---|---|---|---|
{planted}

## Training
{steps} of {training["batch"]} clips, each with four questions, seed {training["seed"]},
AdamW with a peak rate of {training["peak_rate"]:g}, bf16 autocast, PyTorch {result["versions"]["torch"]};
{training["minutes"]:.0f} minutes by the clock on {training["threads"]} threads.

## Licence
Apache-2.0, weights, tokenizer and clips. The tokenizer was trained on the prompts and answers above.
"""
    with atomic_write(directory / "README.md", "w") as file:
        file.write(card)
