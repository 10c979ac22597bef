"""The stand-in itself: a test double that takes everything shows nothing."""

import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.compiler.running import CONFIG, STAND_IN, cli
from tests.conftest import ROOT


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
