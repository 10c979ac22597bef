"""Properties that hold for every input: layout, preprocessing, config.json, checkpoint headers."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_qwen2_vl

import preprocess
from bench.make_checkpoint import hub_config
from qwen_vl_axera.checkpoint.config import ModelConfig, load_config
from qwen_vl_axera.checkpoint.tensors import read_header
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import compare
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout

VISION = VisionConfig(4, 64, 96, 4, 48, (1, 3))
sides = st.integers(1, 46).map(lambda number: 28 * number)
sixty = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@sixty
@given(sides, sides)
def test_every_layout_is_a_partition(height, width):
    layout = build_layout(VISION, (height, width))
    tokens = height * width // 28**2
    assert sorted(layout.order) == sorted(layout.window_index) == list(range(tokens))
    assert sum(group.patches for group in layout.groups) == layout.num_patches == layout.cu_window_seqlens[-1]
    assert len({group.size for group in layout.groups}) == len(layout.groups) <= 4
    np.testing.assert_array_equal(layout.order[layout.reverse], np.arange(tokens))
    # Patches of one window lie within one 112-pixel square.
    rows, columns = np.divmod(layout.order, width // 28)
    squares = rows // 4 * 10_000 + columns // 4
    windows = layout.window_ids[::4]
    assert len(set(zip(squares, windows, strict=True))) == len(set(windows))


@sixty
@given(sides.filter(lambda side: side <= 280), sides.filter(lambda side: side <= 280), st.integers(1, 5))
def test_patches_can_be_put_together_again(height, width, count):
    frames = np.random.default_rng(height * width + count).integers(0, 256, (count, height, width, 3), np.uint8)
    patches = preprocess.patchify(frames)
    assert patches.shape == ((count + 1) // 2, height * width // 196, 392, 3)
    again = preprocess.unpatchify(patches, height, width)
    np.testing.assert_array_equal(again[:count], frames)
    if count % 2:
        np.testing.assert_array_equal(again[count], frames[-1])


@sixty
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(4, 2000).map(lambda number: number * 784))
def test_smart_resize_is_transformers(height, width, max_pixels):
    assume(max(height, width) < 200 * min(height, width))
    expected = image_processing_qwen2_vl.smart_resize(height, width, 28, 56 * 56, max_pixels)
    assert preprocess.smart_resize(height, width, 28, 56 * 56, max_pixels) == expected


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.just("silu"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@sixty
@given(st.data())
def test_config_json_is_read_or_refused(data):
    """Whatever one field holds: a configuration or an InputError, never another exception."""
    config = hub_config("3B")
    section = data.draw(st.sampled_from([config, config["vision_config"]]))
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(anything)
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        (Path(directory) / "config.json").write_text(json.dumps(config))
        assert isinstance(load_config(directory), ModelConfig)


@sixty
@given(st.binary(max_size=200), st.integers(0, 300))
def test_headers_are_read_or_refused(noise, length):
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        path = Path(directory) / "x.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b"{" + noise)
        read_header(path)


@sixty
@given(anything)
def test_header_entries_are_read_or_refused(entry):
    text = json.dumps({"a": entry, "b": {"dtype": "F32", "shape": [1], "data_offsets": entry}}).encode()
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(InputError):
        path = Path(directory) / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
        read_header(path)


@sixty
@given(st.integers(1, 20), st.integers(1, 20), st.floats(1e-3, 1e3))
def test_a_perfect_copy_has_no_error_and_a_scaled_one_its_own(tokens, channels, scale):
    values = np.random.default_rng(tokens * channels).normal(size=(tokens, channels)).astype(np.float32)
    assert compare(values, values)["max_abs"] == 0
    figures = compare(values, (values * np.float32(scale)).astype(np.float32))
    assert figures["min_token_cosine"] > 0.999999
    assert abs(figures["max_abs_relative"] - abs(scale - 1)) < 1e-3 * (1 + scale)
