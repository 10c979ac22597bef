"""What a container would see: read from the command as Docker reads it. No Docker is run."""

import csv
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path, PurePosixPath

import pytest

from qwen_vl_axera.compiler import container
from qwen_vl_axera.compiler.container import HAND_BACK
from qwen_vl_axera.compiler.pulsar2 import build_command, llm_build_command, run_command
from qwen_vl_axera.compiler.tool import check_writable
from qwen_vl_axera.errors import InputError
from tests.compiler.running import CONFIG, HOSTILE, IMAGE, cli

ARCHIVE = "calib/hidden_states.tar"


def mounts_of(argv):
    """Place in the container -> (path on the host, writable), read from the command as Docker reads it."""

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


@pytest.fixture
def fake_docker(tmp_path, monkeypatch):
    """A `docker` on PATH that records its calls; `ps` lists `running`, and `run` fails with the words of `fails`."""
    place = tmp_path / "fake"
    place.mkdir()
    (place / "docker").write_text(
        f'#!/bin/sh\ncd {shlex.quote(str(place))}\necho "$@" >> log\n'
        'if [ "$1" = ps ]; then cat running; exit 0; fi\n[ -s fails ] || exit 0\ncat fails >&2; exit "$(cat code)"\n'
    )
    (place / "docker").chmod(0o755)
    for name, text in (("running", ""), ("fails", ""), ("code", "125"), ("log", "")):
        (place / name).write_text(text)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


BUILD = ("build", "tiny_vision.onnx", "--config", CONFIG)
HELP = "See 'docker run --help'."
STOPPED = "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
NO_IMAGE = "docker: Error response from daemon: No such image: pulsar2:7.0."


