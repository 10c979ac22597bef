"""Work directories that a report is made of."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import export
import get_calib
import run_video_by_sec
import test_onnx_video_by_sec as verify
from qwen_vl_axera.chain.record import StepCost, add_step
from qwen_vl_axera.files import write_record
from qwen_vl_axera.preflight.checks import Check, Outcome
from tests.report.pages import HOSTILE, SIZE, SPOOFED


@pytest.fixture(scope="session")
def made(tiny_dir, tmp_path_factory) -> Path:
    """A work directory after all host steps, over 8 noisy frames (the worst case for size) of a hostile name."""
    root = tmp_path_factory.mktemp("report")
    source, workdir = root / HOSTILE, root / "work"
    source.mkdir()
    random = np.random.default_rng(3)
    for number in range(8):
        frame = random.integers(0, 256, (120, 150, 3), dtype=np.uint8)
        Image.fromarray(frame).save(source / f"{number}.png")
    ckpt, place = str(tiny_dir), ["--workdir", str(workdir)]
    size = ["--size", *map(str, SIZE)]
    assert run_video_by_sec.main([ckpt, "--video", str(source), *size, *place]) == 0
    assert export.main([ckpt, "video", *place]) == 0
    assert verify.main([ckpt, *place]) == 0
    assert get_calib.main(["--inputs", str(source), *size, "--num-samples", "4", *place]) == 0
    write_record(workdir / "preflight.json", Outcome, Outcome.of([Check(HOSTILE, "ok", SPOOFED)]))
    add_step(workdir / "steps.json", StepCost("capture", 1.5, 2 * 10**9, 0, ["run", HOSTILE], skipped=False))
    add_step(workdir / "steps.json", StepCost("export", 0.5, 10**9, 0, ["export"], skipped=True))
    (workdir / "pulsar2_commands.sh").write_text(f"pulsar2 build '{HOSTILE}'\n", "utf-8")
    return workdir


@pytest.fixture
def workdir(made, tmp_path) -> Path:
    """A copy to break things in."""
    return shutil.copytree(made, tmp_path / "work")
