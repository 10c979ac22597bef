"""JSON as the compiler reads it, and nothing beyond."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_axera.compiler.strict_json import parse_strict, read_strict
from qwen_vl_axera.errors import InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n "a": 1,\n "a": 2}', 'line 3: "a" is given twice'),
        ('{"b": {"a": 1}, "c": [{"a": 1,\n "a": 1}]}', 'line 2: "a" is given twice'),
        ('{\n "a": NaN}', "line 2: NaN"),
        ('{"a": [1,\n-Infinity]}', "line 2: -Infinity"),
        ('{"a":\n\n 1e999}', "line 3: 1e999"),
        ('{"a": 1, // one\n "b": 2}', "line 1: comments"),
        ('{"a": 1,\n # one\n "b": 2}', "line 2: comments"),
        ('{"a": 1,\n /* one\n */ "b": 2}', "line 2: comments"),
        ('{"a": 1,\n}', "line 2: there is a comma before"),
        ('{"a": [1,\n2,]}', "line 2: there is a comma before"),
        ("{'a': 1}", "line 1: "),
        ('{"a": True}', "line 1: "),
        ('{"a": 01}', "line 1: "),
        ('{"a": .5}', "line 1: "),
        ('{"a": 0x10}', "line 1: "),
        ('{"a": "b\nc"}', "line 1: "),
        ('{"a": 1}\n{"b": 2}', "line 2: "),
        ('{"a": 1', "line 1: "),
        ("", "line 1: "),
        ("\ufeff{}", "byte order mark"),
        ("[" * 100_000, "line 1: "),
        ('{"a": ' + "9" * 5000 + "}", "line 1: "),
    ],
)  # fmt: skip
def test_what_is_not_strictly_json_is_refused_with_its_line(text, words):
    with pytest.raises(ValueError) as error:
        parse_strict(text)
    assert words in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_strict_json_reads_whatever_python_writes(value, ascii_only):
    assert parse_strict(json.dumps(value, indent=1, ensure_ascii=ascii_only)) == value


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_strict(tmp_path / "none.json")
    with pytest.raises(InputError, match="found a directory"):
        read_strict(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_strict(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": 1,}')
    with pytest.raises(InputError, match=r"config\.json: line 1: there is a comma before"):
        read_strict(tmp_path / "config.json")
