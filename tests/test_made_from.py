"""Whether a record is still about the files that are there."""

import hashlib
import json
import os

import pytest

from qwen_vl_axera import made_from as module
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.made_from import digest, made_from, stale


def test_a_record_is_about_its_files_until_one_changes(tmp_path):
    (tmp_path / "pictures").mkdir()
    one, other = tmp_path / "one", tmp_path / "pictures" / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    about = made_from([one, other], other.parent)
    assert about == {"../one": hashlib.sha256(b"1").hexdigest(), "other": hashlib.sha256(b"2").hexdigest()}
    assert stale(about, other.parent) is None
    os.utime(one)  # the time says nothing
    assert stale(about, other.parent) is None
    one.write_bytes(b"3")
    assert stale(about, other.parent) == "../one has changed"
    one.unlink()
    assert stale(about, other.parent) == "../one is missing"


@pytest.mark.parametrize(
    ("about", "reason"),
    [({}, "it does not say what it was made from"), ({"/etc/passwd": "0" * 64}, "/etc/passwd lies elsewhere")],
)
def test_a_record_that_names_no_files_of_its_own_is_stale(about, reason, tmp_path):
    assert stale(about, tmp_path) == reason


def test_a_record_is_not_made_from_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        made_from([tmp_path / "none"], tmp_path)


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"weights": 3}', '{"weights": {"identity": [1], "sha256": "0"}}'])
def test_a_large_file_is_hashed_once_until_it_is_written_again(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 4)
    (tmp_path / ".steps").mkdir()
    place, path = tmp_path / ".steps" / "digests.json", tmp_path / "weights"
    if kept:
        place.write_text(kept)
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert digest(path) == expected and json.loads(place.read_text())["weights"]["sha256"] == expected
    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_file", None)
        assert digest(path) == expected
    path.write_bytes(b"WEIGHTS")
    assert digest(path) == hashlib.sha256(b"WEIGHTS").hexdigest()
