"""The picture model's inputs, and its graphs when the contract of the input changes."""

import shutil
from pathlib import Path

import pytest

from qwen_vl_axera.chain.pictures import capture_source, remove_other_graphs, with_pictures
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.graph.export import export_vision
from tests.conftest import ROOT

CLIP = ROOT / "assets" / "demo.mp4"


@pytest.fixture
def photo(frames_dir, tmp_path):
    return Path(shutil.copy(frames_dir / "001.png", tmp_path / "a photo.PNG"))


def test_pictures_among_videos(frames_dir, photo, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(CLIP, tmp_path / "videos")
    inputs = [CLIP, tmp_path / "videos", photo, frames_dir]
    assert with_pictures(inputs) == [photo, frames_dir]
    assert capture_source(inputs) == (photo, None)
    assert capture_source([CLIP, frames_dir, photo]) == (frames_dir / "000.png", None)


def test_videos_alone():
    assert with_pictures([CLIP]) == []
    assert capture_source([CLIP]) == (CLIP, 2)


def test_graphs_of_another_input_make_room(tiny_dir, tmp_path):
    checkpoint = Checkpoint(tiny_dir)
    export_vision(checkpoint, tmp_path, "image", [(56, 56)], input="normalized")
    graphs = sorted(tmp_path.glob("*_image*.onnx"))
    remove_other_graphs(graphs, "normalized")
    assert sorted(tmp_path.glob("*_image*.onnx")) == graphs and len(graphs) == 2
    remove_other_graphs(graphs, None)
    assert not list(tmp_path.glob("*_image*.onnx"))
    export_vision(checkpoint, tmp_path, "video", [(56, 56)])
