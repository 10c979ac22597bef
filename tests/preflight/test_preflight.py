"""preflight.py as a user runs it."""

import json
from functools import partial

import pytest

import preflight
from tests.conftest import ROOT, run_main
from tests.preflight.state import STAND_IN

run = partial(run_main, preflight.main)


def test_script(made, run_script, capsys):
    argv = [made.checkpoint, "--workdir", made.workdir]
    done = run_script("preflight.py", *argv, env={"PULSAR2": str(STAND_IN)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok      graph weights" in done.stdout and "FAILED" not in done.stdout
    code, out, _ = run(capsys, *argv, "--json", "--prefill-len", 64)
    printed = json.loads(out)
    assert code == 1 and printed["passed"] is False
    assert {frozenset(check) for check in printed["checks"]} == {frozenset({"name", "status", "detail", "remedy"})}
    assert [check["name"] for check in printed["checks"] if check["status"] == "failed"] == ["prompt"]
    assert json.loads((made.workdir / "preflight.json").read_text()) == printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["none"], "none: expected a directory"),
        ([ROOT / "config_video.json"], "expected a directory"),
        ([".", "--workdir", "none"], "none: expected a directory"),
        ([".", "--prefill-len", "0"], "--prefill-len"),
        ([], "CKPT"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *argv)
    assert code == 2
    assert words in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_fails_every_check_that_matters(capsys, tmp_path):
    code, out, error = run(capsys, tmp_path, "--workdir", tmp_path, "--json")
    failed = {check["name"] for check in json.loads(out)["checks"] if check["status"] == "failed"}
    assert code == 1 and {"checkpoint", "graph", "archive"} <= failed and error == ""
