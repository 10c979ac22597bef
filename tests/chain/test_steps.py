"""The declarations: every script's outputs, by what the scripts really write."""

import json
from dataclasses import replace

import pytest

from qwen_vl_axera.chain.steps import NAMES, Place, declared
from qwen_vl_axera.contract import LAYOUT_TENSORS
from tests.conftest import ROOT
from tests.talking import capture_and_export


@pytest.fixture(scope="module")
def place(tiny_dir, frames_dir, tmp_path_factory) -> Place:
    workdir = tmp_path_factory.mktemp("work")
    return Place(tiny_dir, workdir, workdir / "out", [frames_dir], ROOT / "config_video.json", 512)


def test_capture_and_export_write_what_is_declared_and_nothing_else(place, tiny_dir, frames_dir):
    capture_and_export(tiny_dir, place.workdir, frames_dir, (56, 84))
    written = {path for path in place.workdir.iterdir() if path.is_file()}
    assert written == {path for name in ("capture", "export") for path in declared(name, place).writes}


def test_what_the_picture_model_reads_and_writes(place):
    """Its own directory, but for the graph and the weights; nothing of the video's."""
    video = {path for name in NAMES for path in declared(name, place).writes}
    image = replace(place, mode="image")
    made = {path for name in NAMES[:7] if name != "npu-probe" for path in declared(name, image).writes}
    assert {path.name for path in made & video} == {"tiny_vision.onnx.data"}
    outside = {path.name for path in made - video if path.parent not in (image.here, image.here / "calib")}
    assert outside == {"tiny_vision_image.onnx", "tiny_vision_image_uint8.onnx", "tiny_vision_image.axmodel"}


def test_every_layer_of_the_language_model_is_an_output(place, tiny_dir):
    layers = json.loads((tiny_dir / "config.json").read_text())["num_hidden_layers"]
    names = [path.name for path in declared("npu-language", place).writes]
    assert names == [*(f"qwen2_5_vl_p512_l{n}_together.axmodel" for n in range(layers)), "qwen2_5_vl_post.axmodel"]


def test_what_a_step_reads_an_earlier_one_writes_or_the_user_gives(place):
    given = {*place.videos, place.config}
    for name in NAMES:
        step = declared(name, place)
        assert set(step.reads) <= given, (name, set(step.reads) - given)
        given |= set(step.writes)


def test_the_saved_layout_is_read_by_the_export(place):
    assert {f"{name}.pth" for name in LAYOUT_TENSORS} <= {path.name for path in declared("export", place).reads}


def test_unknown_step(place):
    with pytest.raises(ValueError, match="expected one of capture"):
        declared("nonsense", place)
