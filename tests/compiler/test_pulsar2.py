"""The compiler's commands, run as a user does, against a stand-in that knows the documented options only."""

import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from qwen_vl_axera.compiler import container
from qwen_vl_axera.compiler.container import HAND_BACK
from qwen_vl_axera.compiler.lock import lock_file
from qwen_vl_axera.compiler.pulsar2 import build_command, has_llm_build2, llm_build_command, run_command, version
from qwen_vl_axera.compiler.tool import Tool, execute, find_tool
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.conftest import ROOT

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"
CONFIG = ROOT / "config_video.json"
MISSING = Tool("missing", "no pulsar2")
HERE = Tool("command", str(STAND_IN))
IMAGE = Tool("docker", "pulsar2:7.0")
LAYERS = 2  # of the tiny checkpoint
HOSTILE = ["a name", 'it\'s "so"', "-dash", "描述视频", "$(touch x);`id`&", "a,b:c=d", "[x]*?"]


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


def cli(*argv, **env):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PULSAR2": str(STAND_IN)} | env
    command = [sys.executable, "-m", "qwen_vl_axera.compiler", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


# The documented command lines


def test_build_as_documented(make_workdir):
    make_workdir(graph="Qwen2.5-VL-3B-Instruct_vision.onnx")
    Path("config_video.json").write_bytes(CONFIG.read_bytes())
    command = build_command(MISSING, Path("Qwen2.5-VL-3B-Instruct_vision.onnx"), Path("config_video.json"))
    assert command.line() == (
        "pulsar2 build --input Qwen2.5-VL-3B-Instruct_vision.onnx --config config_video.json --output_dir build-output "
        "--output_name Qwen2.5-VL-3B-Instruct_vision.axmodel --target_hardware AX650 --compiler.check 0"
    )


def test_llm_build_as_documented(make_workdir, tiny_dir):
    make_workdir()
    checkpoint = Path(os.path.relpath(tiny_dir))
    command = llm_build_command(MISSING, checkpoint, Path("../tiny-AX650"))
    assert command.line() == (
        f"pulsar2 llm_build --input_path {checkpoint} --output_path ../tiny-AX650 --kv_cache_len 1023 "
        "--hidden_state_type bf16 --prefill_len 512 --parallel 32 --chip AX650"
    )


def test_llm_build_in_chunks(tiny_dir):
    command = llm_build_command(
        MISSING, tiny_dir, Path("out"), prefill_len=128, parallel=4, last_kv_cache_len=[128, 256, 384, 512]
    )
    lengths = [command.argv[at + 1] for at, word in enumerate(command.argv) if word == "--last_kv_cache_len"]
    assert lengths == ["128", "256", "384", "512"]
    assert command.argv[command.argv.index("--prefill_len") + 1] == "128"
    assert command.argv[command.argv.index("--parallel") + 1] == "4"


def test_llm_build2_as_in_the_manual(tiny_dir):
    argv = llm_build_command(MISSING, tiny_dir, Path("out"), build2=True, prefill_step_size=128).argv
    assert argv[:2] == ["pulsar2", "llm_build2"]
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    assert (options["--max_context"], options["--prefill_len"], options["--prefill_step_size"]) == (
        "1024",
        "512",
        "128",
    )
    assert "--kv_cache_len" not in options


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"prefill_len": 1024}, "does not fit a kv cache of 1023"),
        ({"last_kv_cache_len": [128, 2048]}, "does not fit a kv cache of 1023"),
        ({"last_kv_cache_len": [256, 128]}, "rising"),
        ({"last_kv_cache_len": [128, 128]}, "rising"),
        ({"prefill_len": 0}, "above 0"),
        ({"parallel": -1}, "above 0"),
        ({"last_kv_cache_len": [0]}, "above 0"),
        ({"build2": True, "last_kv_cache_len": [128]}, "knows no --last-kv-cache-len"),
        ({"prefill_step_size": 128}, "belongs to llm_build2"),
        ({"chip": "AX8850"}, "expected one of AX650"),
    ],
)
def test_contradicting_numbers_are_refused(tiny_dir, numbers, words):
    with pytest.raises(InputError, match=words):
        llm_build_command(MISSING, tiny_dir, Path("out"), **numbers)