@pytest.mark.parametrize("reason", [STOPPED, NO_IMAGE])
@pytest.mark.parametrize("command", [("version",), BUILD, ("llm_build", "--llm-build2")])
def test_dockers_reason_is_shown(make_workdir, fake_docker, tiny_dir, command, reason):
    make_workdir()
    (fake_docker / "fails").write_text(f"{reason}\n\nRun 'docker run --help' for more information\n{HELP}\n")
    words = [*command, tiny_dir, "out"] if command[0] == "llm_build" else command
    done = cli(*words, PULSAR2="docker:pulsar2:7.0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(reason)


def test_a_name_that_is_taken_says_how_to_end_the_container(make_workdir, fake_docker):
    make_workdir()
    taken = 'docker: Error response from daemon: Conflict. The container name "/x" is already in use by container "ab".'
    (fake_docker / "fails").write_text(f"{taken}\n{HELP}\n")
    done = cli(*BUILD, PULSAR2="docker:pulsar2:7.0")
    argv = build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv
    assert done.returncode == 1
    assert f"`docker rm -f {argv[argv.index('--name') + 1]}`" in done.stderr.splitlines()[-1]
    assert "Conflict" not in done.stderr.splitlines()[-1]


def test_a_container_that_still_builds_is_another_build(make_workdir, fake_docker):
    workdir = make_workdir()
    old = workdir / "build-output" / "tiny_vision.axmodel"
    old.parent.mkdir()
    old.touch()
    (fake_docker / "running").write_text("other\nmy-qwen-vl-axera-1\nqwen-vl-axera-0123456789ab\n")
    done = cli(*BUILD, PULSAR2="docker:pulsar2:7.0")
    assert done.returncode == 2 and "`docker rm -f qwen-vl-axera-0123456789ab`" in done.stderr.splitlines()[-1]
    assert not (fake_docker / "log").read_text().startswith("run") and old.exists()
    (fake_docker / "running").write_text("other\n")
    assert "1 of 1 files were not written" in cli(*BUILD, PULSAR2="docker:pulsar2:7.0").stderr


def test_the_current_directory_is_mounted_for_builds_and_runs_alone(make_workdir, fake_docker, tiny_dir, tmp_path):
    workdir = make_workdir()
    cli("version", PULSAR2="docker:pulsar2:7.0")
    cli("llm_build", tiny_dir, tmp_path / "out", "--llm-build2", PULSAR2="docker:pulsar2:7.0")
    runs = [line for line in (fake_docker / "log").read_text().splitlines() if line.startswith("run")]
    assert len(runs) == 3 and "-h" in runs[1]
    assert not any(str(workdir) in line or "target=/work" in line for line in runs)
    mounts = mounts_of(llm_build_command(IMAGE, tiny_dir, tmp_path / "out").argv)
    assert sorted(mounts.values()) == sorted([(str(tiny_dir.resolve()), False), (str(tmp_path / "out"), True)])
    run = run_command(IMAGE, Path("tiny_vision.onnx"), Path(), workdir / "out", workdir=workdir)
    assert mounts_of(run.argv) == {"/work": (str(workdir), True)}


@pytest.mark.parametrize("target", ["absolute", "relative", "chain"])
@pytest.mark.parametrize("linked", ["calib", "calib/hidden_states.tar"])
def test_an_archive_behind_a_link_is_mounted(make_workdir, tmp_path, linked, target):
    workdir = make_workdir()
    outside = tmp_path / "elsewhere" / "deep"
    outside.mkdir(parents=True)
    (workdir / linked).rename(outside / "moved")
    goal = outside / "moved"
    if target == "chain":
        (workdir / "through").symlink_to(tmp_path / "elsewhere")
        goal = Path("through/deep/moved") if linked == "calib" else Path("../through/deep/moved")
    elif target == "relative":
        goal = Path(os.path.relpath(goal, (workdir / linked).parent))
    (workdir / linked).symlink_to(goal)
    found = in_container(mounts_of(build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv), f"/work/{ARCHIVE}")
    assert found is not None and found.samefile(workdir / ARCHIVE)


def test_links_in_a_circle_are_left_alone(make_workdir):
    workdir = make_workdir(archive=False)
    (workdir / ARCHIVE).symlink_to("hidden_states.tar")
    assert list(mounts_of(build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv)) == [
        "/work",
        "/mnt/0/config_video.json",
    ]


def test_docker_flags_come_before_the_image(make_workdir, monkeypatch):
    make_workdir()
    monkeypatch.setenv("DOCKER_FLAGS", "--gpus all --mount 'type=bind,source=/opt/my licence,target=/licence'")
    argv = build_command(IMAGE, Path("tiny_vision.onnx"), CONFIG).argv
    at = argv.index("--gpus")
    assert argv[at : at + 4] == ["--gpus", "all", "--mount", "type=bind,source=/opt/my licence,target=/licence"]
    assert at < argv.index("pulsar2:7.0") and "DOCKER_FLAGS" in container.PASSED_ON and "DOCKER_FLAGS" not in argv


@pytest.mark.parametrize("text", ["'open", "ubuntu", "-e A=b -- ubuntu"])
def test_docker_flags_that_are_none(make_workdir, text):
    make_workdir()
    done = cli(*BUILD, "--print", PULSAR2=f"docker:{IMAGE.name}", PATH=path_with_docker(), DOCKER_FLAGS=text)
    assert done.returncode == 2 and "DOCKER_FLAGS" in done.stderr and len(done.stderr.splitlines()) == 1


def path_with_docker() -> str:
    Path("bin").mkdir()
    Path("bin/docker").touch(0o755)
    return f"{Path('bin').resolve()}:{os.environ['PATH']}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_what_an_earlier_container_left_is_handed_back_too(tmp_path):
    left = tmp_path / "quant"
    left.mkdir()
    (left / "old").touch()
    argv = [HAND_BACK, "1234:100", str(tmp_path.stat().st_uid), str(tmp_path), "--", "true"]
    subprocess.run(["bash", "-c", *argv], check=True)
    assert {left.stat().st_uid, (left / "old").stat().st_uid} == {1234}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_what_root_has_left_is_named_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "a b" / "quant").mkdir(parents=True)
    os.chown(tmp_path / "a b", 1234, 100)
    monkeypatch.chdir(tmp_path)  # whose parents are root's
    os.chmod(tmp_path, 0o755)
    check_writable(Path("a b"))
    os.seteuid(1234)
    try:
        with pytest.raises(InputError, match=r"a b/quant belongs to root .*: sudo chown -R 1234:0 -- 'a b'"):
            check_writable(Path("a b"))
    finally:
        os.seteuid(0)
    os.chown(tmp_path / "a b" / "quant", 4321, 4321)
    os.seteuid(1234)
    try:
        check_writable(Path("a b"))  # another user's: the container's root may write there
    finally:
        os.seteuid(0)
