"""`export_video.sh` in its other forms: another form of windows takes over, chunked prefill, what is refused before."""

import json
import shutil
import sys

import pytest

from qwen_vl_axera.graph.files import load_graph, read_metadata
from tests.chain.test_export_video import STAND_IN, calls, export_video
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def taken_over(tiny_dir, frames_dir, tmp_path_factory):
    """A whole run in chunks, for pictures, too, with a compiler that takes no windows of four axes."""
    base = tmp_path_factory.mktemp("forms")
    picture = shutil.copy(frames_dir / "003.png", base / "photo.png")
    env = {"WORKDIR": base / "work", "OUT": base / "out", "SIZE": "140 252", "PULSAR2": STAND_IN / "pulsar2"}
    env |= {"STAND_IN_LOG": base / "log.jsonl", "STAND_IN_COMPUTE": sys.executable, "STAND_IN_REFUSE": "grouped"}
    env |= {"IMAGE_SIZE": "84 84"}
    env |= {"LAST_KV_CACHE_LEN": "chunked", "WEIGHT_TYPE": "s4", "LLM_BUILD_FLAGS": "--check_level '1'"}
    inputs = tiny_dir, ROOT / "assets" / "demo.mp4", picture
    return base, env, export_video(*inputs, env=env), inputs


def test_the_form_that_compiles_takes_over(taken_over):
    base, _, process, _ = taken_over
    assert process.returncode == 0, process.stdout + process.stderr
    work = base / "work"
    assert json.loads((work / "probe.json").read_text())["form"] == "folded"
    assert process.stdout.count("== 2 PyTorch -> ONNX\n") == 2  # as grouped first, then as the probe says
    assert json.loads((work / "fidelity.json").read_text())["passed"]
    checked = json.loads((work / "axmodel_fidelity.json").read_text())
    (selector,) = checked["build"]["selectors"]
    assert checked["passed"] and selector["obeyed"] == selector["seen"] > 0
    assert min(step["cosine"] for step in checked["graphs"][0]["steps"]) > 0.99999


def test_the_picture_model_is_made_beside_it(taken_over):
    base, _, _, inputs = taken_over
    pictures = base / "work" / "pictures"
    capture = json.loads((pictures / "capture.json").read_text())
    assert (capture["size"], capture["grid_thw"], capture["source"]) == ([84, 84], [1, 6, 6], [str(inputs[-1])])
    assert read_metadata(load_graph(base / "work" / "tiny_vision_image.onnx"))["window_mode"] == "folded"
    for name in ("fidelity.json", "preflight.json", "axmodel_fidelity.json"):
        assert json.loads((pictures / name).read_text())["passed"], name
    calibrated = json.loads((pictures / "calib" / "manifest.json").read_text())["samples"]
    assert [sample["source"] for sample in calibrated] == [[str(inputs[-1])]]
    page = (pictures / "report.html").read_text()
    assert "tiny_vision_image_uint8.onnx" in page and "is missing" not in page
    manifest = json.loads((base / "out" / "manifest.json").read_text())
    files = {entry["path"] for entry in manifest["files"]}
    assert manifest["complete"] and {"tiny_vision_image.axmodel", "image84x84/config.json"} <= files
    assert {"tiny_vision.axmodel", "video140x252/config.json"} <= files


def test_chunked_prefill_and_flags_arrive(taken_over, tiny):
    base, *_ = taken_over
    (language,) = [call for call in calls(base) if call[:1] == ["llm_build"]]
    chunks = [language[place + 1] for place, word in enumerate(language) if word == "--last_kv_cache_len"]
    assert chunks == ["128", "256", "384", "512", "640", "768", "896"]
    assert language[language.index("--prefill_len") + 1] == "128"
    assert language[language.index("--weight_type") + 1] == "s4" and language[-2:] == ["--check_level", "1"]
    layers = list((base / "out").glob("qwen2_5_vl_p128_l*_together.axmodel"))
    assert len(layers) == tiny.config.text.num_hidden_layers


def test_resumed_it_does_nothing_again(taken_over):
    base, env, _, inputs = taken_over
    before = len(calls(base))
    process = export_video(*inputs, "--resume", env=env)
    assert process.returncode == 0, process.stderr
    assert [call for call in calls(base)[before:] if call[:1] != ["version"]] == []
    assert process.stdout.count("== 2 PyTorch -> ONNX\n") == 1


def test_the_compilers_environment_counts(taken_over):
    """It changes what is built, and stands in no command line."""
    base, env, _, inputs = taken_over
    before = len(calls(base))
    env = env | {"FLOAT_MATMUL_USE_CONV_EU": "1", "IMAGE_SIZE": ""}
    process = export_video(*inputs, "--resume", env=env)
    assert process.returncode == 0, process.stderr
    assert "npu-language: variable FLOAT_MATMUL_USE_CONV_EU added" in process.stderr
    assert [call[0] for call in calls(base)[before:] if call[0] != "version"] == ["llm_build", "build"]


def test_a_probe_that_fails_stops_before_the_whole_build(taken_over):
    base, env, _, inputs = taken_over
    before = len(calls(base))
    env = env | {"STAND_IN_REFUSE": "grouped folded unrolled dense", "STAND_IN_VERSION": "9.9", "IMAGE_SIZE": ""}
    process = export_video(*inputs, "--resume", env=env)
    assert process.returncode == 1
    assert "no form works" in process.stdout and "cannot tile MatMul of form dense" in process.stdout
    assert "llm_build" not in {call[0] for call in calls(base)[before:]}
