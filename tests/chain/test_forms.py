"""`export_video.sh` in its other forms: another form of windows takes over, chunked prefill, what is refused before."""

import json
import sys

import pytest

from tests.chain.test_export_video import STAND_IN, calls, export_video


@pytest.fixture(scope="module")
def taken_over(tiny_dir, frames_dir, tmp_path_factory):
    """A whole run in chunks, with a compiler that takes no windows of four axes."""
    base = tmp_path_factory.mktemp("forms")
    env = {"WORKDIR": base / "work", "OUT": base / "out", "SIZE": "140 252", "PULSAR2": STAND_IN / "pulsar2"}
    env |= {"STAND_IN_LOG": base / "log.jsonl", "STAND_IN_COMPUTE": sys.executable, "STAND_IN_REFUSE": "grouped"}
    env |= {"LAST_KV_CACHE_LEN": "chunked", "WEIGHT_TYPE": "s4", "LLM_BUILD_FLAGS": "--check_level '1'"}
    return base, env, export_video(tiny_dir, frames_dir, env=env)


def test_the_form_that_compiles_takes_over(taken_over):
    base, _, process = taken_over
    assert process.returncode == 0, process.stdout + process.stderr
    work = base / "work"
    assert json.loads((work / "probe.json").read_text())["form"] == "folded"
    assert process.stdout.count("== 2 PyTorch -> ONNX") == 2  # as grouped first, then as the probe says
    assert json.loads((work / "fidelity.json").read_text())["passed"]
    checked = json.loads((work / "axmodel_fidelity.json").read_text())
    assert checked["passed"] and checked["precision"]["wishes"][0]["status"] == "ok"
    assert min(step["cosine"] for step in checked["graphs"][0]["steps"]) > 0.99999


def test_chunked_prefill_and_flags_arrive(taken_over, tiny):
    base, _, _ = taken_over
    (language,) = [call for call in calls(base) if call[:1] == ["llm_build"]]
    chunks = [language[place + 1] for place, word in enumerate(language) if word == "--last_kv_cache_len"]
    assert chunks == ["128", "256", "384", "512", "640", "768", "896"]
    assert language[language.index("--prefill_len") + 1] == "128"
    assert language[language.index("--weight_type") + 1] == "s4" and language[-2:] == ["--check_level", "1"]
    layers = list((base / "out").glob("qwen2_5_vl_p128_l*_together.axmodel"))
    assert len(layers) == tiny.config.text.num_hidden_layers


def test_resumed_it_does_nothing_again(taken_over, tiny_dir, frames_dir):
    base, env, _ = taken_over
    before = len(calls(base))
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 0, process.stderr
    assert [call for call in calls(base)[before:] if call[:1] != ["version"]] == []
    assert process.stdout.count("== 2 PyTorch -> ONNX") == 1


def test_a_probe_that_fails_stops_before_the_whole_build(taken_over, tiny_dir, frames_dir):
    base, env, _ = taken_over
    before = len(calls(base))
    env = env | {"STAND_IN_REFUSE": "grouped folded unrolled dense", "STAND_IN_VERSION": "9.9"}
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 1
    assert "no form works" in process.stdout and "cannot tile MatMul of form dense" in process.stdout
    assert "llm_build" not in {call[0] for call in calls(base)[before:]}
