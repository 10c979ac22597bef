"""Fixtures that several test files share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from qwen_vl_axera import cli
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from tests.tiny import make_tiny

ROOT = Path(__file__).resolve().parent.parent

# The same inputs every time: a test must not fail for somebody else's random number, or on a slow machine.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.load_profile("fixed")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Sizes whose windows differ: multiples of the window, ragged on one axis, on both, up to four window sizes.
SIZES = [(308, 308), (168, 336), (392, 392), (448, 448), (140, 252), (364, 420), (56, 56)]


def run_main(main, capsys, *argv) -> tuple[int, str, str]:
    """Runs a script's `main` in this process: exit code, stdout, stderr."""
    try:
        code = cli.run(main, [str(argument) for argument in argv])
    except SystemExit as end:  # argparse
        code = end.code
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture(scope="session", autouse=True)
def own_build_lock(tmp_path_factory):
    """Builds of other test processes on this machine are none that these must wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_dir) -> Checkpoint:
    return Checkpoint(tiny_dir)


@pytest.fixture(scope="session")
def frames_dir(tmp_path_factory) -> Path:
    """Six frames of 320x240 with a square that moves over a noisy ground."""
    directory = tmp_path_factory.mktemp("media") / "frames"
    directory.mkdir()
    random = np.random.default_rng(7)
    ground = random.integers(0, 90, (240, 320, 3), dtype=np.uint8)
    for number in range(6):
        frame = ground.copy()
        frame[60:140, 20 + 40 * number : 80 + 40 * number] = (230, 40, 60)
        Image.fromarray(frame).save(directory / f"{number:03d}.png")
    return directory


@pytest.fixture(scope="session")
def run_script():
    """Runs a script as a user does and returns the finished process."""

    def run(*argv, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        script, *rest = (str(argument) for argument in argv)
        return subprocess.run(
            [sys.executable, str(ROOT / script), *rest],
            cwd=cwd or ROOT,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
