"""What a step depends on: data by content, code by what it does, the compiler by its version and command line."""

import os

import pytest

from qwen_vl_axera.chain import code, fingerprints
from qwen_vl_axera.chain.steps import Step, python
from tests.conftest import ROOT


@pytest.fixture
def small_limits(monkeypatch):
    """Everything above 64 bytes counts as large."""
    monkeypatch.setattr(fingerprints, "WHOLE", 64)
    monkeypatch.setattr(fingerprints, "END", 16)


@pytest.mark.parametrize("change", ["first byte", "last byte", "middle", "length"])
def test_large_file(tmp_path, small_limits, change):
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(1000))
    status, before = path.stat(), fingerprints.describe(path)
    assert before.keys() == {"size", "mtime_ns", "sha256_ends"} and before == fingerprints.describe(path)
    with open(path, "r+b") as file:
        file.seek({"first byte": 0, "last byte": 999, "middle": 500, "length": 1000}[change])
        file.write(b"\1")
    # Only a change in the middle is left to the modification time.
    offset = 1 if change == "middle" else 0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + offset))
    assert fingerprints.describe(path) != before


def test_frame_directory_by_names_and_content(tmp_path):
    frames = tmp_path / "frames"
    (frames / "sub").mkdir(parents=True)
    (frames / "0001.png").write_bytes(b"a")
    (frames / "0002.png").write_bytes(b"b")
    (frames / "sub" / "up").symlink_to(frames)  # a loop must end
    step = Step("x", "", ["true"], [frames])
    first = fingerprints.step_parts(step)
    (frames / "0002.png").write_bytes(b"c")
    second = fingerprints.step_parts(step)
    assert fingerprints.differences(first, second) == [f"input {frames} changed (0002.png)"]
    (frames / "0003.png").write_bytes(b"d")
    (frames / "0001.png").rename(frames / "0000.png")
    told = fingerprints.differences(second, fingerprints.step_parts(step))
    assert told == [f"input {frames} changed (0000.png and 2 more)"]


def test_checkpoint_by_configuration_and_shard_headers(tmp_path, monkeypatch):
    import numpy as np
    from safetensors.numpy import save_file

    ckpt = tmp_path / "ckpt"
    ckpt.mkdir()
    (ckpt / "config.json").write_text("{}")
    shard = ckpt / "model.safetensors"
    save_file({"w": np.zeros(4096, np.float32)}, shard)
    monkeypatch.setattr(fingerprints, "WHOLE", 1024)
    step = Step("x", "", ["true"], checkpoint=ckpt)
    before = fingerprints.data_parts(step)
    assert before[f"checkpoint {ckpt}"]["files"]["model.safetensors"].keys() == {"size", "mtime_ns", "sha256_header"}

    (ckpt / "README.md").write_text("no matter")
    assert fingerprints.data_parts(step) == before

    status = shard.stat()
    save_file({"v": np.zeros(4096, np.float32)}, shard)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shard.stat().st_size == status.st_size
    told = fingerprints.differences(before, fingerprints.data_parts(step))
    assert told == [f"checkpoint {ckpt} changed (model.safetensors)"]

    (ckpt / "config.json").write_text('{"a": 1}')
    told = fingerprints.differences(before, fingerprints.data_parts(step))
    assert told == [f"checkpoint {ckpt} changed (config.json and 1 more)"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in small: a script that imports one module when it runs, and another that it does not."""
    files = {
        "export.py": '"""Says what it does."""\nimport json\n\n\ndef main():\n    from room.graph import trace\n',
        "room/__init__.py": "",
        "room/graph.py": "import torch\nfrom room import files\n\ntrace = 1  # a number\n",
        "room/files.py": "",
        "room/report.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for module in (code, fingerprints):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(fingerprints, "entry_of", lambda command: code.entry_of(command, tmp_path))
    monkeypatch.setattr(fingerprints, "used_code", lambda entry: code.used_code(entry, tmp_path))
    return tmp_path


def changes(project, path, text):
    """What differs after a file of the project was written anew."""
    command = ["python3", str(project / "export.py")]
    before = fingerprints.code_parts(command)
    (project / path).write_text(text)
    return fingerprints.differences(before, fingerprints.code_parts(command))


def test_code_that_a_step_uses_counts(project):
    assert changes(project, "room/graph.py", "import torch\nfrom room import files\n\ntrace = 2\n") == [
        "room/graph.py changed"
    ]
    assert changes(project, "room/files.py", "x = 1\n") == ["room/files.py changed"]


def test_code_that_it_does_not_use_and_comments_do_not(project):
    assert changes(project, "room/report.py", "x = 1\n") == []
    same = '"""Said otherwise."""\nimport json  # a remark\n\n\ndef main():\n    from room.graph import trace\n'
    assert changes(project, "export.py", same) == []


def test_packages_that_it_uses_count(project, monkeypatch):
    command = ["python3", str(project / "export.py")]
    before = fingerprints.code_parts(command)
    monkeypatch.setattr(fingerprints.importlib.metadata, "version", lambda name: f"0.{len(name)}")
    told = fingerprints.differences(before, fingerprints.code_parts(command))
    assert len(told) == 1 and told[0].startswith("package torch changed from") and told[0].endswith("to 0.5")


def test_the_scripts_use_their_own_packages():
    used = {
        script: {path.relative_to(ROOT).as_posix() for path in code.used_code(ROOT / script)[0]}
        for script in ("export.py", "run_video_by_sec.py", "get_calib.py", "extract_embedding.py")
    }
    assert "qwen_vl_axera/towers/qwen2_5_vl/weights.py" in used["export.py"]
    assert "qwen_vl_axera/towers/qwen2_5_vl/reference.py" in used["run_video_by_sec.py"]
    for files in used.values():
        assert not any(file.startswith(("qwen_vl_axera/report/", "qwen_vl_axera/compiler/")) for file in files)


def test_interpreter_path_does_not_matter():
    command = ["-P", "-m", "json.tool"]
    assert fingerprints.code_parts(["/a/venv/bin/python3.11", *command])["command"] == ["python", *command]


def test_a_build_depends_on_the_compiler_and_its_command_line_alone(tmp_path, monkeypatch):
    """Hours of building must not be redone for a change in a line of ours, nor for a directory that is there now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PULSAR2", "true")
    command = python("qwen_vl_axera.compiler", "build", "a.onnx", "--config", "c.json", "--workdir", "work")
    step = Step("npu-vision", "", command, compiler="run")
    parts = fingerprints.step_parts(step, "7.0")
    assert parts["compiler"] == "7.0" and parts["command"][:4] == ["true", "build", "--input", str(tmp_path / "a.onnx")]
    assert parts.keys() == {"compiler", "command"}
    (tmp_path / "work" / "build-output").mkdir(parents=True)
    assert fingerprints.differences(parts, fingerprints.step_parts(step, "7.0")) == []
    assert fingerprints.differences(parts, fingerprints.step_parts(step, "7.1")) == ["compiler changed from 7.0 to 7.1"]
