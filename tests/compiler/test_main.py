"""`python -m qwen_vl_axera.compiler`, run as a user does against a stand-in that knows the documented options only."""

import os
import shlex
import subprocess

import pytest

from qwen_vl_axera.compiler.pulsar2 import has_llm_build2
from tests.compiler.running import CONFIG, HERE, HOSTILE, cli

LAYERS = 2  # of the tiny checkpoint


def test_build_runs_in_the_work_directory(make_workdir, calls, tmp_path):
    workdir = make_workdir()
    os.chdir(tmp_path)
    done = cli("build", "work/tiny_vision.onnx", "--config", CONFIG, "--workdir", "work")
    assert done.returncode == 0, done.stderr
    assert "stand-in wrote" in done.stdout
    (call,) = calls()
    assert call["cwd"] == str(workdir)
    assert call["argv"][:3] == ["build", "--input", "tiny_vision.onnx"]
    assert b"stand-in" in (workdir / "build-output" / "tiny_vision.axmodel").read_bytes()


def test_a_built_model_is_delivered(make_workdir, tmp_path):
    workdir = make_workdir()
    (tmp_path / "a [copy]").mkdir()
    target = tmp_path / "a [copy]" / "x.axmodel"
    target.write_bytes(b"older")
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG, "--output-name", "m[1].axmodel", "--deliver", target)
    assert done.returncode == 0, done.stderr
    assert b"stand-in" in target.read_bytes() and not list((workdir / "build-output").glob("*.axmodel"))
    target.unlink()
    failed = cli("build", "tiny_vision.onnx", "--config", CONFIG, "--deliver", target, STAND_IN_FAIL="build:3")
    assert failed.returncode == 1 and not target.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_arrive_as_they_are(make_workdir, calls, tiny_dir, tmp_path, name):
    workdir = make_workdir(name, graph=f"{name}_vision.onnx")
    graph = f"./{name}_vision.onnx" if name.startswith("-") else f"{name}_vision.onnx"
    done = cli("build", graph, "--config", CONFIG)
    assert done.returncode == 0, done.stderr
    assert (workdir / "build-output" / f"{name}_vision.axmodel").is_file()
    os.chdir(tmp_path)
    assert cli("llm_build", tiny_dir, f"./{name}-AX650").returncode == 0
    assert len(list((tmp_path / f"{name}-AX650").iterdir())) == LAYERS + 1
    assert len(calls()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}-AX650", "log"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_printed_line_pasted_into_a_shell_does_the_same(make_workdir, calls, tmp_path, name):
    make_workdir(name, graph=f"{name}_vision.onnx")
    os.chdir(tmp_path)
    folder = f"./{name}"
    argv = ["build", f"{folder}/{name}_vision.onnx", "--config", CONFIG, "--workdir", folder]
    printed = cli(*argv, "--print")
    assert printed.returncode == 0 and printed.stdout.count("\n") == 1
    assert not (tmp_path / "log").exists()
    subprocess.run(["bash", "-c", printed.stdout], check=True, capture_output=True)
    assert cli(*argv).returncode == 0
    first, second = calls()
    assert first == second


def test_llm_build_writes_every_layer(tiny_dir, tmp_path):
    done = cli("llm_build", tiny_dir, tmp_path / "out", "--prefill-len", 128, "--parallel", 2)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [*(f"qwen2_5_vl_p128_l{i}_together.axmodel" for i in range(LAYERS)), "qwen2_5_vl_post.axmodel"]


@pytest.fixture
def earlier(tmp_path):
    """OUT with an earlier build's layers, and with what else lies there; what it holds now."""
    out = tmp_path / "out"
    out.mkdir()
    names = [*(f"qwen2_5_vl_p512_l{i}_together.axmodel" for i in range(LAYERS)), "qwen2_5_vl_post.axmodel"]
    for name in (*names, "tiny_vision.axmodel"):
        (out / name).write_bytes(b"old")
    return lambda: {path.name: path.read_bytes() for path in out.iterdir()}


def compiler(tmp_path, script: str) -> str:
    """An llm_build of a few lines; $out is where it shall write."""
    path = tmp_path / "llm"
    path.write_text('#!/bin/sh\nwhile [ "$1" != --output_path ]; do shift; done; out=$2\n' + script)
    path.chmod(0o755)
    return str(path)


