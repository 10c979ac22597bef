"""Files are the old one or the new one; and the exit codes of the scripts' shared frame."""

import errno
import os

import numpy as np
import pytest

from qwen_vl_axera import cli, files
from qwen_vl_axera.errors import CheckFailed, InputError


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


def test_arrays_that_hold_objects_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"run maker\.py again"):
        files.read_array(tmp_path / "x.npy", "maker.py")


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (InputError("expected\n this"), 2, "error: expected this\n"),
        (CheckFailed("differs"), 1, "error: differs\n"),
        (OSError(28, "No space left on device", "data"), 2, "error: No space left on device: data\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; nothing half-written was left behind\n"),
    ],
)
def test_exit_codes(capsys, raised, code, message):
    def main(argv):
        raise raised

    assert cli.run(main) == code
    assert capsys.readouterr().err == message
