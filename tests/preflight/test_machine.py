"""Disk and memory, with sizes that are made up."""

import shutil
from types import SimpleNamespace

import pytest

from qwen_vl_axera.memory import Memory
from qwen_vl_axera.preflight import machine
from qwen_vl_axera.preflight.machine import disk_checks, memory_checks

GRAPH, LANGUAGE = 4 * 10**9, 8 * 10**9  # bytes: the builds take 16 GB in the work directory and 9 GB in OUT


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The checks for a work directory and an OUT that need not exist, with so much free; with two numbers, apart."""

    def make(*free: float):
        workdir, out = tmp_path / "work", tmp_path / "deep" / "out"
        workdir.mkdir()
        sizes = dict(zip((workdir, tmp_path), free, strict=False))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=sizes[path]))
        if len(free) == 2:
            monkeypatch.setattr(machine, "_device", lambda path: path)
        return list(disk_checks(workdir, out, GRAPH, LANGUAGE))

    return make


@pytest.mark.parametrize(("free", "status"), [(26e9, "ok"), (24e9, "warning"), (7e9, "warning"), (5e9, "failed")])
def test_one_file_system_holds_all(places, free, status):
    (check,) = places(free)
    assert (check.name, check.status) == ("disk", status)
    assert "work directory and OUT" in check.detail and "25.0 GB there (an inference)" in check.detail
    assert bool(check.remedy) == (status != "ok")


def test_two_file_systems_are_looked_at_each(places):
    work, out = places(17e9, 1e9)
    assert (work.status, out.status) == ("ok", "failed")
    assert "for the work directory" in work.detail and "for the OUT" in out.detail


@pytest.mark.parametrize(
    ("sizes", "status"),
    [((64e9, 60e9), "ok"), ((16e9, 12e9), "warning"), ((64e9, 1e5), "failed")],
)
def test_memory(monkeypatch, sizes, status):
    monkeypatch.setattr(machine, "memory", lambda: Memory(*map(int, sizes)))
    (check,) = memory_checks(GRAPH)
    assert (check.name, check.status) == ("memory", status)
