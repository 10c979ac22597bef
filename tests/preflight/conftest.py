"""The good state: made once, and a copy of it to be broken."""

import json
import shutil

import pytest

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.graph.export import export_vision
from tests.preflight.state import (
    SIZE,
    State,
    numbered,
    pack,
    samples,
)


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """The good state, made once."""
    base = tmp_path_factory.mktemp("preflight")
    state = State(base / "tiny", base / "work")
    shutil.copytree(tiny_dir, state.checkpoint)
    state.workdir.mkdir()
    export_vision(Checkpoint(state.checkpoint), state.workdir, "video", [SIZE])
    pack(state.archive, numbered(samples()))
    capture = {"size": SIZE, "grid_thw": (4, 8, 6), "kind": "video", "source": ["clip.mp4"], "indices": list(range(8))}
    capture |= {"sample_fps": 2.0, "second_per_grid_ts": 1.0, "checkpoint": "tiny", "versions": {}}
    (state.workdir / "capture.json").write_text(json.dumps(capture))
    return state


@pytest.fixture
def state(made, tmp_path):
    """The good state, to be broken."""
    shutil.copytree(made.checkpoint, tmp_path / "tiny")
    shutil.copytree(made.workdir, tmp_path / "work")
    return State(tmp_path / "tiny", tmp_path / "work")