LAYER = 'for i in 0 1; do printf 12345678 > "$out/qwen2_5_vl_p512_l${i}_together.axmodel"; done\n'
POST = 'printf x > "$out/qwen2_5_vl_post.axmodel"\n'


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "3 of 3 files were not written: qwen2_5_vl_p*_l0_together.axmodel"),
        (LAYER, "1 of 3 files were not written: qwen2_5_vl_post.axmodel"),
        (LAYER.replace("qwen2_5_vl_p", "qwen2_5_p") + POST, "found there: qwen2_5_p512_l0_together.axmodel, qwen2_5_p"),
        (LAYER + POST + 'printf 1 > "$out/qwen2_5_vl_p512_l1_together.axmodel"', "l1_together.axmodel has 1 bytes"),
        (LAYER + POST + "exit 3", "failed with exit code 3"),
        (LAYER + POST + "kill -9 $$", "SIGKILL"),
    ],
)
def test_a_failed_llm_build_leaves_the_earlier_layers(tiny_dir, tmp_path, earlier, script, words):
    before = earlier()
    done = cli("llm_build", tiny_dir, tmp_path / "out", PULSAR2=compiler(tmp_path, script))
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
    assert earlier() == before


def test_llm_build_replaces_its_own_files_alone(tiny_dir, tmp_path, earlier):
    script = LAYER + POST + 'printf new | tee "$out/tiny_vision.axmodel" > "$out/more.txt"'
    done = cli("llm_build", tiny_dir, tmp_path / "out", PULSAR2=compiler(tmp_path, script))
    assert done.returncode == 0, done.stderr
    found = earlier()
    assert found.pop("tiny_vision.axmodel") == b"old"
    assert sorted(found.values()) == [b"12345678", b"12345678", b"x"]


def test_llm_build2_only_where_the_tool_has_it(tiny_dir, tmp_path, monkeypatch):
    assert has_llm_build2(HERE)
    done = cli("llm_build", tiny_dir, tmp_path / "out", "--llm-build2", "--prefill-step-size", 128)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "qwen2_5_vl_p128_l0_together.axmodel").is_file()
    monkeypatch.setenv("STAND_IN_OLD", "1")
    assert not has_llm_build2(HERE)
    done = cli("llm_build", tiny_dir, tmp_path / "old", "--llm-build2")
    assert done.returncode == 2 and "has no llm_build2" in done.stderr
    assert not (tmp_path / "old").exists()


def test_without_the_tool_the_line_is_still_printed(make_workdir, tmp_path):
    make_workdir()
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG, PULSAR2="", PATH=str(tmp_path))
    assert done.returncode == 2 and "no pulsar2 on PATH" in done.stderr and "Traceback" not in done.stderr
    done = cli("build", "not-there-yet.onnx", "--config", CONFIG, "--print", PULSAR2="", PATH=str(tmp_path))
    assert done.returncode == 0 and shlex.split(done.stdout)[:4] == [
        "pulsar2",
        "build",
        "--input",
        "not-there-yet.onnx",
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["build", "none.onnx", "--config", CONFIG], "none.onnx is missing: run export.py first"),
        (["build", "tiny_vision.onnx", "--config", "none.json"], "none.json is missing"),
        (["build", "tiny_vision.onnx", "--config", CONFIG, "--chip", "AX1"], "'AX1': expected one of"),
        (["llm_build", "none", "out"], "none: expected a directory"),
        (["run", "none.axmodel", "in", "out"], "none.axmodel is missing"),
        (["run", "tiny_vision.onnx", "in", "out"], "in: expected a directory"),
        (["llm_build", "none", "out", "--parallel", "0"], "--parallel"),
        (["compile"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(make_workdir, argv, words):
    make_workdir()
    done = cli(*argv)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", ["0", "1", "-1"])
def test_a_layer_or_the_head_cut_off(tiny_dir, tmp_path, number):
    done = cli("llm_build", tiny_dir, tmp_path / "out", STAND_IN_LIES=f"llm_truncated={number}")
    assert done.returncode == 1, done.stderr
    assert ".axmodel is cut off after " in done.stderr
    assert not list((tmp_path / "out").rglob("*.axmodel"))