def test_unknown_hardware_is_refused():
    with pytest.raises(InputError, match="'AX651': expected one of AX650"):
        build_command(MISSING, Path("x.onnx"), CONFIG, chip="AX651")


# Where the tool is


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


# Running it


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


def test_run_simulates_every_listed_step(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 392, 3), np.uint8)
    features = np.arange(2 * 4 * 5, dtype=np.float32).reshape(8, 5)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "vit_out.npy", features)
    monkeypatch.setenv("STAND_IN_ANSWERS", str(tmp_path))
    (tmp_path / "x.axmodel").touch()
    (tmp_path / "list").write_text("0\n1\n")
    for step, patches in enumerate(pixels):
        (tmp_path / "in" / str(step)).mkdir(parents=True)
        patches.tofile(tmp_path / "in" / str(step) / "hidden_states.bin")
    execute(run_command(HERE, tmp_path / "x.axmodel", tmp_path / "in", tmp_path / "out", tmp_path / "list"))
    read = [np.fromfile(tmp_path / "out" / step / "hidden_states_out.bin", np.float32) for step in "01"]
    np.testing.assert_array_equal(np.concatenate(read), features.ravel())
    (pixels[0] ^ 1).tofile(tmp_path / "in" / "0" / "hidden_states.bin")
    with pytest.raises(CheckFailed, match=r"no uint8 \(1, S, 392, 3\) of the clip"):
        execute(run_command(HERE, tmp_path / "x.axmodel", tmp_path / "in" / "0", tmp_path / "out"))
    with pytest.raises(CheckFailed, match="pulsar2 run failed with exit code 2"):
        execute(run_command(HERE, tmp_path / "none.axmodel", tmp_path / "in", tmp_path / "out"))


def test_version(tmp_path):
    assert version(HERE) == "version: 0.0-stand-in, commit: 0000000"
    done = cli("version")
    assert (done.returncode, done.stdout) == (0, "version: 0.0-stand-in\ncommit: 0000000\n")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(CheckFailed, match=r"\(exit code 3\): no licence"):
        version(Tool("command", str(broken)))
    broken.write_text("no program at all")
    with pytest.raises(CheckFailed, match="does not start"):
        version(Tool("command", str(broken)))


# Failures


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


def test_an_older_axmodel_is_not_taken_for_the_new_one(make_workdir, monkeypatch):
    workdir = make_workdir()
    old = workdir / "build-output" / "tiny_vision.axmodel"
    old.parent.mkdir()
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    monkeypatch.setenv("STAND_IN_OMIT", "build")
    with pytest.raises(CheckFailed, match="1 of 1 files were not written"):
        execute(build_command(HERE, workdir / "tiny_vision.onnx", CONFIG))


def test_only_the_last_lines_are_repeated(make_workdir, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.write_text("#!/bin/sh\nseq 1000 >&2\nprintf 'half\\rlast' >&2\nexit 1\n")
    noisy.chmod(0o755)
    make_workdir()
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG, PULSAR2=str(noisy))
    assert "\n500\n" in done.stderr  # streamed whole
    last = done.stderr.splitlines()[-1]
    assert last.endswith("| 999 | 1000 | half | last") and "| 500 |" not in last


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


STEP = ["-m", "qwen_vl_axera.chain.steps", "--name", "npu-vision", "--", sys.executable]


