"""What a graph is made for: refused where it is none, and the same after a trip through a graph's metadata."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_axera.contract import INPUTS, MODES, OPSETS, WINDOW_MODES, GraphSpec, data_file
from qwen_vl_axera.errors import InputError
from tests.anything import anything

GOOD = GraphSpec("qwen2_5_vl", (308, 308))
sides = st.integers(1, 4000)
specs = st.builds(
    GraphSpec,
    st.just("qwen2_5_vl"),
    st.tuples(sides, sides),
    *map(st.sampled_from, (MODES, INPUTS, WINDOW_MODES, (False, True), OPSETS)),
)


@given(specs)
def test_metadata_says_it_all(spec):
    stored = json.loads(json.dumps(spec.metadata() | {"checkpoint": "x"}))
    assert GraphSpec.from_metadata(stored) == spec


@given(st.sampled_from(sorted(GOOD.metadata())), anything)
def test_metadata_is_read_or_refused(name, value):
    """Whatever one field holds: a spec that says so, or an InputError."""
    try:
        spec = GraphSpec.from_metadata(GOOD.metadata() | {name: value})
    except InputError:
        return
    assert spec.metadata()[name] == value and type(spec.metadata()[name]) is type(value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": "floats"}, "input 'floats': expected one of pixels, normalized"),
        ({"window_mode": None}, "window_mode None"),
        ({"opset": 13}, "opset 13: expected one of 16, 17, 18"),
        ({"opset": True}, "opset True"),
        ({"uint8": 1}, "uint8 1"),
        ({"size": [308]}, "expected height and width"),
        ({"size": [308, 0]}, "expected height and width"),
        ({"tower": ""}, "expected a model_type"),
    ],
)
def test_other_values_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        GraphSpec.from_metadata(GOOD.metadata() | fields)


def test_a_missing_field_is_named():
    stored = GOOD.metadata()
    del stored["window_mode"]
    with pytest.raises(InputError, match="window_mode"):
        GraphSpec.from_metadata(stored)


def test_file_names():
    image = GraphSpec("qwen2_5_vl", (448, 448), mode="image", uint8=True)
    assert (GOOD.stem("M"), GOOD.stem("M", sized=True)) == ("M_vision", "M_vision_308x308")
    assert (image.stem("M"), image.stem("M", sized=True)) == ("M_vision_image_uint8", "M_vision_image_448x448_uint8")
    assert data_file("M") == "M_vision.onnx.data"


def test_it_stays_as_it_is():
    with pytest.raises(FrozenInstanceError):
        GOOD.input = "normalized"
