"""Disk where the builds write: in the work directory, and where OUT is."""

import shutil

from qwen_vl_axera.preflight import machine

GB = 10**9


def statuses(tmp_path, monkeypatch, free: dict[str, int], devices: dict[str, int]) -> dict[str, str]:
    """Place -> status, with so much room and on such devices."""
    workdir, out = tmp_path / "work", tmp_path / "out"
    for path in (workdir, out):
        path.mkdir()
    usage = lambda path: type("Usage", (), {"free": free[path.name]})  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(machine, "_device", lambda path: devices[path.name])
    checks = list(machine.disk_checks(workdir, out, graph=3 * GB, language=6 * GB))
    return {check.detail.split(" free for the ")[1].split(";")[0]: check.status for check in checks}


def test_out_on_another_disk_is_looked_at(tmp_path, monkeypatch):
    found = statuses(tmp_path, monkeypatch, {"work": 100 * GB, "out": 1 * GB}, {"work": 1, "out": 2})
    assert found == {"work directory": "ok", "OUT": "failed"}


def test_one_disk_must_hold_both(tmp_path, monkeypatch):
    found = statuses(tmp_path, monkeypatch, {"work": 13 * GB, "out": 13 * GB}, {"work": 1, "out": 1})
    assert found == {"work directory and OUT": "warning"}


def test_a_directory_that_is_not_there_yet(tmp_path):
    (check,) = machine.disk_checks(tmp_path, tmp_path / "out" / "deeper", 0, 0)
    assert check.status == "ok"