@pytest.mark.parametrize("around", [[], STEP], ids=["alone", "as a step"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_ends_the_tool_too(make_workdir, number, code, around):
    make_workdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PULSAR2": str(STAND_IN), "STAND_IN_SLEEP": "build:60"}
    argv = [sys.executable, *around, "-m", "qwen_vl_axera.compiler", "build", "tiny_vision.onnx"]
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
    assert not Path("delivered.axmodel").exists()


# The stand-in itself: a test double that takes everything shows nothing


@pytest.mark.parametrize(
    "argv",
    [
        ["build", "--inptu", "x"],
        ["build", "--inp", "x"],
        ["build", "--kv_cache_len", "1"],
        ["build", "--target_hardware", "AX8850"],
        ["llm_build", "--prefil_len", "1"],
        ["llm_build", "--hidden_state_type", "bfloat16"],
        ["llm_build", "--max_context", "1"],
        ["llm_build2", "--kv_cache_len", "1"],
        ["run", "--inputs", "x"],
        ["optimize"],
    ],
)
def test_stand_in_refuses_undocumented_options(argv):
    assert subprocess.run([STAND_IN, *argv], capture_output=True).returncode == 2


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"0.npy": np.zeros((1, 3, 16, 392), np.uint8)},
        {"0.npy": np.zeros((1, 3, 16, 392), np.float64)},
        {"0.npy": np.zeros((3, 16, 392), np.float32)},
        {"0.npy": np.zeros((1, 16, 392, 3), np.float32)},
        {"0.npy": np.zeros((1, 3, 18, 392), np.float32)},
        {"0.npy": np.zeros((1, 3, 16, 392), np.float32), "1.npy": np.zeros((1, 3, 20, 392), np.float32)},
        {"calib/0.npy": np.zeros((1, 3, 16, 392), np.float32)},
        {"../0.npy": np.zeros((1, 3, 16, 392), np.float32)},
        {"0.png": np.zeros((16, 392, 3), np.uint8)},
        None,
    ],
)
def test_stand_in_refuses_wrong_archives(make_workdir, members):
    workdir = make_workdir(archive=False)
    if members is not None:
        with tarfile.open(workdir / "calib" / "hidden_states.tar", "w") as tar:
            for name, values in members.items():
                if name.endswith(".npy"):
                    np.save(workdir / "sample.npy", values)
                else:
                    Image.fromarray(values).save(workdir / "sample.npy", "png")
                tar.add(workdir / "sample.npy", name)
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG)
    assert done.returncode == 1 and "exit code 2" in done.stderr


