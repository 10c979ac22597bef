"""config.json in its three nestings, and bad ones."""

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.make_checkpoint import SHAPES, hub_config
from qwen_vl_axera.checkpoint.config import ModelConfig, load_config
from qwen_vl_axera.errors import InputError
from tests.anything import anything


def load(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return load_config(tmp_path)


def nested(config, keep_flat):
    text = {key: value for key, value in config.items() if key not in ("vision_config", "model_type")}
    kept = config if keep_flat else {key: config[key] for key in ("model_type", "vision_config", "tie_word_embeddings")}
    return kept | {"text_config": text}


@pytest.mark.parametrize("shape", SHAPES)
def test_nestings_give_the_same(tmp_path, shape):
    flat = hub_config(shape)
    spelled = json.loads(json.dumps(flat))
    spelled["vision_config"]["in_channels"] = spelled["vision_config"].pop("in_chans")
    expected = load(tmp_path, flat)
    assert load(tmp_path, nested(flat, keep_flat=True)) == expected
    assert load(tmp_path, nested(flat, keep_flat=False)) == expected
    assert load(tmp_path, spelled) == expected
    assert expected.vision.head_dim == 80
    assert expected.text.tie_word_embeddings == (shape == "3B")


def test_transformers_reads_the_same(tmp_path, tiny_dir, tiny):
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(tiny_dir)
    text = getattr(theirs, "text_config", theirs)
    for name in ("depth", "hidden_size", "num_heads", "out_hidden_size", "window_size", "in_channels"):
        assert getattr(tiny.config.vision, name) == getattr(theirs.vision_config, name)
    assert list(tiny.config.vision.fullatt_block_indexes) == list(theirs.vision_config.fullatt_block_indexes)
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert getattr(tiny.config.text, name) == getattr(text, name)


def vision(**fields):
    config = hub_config("3B")
    config["vision_config"] |= fields
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "model_type"),
        ({"model_type": "qwen2_vl"}, "qwen2_vl"),
        ({"model_type": "qwen2_5_vl"}, "vision_config"),
        (vision(depth=None), "vision_config.depth is null"),
        (vision(depth="32"), "expected a whole number"),
        (vision(num_heads=-1), "positive"),
        (vision(num_heads=7), "heads"),
        (vision(fullatt_block_indexes=[32]), "leave the 32 blocks"),
        (vision(hidden_act="gelu"), "hidden_act"),
        (vision(window_size=100), "window_size"),
        (vision(patch_size=16), "patch_size is 16, every released Qwen2.5-VL has 14"),
        (vision(temporal_patch_size=4), "temporal_patch_size is 4"),
        (vision(spatial_merge_size=1), "spatial_merge_size is 1"),
    ],
)
def test_bad_configs(tmp_path, config, words):
    with pytest.raises(InputError, match=words):
        load(tmp_path, config)


@given(st.data())
def test_config_json_is_read_or_refused(data):
    """Whatever one field holds: a configuration or an InputError, never another exception."""
    config = hub_config("3B")
    section = data.draw(st.sampled_from([config, config["vision_config"]]))
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(anything)
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        (Path(directory) / "config.json").write_text(json.dumps(config))
        assert isinstance(load_config(directory), ModelConfig)
