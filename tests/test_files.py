"""Files are the old one or the new one."""

import errno
import os

import numpy as np
import pytest

from qwen_vl_axera import files
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.record import Count, Rate, record


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with files.atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("across", [False, True], ids=["one file system", "two"])
def test_a_moved_file_is_at_its_target_only(tmp_path, monkeypatch, across):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new" * 1_000_000)
    target.write_bytes(b"old")
    replace = os.replace

    def refuse(one, other):
        if across and one == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(one, other)

    monkeypatch.setattr(os, "replace", refuse)
    files.move_file(source, target)
    assert target.read_bytes() == b"new" * 1_000_000
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_infinities(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"value": value})
    assert not os.listdir(tmp_path)


@record
class Part:
    name: str
    rate: Rate
    note: str | None = None


@record
class Whole:
    size: tuple[int, int]
    parts: list[Part]
    seconds: float | None
    count: Count

    def __post_init__(self):
        if self.count != len(self.parts):
            raise ValueError(f"count is {self.count}, there are {len(self.parts)} parts")


WHOLE = Whole((2, 3), [Part("a", 1.5), Part("猫", 2, "seen")], None, 2)
GOOD = """{
  "size": [
    2,
    3
  ],
  "parts": [
    {
      "name": "a",
      "rate": 1.5
    },
    {
      "name": "猫",
      "rate": 2.0,
      "note": "seen"
    }
  ],
  "seconds": null,
  "count": 2
}
"""


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "x.json"
    files.write_record(path, Whole, WHOLE)
    assert path.read_text("utf-8") == GOOD
    assert files.read_record(path, Whole, "maker.py") == WHOLE
    files.write_record(path, list[Part], WHOLE.parts)
    assert files.read_record(path, list[Part], "maker.py") == WHOLE.parts
    with pytest.raises(ValueError, match="count is 3"):
        files.write_record(path, Whole, files.plain(WHOLE) | {"count": 3})
    assert files.read_record(path, list[Part], "maker.py") == WHOLE.parts


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2,\n    3", '"2",\n    3', "size[0] should be a valid integer, found '2'"),
        ("2,\n    3", "2.0,\n    3", "size[0]"),
        ("2,\n    3", "true,\n    3", "size[0]"),
        ("2,\n    3", "2", "size[1] is missing"),
        ("1.5", "-1.5", "parts[0].rate should be greater than 0, found -1.5"),
        ("1.5", "NaN", "NaN is no finite number"),
        ("1.5", "1e999", "1e999 is no finite number"),
        ("1.5", "9" * 5000, "a number of 5000 digits"),
        ("1.5", "[" * 100_000, "nested too deeply"),
        ('"name": "a"', '"name": "a", "name": "b"', "'name' is given twice"),
        ('"name": "a",', "", "parts[0].name is missing"),
        ('"name": "a"', '"name": "a", "nmae": "b"', "parts[0].nmae is not known"),
        ('"a"', '"\\ud800"', "not readable as JSON"),
        ('"count": 2', '"count": 3', "count is 3, there are 2 parts"),
        ('"count": 2', f'"count": {10**300}', "count should be less"),
        (GOOD, "[]", "should be an object"),
        (GOOD, "", "not readable as JSON"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, old, new, words):
    path = tmp_path / "x.json"
    path.write_text(GOOD.replace(old, new, 1), "utf-8")
    with pytest.raises(InputError) as refused:
        files.read_record(path, Whole, "maker.py")
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and words in message and message.endswith("run maker.py again")
    assert len(message) < 300 + len(str(path)) and "\n" not in message


def test_a_record_that_is_not_there_names_its_maker(tmp_path):
    with pytest.raises(InputError, match=r"x\.json is missing: run maker\.py first"):
        files.read_record(tmp_path / "x.json", Whole, "maker.py")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'{"a": 1, "a": 2}', b"[Infinity]", b"[" * 100_000, b"[" + b"7" * 5000]
)
def test_hostile_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="not readable as JSON"):
        files.read_json(tmp_path / "x.json")


def test_arrays_that_hold_objects_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"run maker\.py again"):
        files.read_array(tmp_path / "x.npy", "maker.py")