def test_stand_in_takes_pictures_for_the_normalized_graph(make_workdir):
    workdir = make_workdir(archive=False)
    Image.fromarray(np.zeros((16, 392, 3), np.uint8)).save(workdir / "0.png")
    with tarfile.open(workdir / "calib" / "hidden_states.tar", "w") as tar:
        tar.add(workdir / "0.png", "0.png")
    done = cli("build", "tiny_vision.onnx", "--config", ROOT / "config_video_normalized.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ['{"quant": {"input_configs": [], "quant": 1}}', '{"a": 1}', "{,}", '{"quant": NaN}'])
def test_stand_in_refuses_wrong_configurations(make_workdir, text):
    workdir = make_workdir()
    (workdir / "wrong.json").write_text(text)
    assert cli("build", "tiny_vision.onnx", "--config", "wrong.json").returncode == 1


# Docker: what the container would see


def mounts_of(argv):
    """Place in the container -> (path on the host, writable), read from the command as Docker reads it."""
    import csv

    mounts = {}
    for at, word in enumerate(argv):
        if word == "--mount":
            fields = dict(part.partition("=")[::2] for part in next(csv.reader([argv[at + 1]])))
            assert fields["type"] == "bind"
            mounts[fields["target"]] = (fields["source"], "readonly" not in fields)
    return mounts


def in_container(mounts, path, depth=0):
    """The host file behind a path of the container; links are followed inside it. None where nothing is."""
    assert depth < 20
    path = os.path.normpath(path)
    place = max((place for place in mounts if path == place or path.startswith(f"{place}/")), key=len, default=None)
    if place is None:
        return None
    host = Path(mounts[place][0])
    parts = Path(os.path.relpath(path, place)).parts if path != place else ()
    seen = place
    for at, part in enumerate(parts):
        host, seen = host / part, f"{seen}/{part}"
        if host.is_symlink():
            target = PurePosixPath(seen).parent.joinpath(host.readlink(), *parts[at + 1 :])
            return in_container(mounts, str(target), depth + 1)
    return host if host.exists() else None


def split(argv):
    """(arguments of docker run, what the script gets, the tool's command)."""
    script = argv.index(HAND_BACK)
    end = argv.index("--", script)
    return argv[:script], argv[script + 1 : end], argv[end + 1 :]


def value(command, flag):
    for at, word in enumerate(command):
        if word == flag:
            return command[at + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    raise AssertionError(f"no {flag} in {command}")


@pytest.mark.parametrize("name", HOSTILE)
def test_docker_build(make_workdir, tmp_path, name):
    workdir = make_workdir(name, graph=f"{name}_vision.onnx")
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    command = build_command(IMAGE, workdir / f"{name}_vision.onnx", tmp_path / "config.json", workdir)
    docker, handed, tool = split(command.argv)
    assert docker[:4] == ["docker", "run", "--rm", "--pull=never"]
    assert docker[docker.index("--workdir") + 1] == "/work"
    assert docker[docker.index("--entrypoint") :] == ["--entrypoint", "bash", "pulsar2:7.0", "-c"]
    mounts = mounts_of(docker)
    assert in_container(mounts, value(tool, "--input")) == workdir / f"{name}_vision.onnx"
    assert in_container(mounts, value(tool, "--config")) == tmp_path / "config.json"
    assert in_container(mounts, "/work/calib/hidden_states.tar") == workdir / "calib" / "hidden_states.tar"
    assert value(tool, "--output_dir") == "/work/build-output" and mounts["/work"] == (str(workdir), True)
    assert value(tool, "--output_name") == f"{name}_vision.axmodel"
    assert [writable for _, writable in mounts.values()].count(True) == 1
    assert handed[1:] == [str(workdir.stat().st_uid), "/work/build-output"]
    assert tool[:2] == ["pulsar2", "build"]


def test_docker_mounts_what_the_configuration_names(make_workdir, tmp_path):
    workdir = make_workdir()
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    outside = tmp_path / "data"
    outside.mkdir()
    for name in ("absolute.tar", "relative.tar"):
        (outside / name).touch()
    entry = config["quant"]["input_configs"][0]
    for named in (str(outside / "absolute.tar"), "../data/relative.tar"):
        entry["calibration_dataset"] = named
        (workdir / "config.json").write_text(json.dumps(config))
        docker, _, _ = split(build_command(IMAGE, Path("tiny_vision.onnx"), Path("config.json")).argv)
        assert in_container(mounts_of(docker), str(PurePosixPath("/work", named))) == outside / Path(named).name


@pytest.mark.parametrize("layout", ["plain", "hub cache", "absolute links"])
def test_docker_llm_build_reaches_every_weight(tiny_dir, tmp_path, layout):
    checkpoint = tmp_path / "models--Qwen" / "snapshots" / "0123"
    blobs = tmp_path / "models--Qwen" / "blobs"
    for directory in (checkpoint, blobs):
        directory.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_dir.iterdir())):
        if layout == "plain":
            (checkpoint / file.name).write_bytes(file.read_bytes())
            continue
        (blobs / f"b{number}").write_bytes(file.read_bytes())
        link = blobs / f"b{number}" if layout == "absolute links" else Path("../../blobs") / f"b{number}"
        (checkpoint / file.name).symlink_to(link)
    output = tmp_path / "out put"
    docker, handed, tool = split(llm_build_command(IMAGE, checkpoint, output).argv)
    mounts = mounts_of(docker)
    for file in tiny_dir.iterdir():
        found = in_container(mounts, f"{value(tool, '--input_path')}/{file.name}")
        assert found is not None and found.read_bytes() == file.read_bytes()
    place = value(tool, "--output_path")
    assert mounts[place] == (str(output), True) and handed[-1] == place
    assert all(not writable for host, writable in mounts.values() if host.startswith(str(tmp_path / "models--Qwen")))


def test_docker_graph_behind_a_link(make_workdir, tmp_path):
    workdir = make_workdir()
    (tmp_path / "elsewhere").mkdir()
    (workdir / "tiny_vision.onnx").rename(tmp_path / "elsewhere" / "graph.onnx")
    for target in (tmp_path / "elsewhere" / "graph.onnx", Path("../elsewhere/graph.onnx")):
        (workdir / "tiny_vision.onnx").symlink_to(target)
        docker, _, tool = split(build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv)
        found = in_container(mounts_of(docker), value(tool, "--input"))
        assert found == tmp_path / "elsewhere" / "graph.onnx"
        (workdir / "tiny_vision.onnx").unlink()


def test_docker_refuses_links_across_the_file_system(tmp_path, monkeypatch):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "model.safetensors").symlink_to(os.path.relpath("/etc/hostname", tmp_path / "ckpt"))
    with pytest.raises(InputError, match="copy the files together"):
        container.Mounts(tmp_path / "work").directory(tmp_path / "ckpt")


