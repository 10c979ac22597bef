"""Checkpoints that the compiler would not take, each found by its own check."""

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.make_checkpoint import SHAPES, hub_config
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.preflight.checkpoint import checkpoint_checks
from tests.preflight.state import (
    SHARD,
    edit_json,
    rewrite_header,
    truncate,
)

INDEX = "model.safetensors.index.json"


def header(change):
    return lambda state: rewrite_header(state.checkpoint / SHARD, change)


def store_as(dtype, suffixes=(".qweight",)):
    """Stores a linear layer of the language model as a quantised checkpoint does."""

    def change(entries):
        entry = entries.pop("model.layers.0.mlp.up_proj.weight")
        start, end = entry["data_offsets"]
        for suffix in suffixes:
            size = {"I32": 4, "F8_E4M3": 1, "U8": 1}[dtype]
            start = end if suffix != suffixes[0] else start  # the first one has all the bytes
            entries[f"model.layers.0.mlp.up_proj{suffix}"] = {
                "dtype": dtype, "shape": [(end - start) // size], "data_offsets": [start, end],
            }  # fmt: skip

    return header(change)


def transpose_embedding(entries):
    entries["model.embed_tokens.weight"]["shape"].reverse()


def as_float8(entries):
    entry = entries["visual.blocks.0.attn.qkv.weight"]
    start, end = entry["data_offsets"]
    entry |= {"dtype": "I8", "shape": entry["shape"], "data_offsets": [start, start + (end - start) // 2]}


def move_in_index(state):
    """A second shard, to which the index ascribes a tensor of the first."""
    shard = "model-00002-of-00002.safetensors"
    save_file({"visual.extra": np.zeros(3, np.float32)}, state.checkpoint / shard)
    listed = json.loads((state.checkpoint / INDEX).read_text())["weight_map"]
    edit_json(state.checkpoint / INDEX, weight_map=listed | {"model.norm.weight": shard, "visual.extra": shard})


BROKEN_CHECKPOINTS = {
    "another shard": (
        move_in_index,
        {"checkpoint index": "1 not where it says: model.norm.weight", "checkpoint tensors": "1 unknown: visual.extra"},
    ),
    "tensor absent": (
        header(lambda entries: entries.pop("visual.blocks.1.attn.qkv.bias")),
        {"checkpoint tensors": "1 absent: visual.blocks.1.attn.qkv.bias", "checkpoint index": "1 not where it says"},
    ),
    "another shape": (
        header(transpose_embedding),
        {"checkpoint tensors": "model.embed_tokens.weight is [48, 512], config.json asks for [512, 48]"},
    ),
    "integers": (header(as_float8), {"checkpoint dtypes": "stored as I8"}),
    "GPTQ": (
        store_as("I32", (".qweight", ".qzeros", ".scales", ".g_idx")),
        {"checkpoint storage": "GPTQ: bits None, group_size None", "checkpoint index": "1 not where it says"},
    ),
    "AWQ": (
        store_as("I32", (".qweight", ".qzeros", ".scales")),
        {"checkpoint storage": "AWQ: 3 tensors are packed", "checkpoint index": "1 not where it says"},
    ),
    "FP8": (
        store_as("F8_E4M3", (".weight",)),
        {"checkpoint storage": "FP8: 1 tensors are packed"},
    ),
    "quantised by config.json": (
        lambda state: edit_json(state.checkpoint / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        {"checkpoint storage": "bitsandbytes"},
    ),
    "shard of another download": (
        lambda state: shutil.copy(state.checkpoint / SHARD, state.checkpoint / "model-00002-of-00002.safetensors"),
        {"checkpoint index": "not in it: model-00002-of-00002.safetensors"},
    ),
    "other mean": (
        lambda state: (state.checkpoint / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}'),
        {"normalisation": "image_mean is [0.5, 0.5, 0.5]"},
    ),
    "truncated": (lambda state: truncate(state.checkpoint / SHARD), {"checkpoint": "truncated"}),
    "shard absent": (lambda state: (state.checkpoint / SHARD).unlink(), {"checkpoint": "1 absent"}),
    "no config.json": (lambda state: (state.checkpoint / "config.json").unlink(),
                       {"checkpoint": "config.json is missing"}),
    "text only": (
        lambda state: edit_json(state.checkpoint / "config.json", vision_config=None),
        {"checkpoint": "has no vision_config"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_broken_checkpoints(state, case):
    breaking, expected = BROKEN_CHECKPOINTS[case]
    breaking(state)
    found = {name: text for name, text in state.bad().items() if name.startswith(("checkpoint", "normalisation"))}
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name]


KNOWN = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("settings", "layer", "status", "words"),
    [
        (KNOWN, "model.layers.0.mlp.up_proj", "ok", "GPTQ: bits 4, group_size 128, desc_act False, sym True"),
        (KNOWN | {"desc_act": True}, "model.layers.0.mlp.up_proj", "warning", "desc_act True"),
        (KNOWN, "visual.blocks.0.mlp.up_proj", "failed", "the vision tower is packed, too"),
        (KNOWN, None, "failed", "no matrix is packed"),
    ],
)
def test_gptq_is_taken_where_the_tower_is_in_floating_point(state, settings, layer, status, words):
    def pack(entries):
        entry = entries.pop(f"{layer}.weight")
        start, end = entry["data_offsets"]
        places = {".qweight": (start, start + 4), ".scales": (start + 4, start + 8), ".qzeros": (start + 8, end)}
        for suffix, (first, last) in places.items():
            entries[layer + suffix] = {"dtype": "I32", "shape": [(last - first) // 4], "data_offsets": [first, last]}

    if layer:
        rewrite_header(state.checkpoint / SHARD, pack)
    edit_json(state.checkpoint / "config.json", quantization_config=settings)
    found = {check.name: check for check in checkpoint_checks(Checkpoint(state.checkpoint))}
    assert (found["checkpoint storage"].status, words in found["checkpoint storage"].detail) == (status, True)
    if layer and layer.startswith("model."):
        assert found["checkpoint tensors"].status == "ok"  # everything else is checked as ever


@pytest.mark.parametrize("shape", SHAPES)
def test_released_shapes_against_transformers_own_tensors(tmp_path, shape):
    """Headers only: the files are as large as the true ones, and sparse."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = hub_config(shape)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(tmp_path))
    end, entries = 0, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        start, end = end, end + 2 * tensor.numel()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (check,) = checkpoint_checks(Checkpoint(tmp_path))
    assert check.status == "ok", check.detail
    assert f"{len(entries)} tensors ({len(entries)} BF16), {end / 1e6:.1f} MB" in check.detail
