"""Reading safetensors: values against the safetensors library, and every way in which files can be bad."""

import contextlib
import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qwen_vl_axera.checkpoint.expected import expected_tensors
from qwen_vl_axera.checkpoint.tensors import Checkpoint, normalise_name, read_header
from qwen_vl_axera.errors import InputError
from tests.anything import anything

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def copy(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "copy")


def test_values_are_those_of_the_safetensors_library(tiny, tiny_dir):
    theirs = load_file(tiny_dir / SHARD)
    assert set(theirs) == set(tiny.tensors) == set(expected_tensors(tiny.config))
    for name in ("visual.patch_embed.proj.weight", "visual.merger.mlp.2.bias", "model.norm.weight"):
        np.testing.assert_array_equal(tiny.read(name), theirs[name].float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_converted_exactly(copy, dtype):
    values = torch.linspace(-3, 3, 31).to(dtype)
    save_file({"visual.x": values}, copy / SHARD)
    (copy / "model.safetensors.index.json").unlink()
    np.testing.assert_array_equal(Checkpoint(copy).read("visual.x"), values.float().numpy())


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_are_normalised(stored, name):
    assert normalise_name(stored) == name


def test_transformers_own_saving_is_read(tiny_dir, tiny, tmp_path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_dir).save_pretrained(tmp_path / "saved")
    saved = Checkpoint(tmp_path / "saved")
    assert saved.config == tiny.config
    np.testing.assert_array_equal(
        saved.read("visual.blocks.1.attn.qkv.weight"), tiny.read("visual.blocks.1.attn.qkv.weight")
    )


def header_of(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), file.read()


def rewrite(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refused(directory, *words):
    with pytest.raises(InputError) as caught:
        Checkpoint(directory).read("visual.merger.mlp.2.weight", (48, 256))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_directory(tmp_path):
    refused(tmp_path / "absent", "absent", "expected a directory")


def test_empty_directory(tmp_path):
    refused(tmp_path, "config.json is missing")


def test_only_pickles(copy):
    (copy / SHARD).unlink()
    (copy / "model.safetensors.index.json").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"x")
    refused(copy, "pytorch_model.bin", "pickle")


def test_shard_of_the_index_is_absent(copy):
    (copy / SHARD).unlink()
    refused(copy, SHARD, "absent")


def test_index_that_leaves_the_directory(copy):
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret"}}')
    refused(copy, "../../secret")


def test_truncated_data(copy):
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[:-1000])
    refused(copy, "truncated")


@pytest.mark.parametrize("length", [0, 5, 8, 100])
def test_truncated_header(copy, length):
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[:length])
    refused(copy, SHARD)


def test_not_safetensors(copy):
    (copy / SHARD).write_bytes(b"PK\x03\x04" + bytes(5000))
    refused(copy, "not a safetensors file")


def test_header_and_size_disagree(copy):
    header, data = header_of(copy / SHARD)
    header["visual.merger.mlp.2.weight"]["shape"] = [49, 256]
    rewrite(copy / SHARD, header, data)
    refused(copy, "visual.merger.mlp.2.weight", "needs")


def test_other_shape_than_config_says(copy):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["out_hidden_size"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"\[48, 256\].*\[64, 256\]"):
        Checkpoint(copy).read("visual.merger.mlp.2.weight", (64, 256))


def test_missing_tensor_lists_the_closest(copy):
    header, data = header_of(copy / SHARD)
    header["visual.merger.mlp.22.weight"] = header.pop("visual.merger.mlp.2.weight")
    rewrite(copy / SHARD, header, data)
    refused(copy, "no tensor", "visual.merger.mlp.22.weight")


def test_stored_twice(copy):
    header, data = header_of(copy / SHARD)
    start, end = header["visual.merger.mlp.2.weight"]["data_offsets"]
    offsets = [len(data), len(data) + end - start]
    header["model.visual.merger.mlp.2.weight"] = header["visual.merger.mlp.2.weight"] | {"data_offsets": offsets}
    rewrite(copy / SHARD, header, data + data[start:end])
    refused(copy, "stored twice")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(copy, value):
    tensors = load_file(copy / SHARD)
    tensors["visual.merger.mlp.2.weight"][3, 5] = value
    save_file(tensors, copy / SHARD)
    refused(copy, "NaN or infinite")


def test_integers_are_named_for_what_they_are(copy):
    tensors = load_file(copy / SHARD)
    tensors["visual.merger.mlp.2.weight"] = torch.zeros(48, 256, dtype=torch.int32)
    save_file(tensors, copy / SHARD)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "I32", "GPTQ")


@given(st.binary(max_size=200), st.integers(0, 300))
def test_headers_are_read_or_refused(noise, length):
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        path = Path(directory) / "x.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b"{" + noise)
        read_header(path)


@given(anything)
def test_header_entries_are_read_or_refused(entry):
    text = json.dumps({"a": entry, "b": {"dtype": "F32", "shape": [1], "data_offsets": entry}}).encode()
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        path = Path(directory) / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
        read_header(path)