def test_docker_printed_line_makes_its_output_directory(make_workdir, tmp_path):
    make_workdir()
    (tmp_path / "bin").mkdir()
    recorder = tmp_path / "bin" / "docker"
    recorder.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> {shlex.quote(str(tmp_path / 'docker.log'))}\n")
    recorder.chmod(0o755)
    env = {"PULSAR2": "docker:pulsar2:7.0", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    printed = cli("build", "tiny_vision.onnx", "--config", CONFIG, "--print", **env)
    assert printed.returncode == 0 and printed.stdout.count("\n") == 1
    assert not Path("build-output").exists()
    expected = build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv[1:]
    subprocess.run(["bash", "-c", printed.stdout], check=True, env=os.environ | env)
    assert Path("build-output").is_dir()
    assert (tmp_path / "docker.log").read_text().split("\0")[:-1] == expected


def hand_back(tmp_path, owner, seen, directory, *command):
    """Runs the container's script here, with a recording `find` in place of the one that would chown."""
    recorder = tmp_path / "bin" / "find"
    recorder.parent.mkdir(exist_ok=True)
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path / "find.log"))}\n')
    recorder.chmod(0o755)
    return subprocess.Popen(
        ["bash", "-c", HAND_BACK, owner, str(seen), str(directory), "--", *command],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )


@pytest.mark.parametrize("code", [0, 3, 137])
def test_outputs_are_handed_back_and_the_exit_code_is_kept(tmp_path, code):
    user = tmp_path.stat().st_uid
    process = hand_back(tmp_path, "1234:100", user, tmp_path, "bash", "-c", 'exit "$1"', "x", str(code))
    assert process.wait(timeout=60) == code
    assert (tmp_path / "find.log").read_text().split() == [
        str(tmp_path),
        *["-user", "0", "-exec", "chown", "-h", "1234:100", "{}", "+"],
    ]


@pytest.mark.parametrize(("owner", "shift"), [("", 0), ("1234:100", 1)])
def test_nothing_is_handed_back_to_root_or_across_user_namespaces(tmp_path, owner, shift):
    seen = tmp_path.stat().st_uid + shift
    assert hand_back(tmp_path, owner, seen, tmp_path, "true").wait(timeout=60) == 0
    assert not (tmp_path / "find.log").exists()


def test_a_signal_ends_the_tool_and_still_hands_back(tmp_path):
    ready = tmp_path / "ready"
    process = hand_back(
        tmp_path,
        "1234:100",
        tmp_path.stat().st_uid,
        tmp_path,
        "bash",
        "-c",
        'touch "$1"; exec sleep 60',
        "x",
        str(ready),
    )
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "find.log").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_root_owned_outputs_change_hands(tmp_path):
    (tmp_path / "sub dir").mkdir()
    theirs = tmp_path / "sub dir" / "other"
    theirs.touch()
    os.chown(theirs, 4321, 4321)
    (tmp_path / "link").symlink_to("/etc/hostname")
    script = 'touch "$1/sub dir/new"'
    argv = [
        HAND_BACK,
        "1234:100",
        str(tmp_path.stat().st_uid),
        str(tmp_path),
        "--",
        "bash",
        "-c",
        script,
        "x",
        str(tmp_path),
    ]
    subprocess.run(["bash", "-c", *argv], check=True)
    assert (tmp_path / "sub dir" / "new").stat().st_uid == 1234
    assert (tmp_path / "link").lstat().st_uid == 1234 and Path("/etc/hostname").stat().st_uid == 0
    assert theirs.stat().st_uid == 4321


# --- one build at a time, and silence ---


def test_two_builds_are_never_at_once(make_workdir, tmp_path, monkeypatch):
    """The second waits, says why, and goes on when the first has ended; other commands do not wait."""
    make_workdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
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


def test_a_tool_that_says_nothing_is_remarked_on(make_workdir, monkeypatch, capfd):
    workdir = make_workdir()
    monkeypatch.setattr("qwen_vl_axera.compiler.tool.QUIET", 0.5)
    monkeypatch.setenv("STAND_IN_SLEEP", "build:1.5")
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.FileIO(2, "w", closefd=False)))
    execute(build_command(HERE, workdir / "tiny_vision.onnx", CONFIG))
    assert "still running; silent for" in capfd.readouterr().err
