"""A run killed at every stage boundary, and inside the export, resumes to the very bytes of an unbroken one."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import make_tiny

# Large enough for the weights to take a while: a kill can land in the middle of the file.
VISION = {"depth": 10, "hidden_size": 256, "intermediate_size": 1024, "fullatt_block_indexes": [4, 9]}
# What the killer waits for: the first file of each stage, and the half-written weights.
MOMENTS = (
    "work/pixels.npy",
    "work/.steps/capture.json",
    "work/.*.onnx.data.*.tmp",
    "work/*_vision_uint8.onnx",
    "work/fidelity.json",
    "work/calib/hidden_states.tar",
    "out/model.embed_tokens.weight.bfloat16.bin",
    "out/manifest.json",
)
# They tell of the run itself: seconds, memory, which steps were skipped.
ABOUT_THE_RUN = {"steps.json", "report.html", "preflight.json"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("larger") / "larger", vision=VISION)


def start(checkpoint: Path, frames: Path, base: Path, *flags: str, **variables: str) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PULSAR2")}
    env |= {"VENV": sys.prefix, "WORKDIR": str(base / "work"), "OUT": str(base / "out"), "SIZE": "56 84"}
    command = ["bash", str(ROOT / "export_video.sh"), str(checkpoint), str(frames), *flags]
    command += [] if variables else ["--host-only"]
    return subprocess.Popen(
        command,
        env=env | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_when(process: subprocess.Popen, base: Path, pattern: str) -> bool:
    """Kills the whole process group as soon as a file is there; False when the run ended first."""
    while process.poll() is None:
        if any(base.glob(pattern)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def digests(base: Path) -> dict[str, str]:
    files = [path for path in base.rglob("*") if path.is_file() and path.name not in ABOUT_THE_RUN]
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if ".steps" not in path.parts and path.name != "pulsar2_commands.sh"
    }


def test_killed_runs_resume_to_the_same_bytes(checkpoint, frames_dir, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    process = start(checkpoint, frames_dir, unbroken)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    killed = []
    for moment in MOMENTS:
        process = start(checkpoint, frames_dir, broken, "--resume")
        if kill_when(process, broken, moment):
            killed.append(moment)
    assert len(killed) >= len(MOMENTS) - 1, f"only killed at {killed}"

    process = start(checkpoint, frames_dir, broken, "--resume")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "capture: up to date" in output and "export: up to date" in output

    expected, found = digests(unbroken), digests(broken)
    left = {name for name in found if name not in expected}
    assert {name: found.get(name) for name in expected} == expected
    # A kill -9 can't clean up after itself: hidden temporary files may stay, nothing else.
    assert all(Path(name).name.startswith(".") or ".tmp" in name for name in left), left
