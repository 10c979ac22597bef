"""A work directory for the compiler, and what the stand-in was called with."""

import json
import os
import tarfile

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("STAND_IN_") or name == "PULSAR2":
            monkeypatch.delenv(name)


@pytest.fixture
def make_workdir(tmp_path, monkeypatch):
    """Makes a work directory as export.py and get_calib.py leave it, and goes there; records calls in `log`."""

    def make(name="work", graph="tiny_vision.onnx", archive=True):
        workdir = tmp_path / name
        (workdir / "calib").mkdir(parents=True)
        (workdir / graph).write_bytes(b"not looked into here")
        if archive:
            np.save(workdir / "calib" / "0.npy", np.zeros((1, 3, 16, 392), np.float32))
            with tarfile.open(workdir / "calib" / "hidden_states.tar", "w") as tar:
                tar.add(workdir / "calib" / "0.npy", "0.npy")
        monkeypatch.chdir(workdir)
        monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
        return workdir

    return make


@pytest.fixture
def calls(tmp_path):
    """What the stand-in was called with."""
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
