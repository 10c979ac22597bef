"""demo/train.py as a user runs it, with two steps."""

import json
from functools import partial

from demo import train
from demo.clips import (
    KINDS,
)
from tests.conftest import run_main

run = partial(run_main, train.main)
FLAGS = "--smoke", "--threads", 1


def test_two_steps_leave_a_checkpoint_and_a_card(capsys, tmp_path):
    """As a user would, from nothing to the figures; a second call does not overwrite them."""
    out = tmp_path / "model"
    code, _, error = run(capsys, out, *FLAGS)
    assert code == 0, error
    config = json.loads((out / "config.json").read_text())
    assert "text_config" not in config
    card = (out / "README.md").read_text()
    assert "holds no weight of any Qwen model" in card
    assert "2 unseen clips" in card
    result = json.loads((tmp_path / "model.training" / "result.json").read_text())
    assert set(result["accuracy"]) == set(KINDS)
    assert set(result["witness"]) == {"applied", "not applied"}

    before = (out / "model.safetensors").read_bytes()
    code, _, error = run(capsys, out, *FLAGS)
    assert code == 2 and "holds a model already" in error
    assert (out / "model.safetensors").read_bytes() == before


def test_bad_arguments_are_refused(tmp_path, capsys):
    code, _, error = run(capsys, tmp_path / "x", "--steps", 0)
    assert code == 2 and "--steps is 0" in error
    code, _, error = run(capsys, tmp_path / "x", "--evaluate-only")
    assert code == 2 and "model.safetensors is missing" in error
