"""The demo model, one derived from it with planted massive tokens, and frames to calibrate and to judge on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import get_calib
from bench.witnesses import make_witness
from demo import clips
from preprocess import to_graph_input
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.quantization.execution import WeightStore
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.observers import Ranges, calibrate
from tests.conftest import ROOT

SIZE = (168, 168)
FIRST_CLIP = 100_400  # of the unseen split


@dataclass(frozen=True)
class Case:
    """A checkpoint with its graph, its calibration set and frames that are not in it."""

    checkpoint: Path
    workdir: Path
    evaluation: Path

    @property
    def graph(self) -> Path:
        return self.workdir / f"{self.checkpoint.name}_vision.onnx"

    def samples(self, count: int = 6) -> list[np.ndarray]:
        return [np.load(path) for path in sorted((self.workdir / "calib").glob("*.npy"))[:count]]

    def steps(self, count: int = 2) -> list[np.ndarray]:
        from preprocess import frames_to_patches

        frames = [np.asarray(Image.open(path)) for path in sorted(self.evaluation.iterdir())]
        return [to_graph_input(step) for step in frames_to_patches(frames, SIZE)[:count]]


def write_frames(directory: Path, number: int) -> Path:
    """One of the demo's clips as eight PNG files."""
    directory.mkdir(parents=True)
    for index, frame in enumerate(clips.render(clips.make_clip("test", clips.DEMO_SEED, FIRST_CLIP + number))):
        Image.fromarray(frame).save(directory / f"{index}.png")
    return directory


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> list[Path]:
    """Five clips: the last one is never calibrated on."""
    directory = tmp_path_factory.mktemp("clips")
    return [write_frames(directory / f"clip{number}", number) for number in range(5)]


def make_case(checkpoint: Path, workdir: Path, frames: list[Path]) -> Case:
    export_vision(Checkpoint(checkpoint), workdir, sizes=[SIZE])
    inputs = [str(path) for path in frames[:-1]]
    sides = [str(side) for side in SIZE]
    assert get_calib.main(["--inputs", *inputs, "--size", *sides, "--num-samples", "8", "--workdir", str(workdir)]) == 0
    return Case(checkpoint, workdir, frames[-1])


@pytest.fixture(scope="session")
def demo(tmp_path_factory, frames) -> Case:
    return make_case(ROOT / "assets" / "demo_model", tmp_path_factory.mktemp("demo"), frames)


@pytest.fixture(scope="session")
def massive(tmp_path_factory, frames) -> Case:
    directory = tmp_path_factory.mktemp("massive")
    make_witness(ROOT / "assets" / "demo_model", directory / "massive", "massive", frames[0], SIZE)
    workdir = directory / "work"
    workdir.mkdir()
    return make_case(directory / "massive", workdir, frames)


@dataclass(frozen=True)
class Calibrated:
    network: Network
    ranges: Ranges
    weights: WeightStore


@pytest.fixture(scope="session")
def calibrated(massive) -> Calibrated:
    network = Network(massive.graph)
    return Calibrated(network, calibrate(network, massive.samples()), WeightStore(network))
