"""The doors: what they give back is what they promise, or a line that names the path; whatever comes."""

import io
import json
import math
import os
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vl_axera import doors, files
from qwen_vl_axera.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_comes_back_as_it_was(value):
    assert doors.parse_json(json.dumps(value).encode(), "x.json") == value


@given(st.binary(max_size=300) | st.text('[]{}",:0123456789.eE+-ntfals \\u', max_size=300).map(str.encode))
@settings(max_examples=500)
def test_any_bytes_are_json_or_refused(data):
    try:
        value = doors.parse_json(data, "x.json")
    except InputError as error:
        assert "x.json" in str(error)
    else:
        assert json.loads(json.dumps(value, allow_nan=False)) == value


@given(st.integers(min_value=401, max_value=6000), st.sampled_from(["{}", "[{}]", '{{"a": {}}}']))
def test_numbers_of_many_digits_are_refused(digits, form):
    with pytest.raises(InputError, match="digits"):
        doors.parse_json(form.format("9" * digits), "x.json")


@pytest.fixture(scope="module")
def array_file(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays") / "x.npy"


GOOD = io.BytesIO()
np.save(GOOD, np.arange(24, dtype=np.float32).reshape(2, 3, 4))


@given(st.integers(0, len(GOOD.getvalue()) - 1), st.integers(0, 255))
@settings(max_examples=500)
def test_a_changed_byte_gives_an_array_or_a_refusal(array_file, place, value):
    data = bytearray(GOOD.getvalue())
    data[place] = value
    array_file.write_bytes(data)
    try:
        array = doors.map_array(array_file)
    except InputError as error:
        assert str(array_file) in str(error)
    else:
        assert math.prod(array.shape) * array.itemsize <= len(data)
        assert np.asarray(array).dtype.kind in "biuf"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_array_or_refused(array_file, data):
    array_file.write_bytes(data)
    with pytest.raises(InputError):
        doors.map_array(array_file)


@given(st.sampled_from(["<f4", "<i8", "|u1", "<f8", "|b1", "<f2"]), st.lists(st.integers(0, 4), max_size=4))
def test_arrays_come_back_as_they_were(array_file, dtype, shape):
    values = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    files.write_array(array_file, values)
    found = doors.map_array(array_file)
    assert found.dtype == values.dtype and found.shape == values.shape and np.array_equal(found, values)


@given(st.text())
def test_what_is_shown_steers_no_terminal(text):
    shown = doors.printable(text)
    assert all(letter in "\t\n" or ord(letter) >= 32 for letter in shown)
    assert not {"\x7f", "\x9b", "\u202e", "\u2028"} & set(shown)
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    kinds = {"pipe": "a named pipe", "directory": "a directory", "device": "a device", "socket": "a socket"}
    for name, kind in (kinds | {"gone": "a link to one that is gone", "none": "no such file"}).items():
        with pytest.raises(InputError, match=kind) as refused:
            doors.open_file(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)
        if name in kinds:
            with pytest.raises(InputError, match="replaced"):
                doors.check_output(tmp_path / name)


def test_files_have_a_bound(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert doors.read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(InputError, match="more than"):
        doors.read_bytes(tmp_path / "x", 4)


def test_an_array_is_bounded_by_memory(tmp_path):
    """200,000 steps of nothing, as a file whose size agrees with its header."""
    shape = (200_000, 484, 392, 3)
    with (tmp_path / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + math.prod(shape))
    with pytest.raises(InputError, match="GB of memory") as refused:
        doors.map_array(tmp_path / "pixels.npy")
    assert "pixels.npy" in str(refused.value)


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\u202e", "\u2066", "\u2069"])
def test_marks_of_direction_are_shown(mark):
    assert doors.printable(f"a{mark}b") == f"a\\u{ord(mark):04x}b"
