"""Where the tool is, how it is run, and what is said when it fails."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_vl_axera.compiler.lock import lock_file
from qwen_vl_axera.compiler.pulsar2 import build_command
from qwen_vl_axera.compiler.tool import Tool, execute, find_tool
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.compiler.running import CONFIG, HERE, IMAGE, STAND_IN, cli
from tests.conftest import ROOT


def test_find_tool(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not find_tool(None) and "PULSAR2 is not set" in find_tool("").name
    with pytest.raises(InputError, match="no such command"):
        find_tool("pulsar3")
    with pytest.raises(InputError, match="no docker on PATH"):
        find_tool("docker:pulsar2:7.0")
    (tmp_path / "docker").touch(0o755)
    assert find_tool("docker:pulsar2:7.0") == IMAGE
    for image in ("docker:", "docker:-v", "docker:a b"):
        with pytest.raises(InputError, match="expected docker:IMAGE"):
            find_tool(image)
    monkeypatch.setenv("PATH", str(STAND_IN.parent))
    assert find_tool(None) == Tool("command", "pulsar2")
    monkeypatch.chdir(STAND_IN.parent)
    assert find_tool("./pulsar2") == find_tool(str(STAND_IN)) == HERE
    with pytest.raises(InputError, match="no such command"):
        find_tool(str(CONFIG))  # there, but nothing to run


@pytest.mark.parametrize("switch", ["OMIT", "KILL", "FAIL"])
def test_an_axmodel_is_there_only_when_its_build_has_ended_well(make_workdir, monkeypatch, switch):
    """Neither an earlier build's, however new it looks, nor the half of one."""
    workdir = make_workdir()
    old = workdir / "build-output" / "tiny_vision.axmodel"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    os.utime(old, (2**33, 2**33))
    monkeypatch.setenv(f"STAND_IN_{switch}", "build")
    monkeypatch.setenv("STAND_IN_SILENT", "1")
    with pytest.raises(CheckFailed):
        execute(build_command(HERE, workdir / "tiny_vision.onnx", CONFIG))
    assert not old.exists()  # the records go in `compiled.log.kept_log`


def test_what_cannot_be_replaced_is_named(make_workdir):
    make_workdir()
    Path("build-output/tiny_vision.axmodel").mkdir(parents=True)
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG)
    assert done.returncode == 2 and "tiny_vision.axmodel cannot be replaced" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "env", "words"),
    [
        (
            "build",
            {"STAND_IN_FAIL": "build:3"},
            "pulsar2 build failed with exit code 3; its last lines: stand-in: asked",
        ),
        ("build", {"STAND_IN_KILL": "build"}, "pulsar2 build was ended by SIGKILL (out of memory?"),
        ("build", {"STAND_IN_OMIT": "build"}, "reported success, but 1 of 1 files were not written"),
        ("llm_build", {"STAND_IN_FAIL": "llm_build:137"}, "was ended by SIGKILL (out of memory?"),
        ("llm_build", {"STAND_IN_FAIL": "llm_build:1"}, "RuntimeError: no memory for llm_build"),
        ("llm_build", {"STAND_IN_OMIT": "llm_build"}, "1 of 3 files were not written: qwen2_5_vl_post.axmodel"),
    ],
)
def test_a_failing_tool_is_reported_with_its_last_words(make_workdir, tiny_dir, tmp_path, command, env, words):
    make_workdir()
    arguments = {"build": ["tiny_vision.onnx", "--config", CONFIG], "llm_build": [tiny_dir, tmp_path / "out"]}
    done = cli(command, *arguments[command], **env)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_only_the_last_lines_are_repeated(make_workdir, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.write_text("#!/bin/sh\nseq 1000 >&2\nprintf 'half\\rlast' >&2\nexit 1\n")
    noisy.chmod(0o755)
    make_workdir()
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG, PULSAR2=str(noisy))
    assert "\n500\n" in done.stderr  # streamed whole
    last = done.stderr.splitlines()[-1]
    assert last.endswith("| 999 | 1000 | half | last") and "| 500 |" not in last


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_ends_the_tool_too(make_workdir, number, code):
    make_workdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PULSAR2": str(STAND_IN), "STAND_IN_SLEEP": "build:60"}
    argv = [sys.executable, "-m", "qwen_vl_axera.compiler", "build", "tiny_vision.onnx"]
    argv += ["--config", str(CONFIG), "--deliver", "delivered.axmodel"]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    placeholder = Path("build-output/tiny_vision.axmodel")
    deadline = time.monotonic() + 60
    while not placeholder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)  # to this process alone, not to its group
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left in the group
    assert not Path("delivered.axmodel").exists() and not placeholder.exists()


def test_two_builds_are_never_at_once(make_workdir, tmp_path):
    """The second waits, says why, and goes on when the first has ended; other commands do not wait."""
    make_workdir()
    command = [sys.executable, "-m", "qwen_vl_axera.compiler"]
    environment = os.environ | {"PULSAR2": str(STAND_IN), "PYTHONPATH": str(ROOT)}
    build = [*command, "build", "tiny_vision.onnx", "--config", str(CONFIG)]
    with open(lock_file(), "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert subprocess.run([*command, "version"], env=environment, capture_output=True).returncode == 0
        second = subprocess.Popen(build, env=environment, stderr=subprocess.PIPE, text=True)
        assert second.stderr.readline().startswith("+ ")
        assert "waiting for another build" in second.stderr.readline()
        assert second.poll() is None and not Path("build-output/tiny_vision.axmodel").exists()
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    assert Path("build-output/tiny_vision.axmodel").is_file()


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_compiler_leaves_running_keeps_nobody_waiting(make_workdir, tmp_path, code):
    workdir = make_workdir()
    tool = tmp_path / "pulsar2"
    tool.write_text(f"#!/bin/sh\n(sleep 30 >/dev/null 2>&1 &)\nexit {code}\n")
    tool.chmod(0o755)
    with pytest.raises(CheckFailed, match=r"exit code 3" if code else "not"):
        execute(build_command(Tool("command", str(tool)), workdir / "tiny_vision.onnx", CONFIG))
    with open(lock_file()) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_tool_that_says_nothing_is_remarked_on(make_workdir, monkeypatch, capfd):
    workdir = make_workdir()
    monkeypatch.setattr("qwen_vl_axera.compiler.tool.QUIET", 0.5)
    monkeypatch.setenv("STAND_IN_SLEEP", "build:1.5")
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.FileIO(2, "w", closefd=False)))
    execute(build_command(HERE, workdir / "tiny_vision.onnx", CONFIG))
    assert "still running; silent for" in capfd.readouterr().err
