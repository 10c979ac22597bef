"""The table of steps: every script's outputs, by what the scripts really write."""

import json

import pytest

from qwen_vl_axera.chain.options import Run, read_variables
from qwen_vl_axera.chain.steps import Model, embedding, language, python
from qwen_vl_axera.towers import find_tower
from tests.conftest import ROOT
from tests.talking import capture_and_export


@pytest.fixture(scope="module")
def run(tiny_dir, frames_dir, tmp_path_factory) -> Run:
    workdir = tmp_path_factory.mktemp("work")
    values = read_variables({"IMAGE_SIZE": "84 84"})
    return Run(tiny_dir, workdir, workdir / "out", [frames_dir], ROOT / "config_video.json", values)


def steps(run, mode):
    model = Model(run, mode)
    found = [model.capture(), model.export("grouped"), model.fidelity(), model.calibration()]
    found += [model.probe()] if mode == "video" else []
    found += [model.build(run.config), model.compare(run.config)]
    return found + ([language(run), embedding(run)] if mode == "video" else [])


def test_capture_and_export_write_what_is_declared_and_nothing_else(run, tiny_dir, frames_dir):
    capture_and_export(tiny_dir, run.workdir, frames_dir, (56, 84))
    written = {path for path in run.workdir.iterdir() if path.is_file()}
    assert written == {path for step in steps(run, "video")[:2] for path in step.writes}


def test_what_the_picture_model_reads_and_writes(run):
    """Its own directory, but for the graph and the weights; nothing of the video's."""
    video = {path for step in steps(run, "video") for path in step.writes}
    made = {path for step in steps(run, "image") for path in step.writes}
    here = Model(run, "image").here
    assert {path.name for path in made & video} == {"tiny_vision.onnx.data"}
    outside = {path.name for path in made - video if path.parent not in (here, here / "calib")}
    assert outside == {"tiny_vision_image.onnx", "tiny_vision_image_uint8.onnx", "tiny_vision_image.axmodel"}


def test_every_layer_of_the_language_model_is_an_output(run, tiny_dir):
    layers = json.loads((tiny_dir / "config.json").read_text())["num_hidden_layers"]
    names = [path.name for path in language(run).writes]
    assert names == [*(f"qwen2_5_vl_p512_l{n}_together.axmodel" for n in range(layers)), "qwen2_5_vl_post.axmodel"]


@pytest.mark.parametrize("mode", ["video", "image"])
def test_what_a_step_reads_an_earlier_one_writes_or_the_user_gives(run, mode):
    given = {*run.videos, run.config}
    given |= set(Model(run, mode).capture().reads)
    for step in steps(run, mode):
        assert set(step.reads) <= given, (step.name, set(step.reads) - given)
        given |= set(step.writes)


def test_the_saved_layout_is_read_by_the_export(run):
    layout = find_tower("qwen2_5_vl").layout_tensors
    assert {f"{name}.pth" for name in layout} <= {path.name for path in Model(run).export("dense").reads}


def test_a_path_is_never_a_flag(run):
    from pathlib import Path

    assert python("export.py", Path("-x"), "--size")[2:] == ["./-x", "--size"]
