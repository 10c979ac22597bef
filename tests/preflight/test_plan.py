"""A good state passes; the configuration, the prompt and the tool are checked, too."""

import json
import shutil

import pytest

from qwen_vl_axera.contract import DEMO_CLIP
from qwen_vl_axera.preflight.plan import Plan, Preflight
from tests.conftest import ROOT
from tests.preflight.state import SIZE, STAND_IN


def test_a_good_state_passes(made):
    assert made.bad() == {}
    names = [check.name for check in made.checks()]
    for name in ("checkpoint tensors", "checkpoint index", "graph operators", "graph input", "graph output"):
        assert name in names
    for name in ("graph metadata", "graph weights", "config schema", "config coherence", "archive samples"):
        assert name in names
    for name in ("archive values", "archive diversity", "prompt", "kv cache", "disk", "memory", "compiler"):
        assert name in names


def config_with(state, **changes):
    path = state.workdir / "config.json"
    config = json.loads((ROOT / "config_video.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
    path.write_text(json.dumps(config))
    return path


def test_a_misspelt_field_is_found_before_the_build(state):
    config = config_with(state, quant__input_configs__0__calibration_fromat="Numpy")
    assert "did you mean calibration_format?" in state.bad(config=config)["config"]
    assert "no such file" in state.bad(config=state.workdir / "none.json")["config"]


def test_layer_names_are_looked_up_in_the_graph(state):
    layer = {"layer_name": "blocks.1.mlp.down_proj", "data_type": "U16"}
    assert state.bad(config=config_with(state, quant__layer_configs=[layer])) == {}
    layer["layer_name"] = "blocks.99.mlp.down_proj"
    found = state.bad(config=config_with(state, quant__layer_configs=[layer]))
    assert "blocks.99.mlp.down_proj: not in the graph" in found["config: unknown-layer"]


def test_the_archive_is_the_one_that_the_configuration_names(state):
    config = config_with(state, quant__input_configs__0__calibration_dataset="calib/other.tar")
    assert "other.tar is missing" in state.bad(config=config)["archive"]


@pytest.mark.parametrize(
    ("plan", "name", "words", "remedy"),
    [
        ({"prefill_len": 64}, "prompt", "do not fit the prefill of 64", "PREFILL_LEN=128"),
        (
            {"prefill_len": 32, "last_kv_cache_len": [32, 64]},
            "prompt",
            "do not fit the prefill of 64",
            "PREFILL_LEN=128",
        ),
        ({"kv_cache_len": 127, "prefill_len": 96}, "kv cache", "are left for the answer", "KV_CACHE_LEN=255"),
        ({"kv_cache_len": 50, "prefill_len": 96}, "kv cache", "do not fit 50", "KV_CACHE_LEN=255"),
        ({"kv_cache_len": 400}, "kv cache", "512 tokens do not fit 400", "KV_CACHE_LEN=767"),
        ({"prompt": "描述" * 500}, "prompt", "do not fit the prefill of 512", "PREFILL_LEN="),
    ],
)
def test_prompts_that_do_not_fit(made, plan, name, words, remedy):
    (check,) = [check for check in made.checks(**plan) if check.name == name]
    assert words in check.detail and remedy in check.remedy
    assert check.status == ("warning" if "left" in words else "failed")


def test_the_prompt_is_counted_as_the_tokenizer_does(made):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.checkpoint)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "描述这个视频."}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = len(tokenizer(text)["input_ids"]) - 1 + 4 * 12
    assert made.bad(prefill_len=expected, kv_cache_len=1023) == {}
    assert f"{expected} tokens, 48 of them visual" in made.bad(prefill_len=expected - 1)["prompt"]


def test_without_capture_or_tokenizer(state):
    (state.workdir / "capture.json").unlink()
    assert "not counted" in state.bad()["prompt"]
    shutil.copy(ROOT / "pyproject.toml", state.workdir / "capture.json")
    assert "not readable as JSON" in state.bad()["prompt"]


def test_no_tokenizer(state):
    for path in [*state.checkpoint.glob("*token*"), *state.checkpoint.glob("vocab*")]:
        path.unlink()
    assert "no tokenizer.json" in state.bad()["prompt"]


def test_the_demo_clip_is_no_calibration_for_another_model(state):
    """get_calib.py takes the demo clip when it is told nothing."""

    def samples_from(*sources: str) -> None:
        entry = {"file": "sample_00000.npy", "frames": [0, 1], "timestamps": None, "sha256": "0" * 64}
        samples = [entry | {"source": [source]} for source in sources]
        manifest = {"format": "numpy", "size": list(SIZE), "num_samples": len(samples), "nearly_identical": 0}
        manifest |= {"archive": {"file": "hidden_states.tar", "bytes": 1}, "samples": samples}
        (state.workdir / "calib" / "manifest.json").write_text(json.dumps(manifest))

    samples_from(str(DEMO_CLIP), str(DEMO_CLIP))
    assert "every sample is a frame of the demo clip" in state.bad()["archive origin"]
    samples_from(str(DEMO_CLIP), "holiday.mp4")
    assert state.bad() == {}


def test_the_configuration_is_for_the_chip(made):
    assert "AX620E has NPU1 to NPU2" in made.bad(chip="AX620E")["config: too-many-cores"]


@pytest.mark.parametrize(
    ("tool", "status", "words"),
    [
        (str(STAND_IN), "ok", "version: 0.0-stand-in"),
        ("/none/pulsar2", "failed", "no such command"),
        ("docker:", "failed", "expected docker:IMAGE"),
        ("false", "failed", "does not tell its version"),
    ],
)
def test_the_tool(made, tool, status, words):
    plan = Plan(made.checkpoint, made.workdir, tool=tool)
    (check,) = [check for check in Preflight(plan).run() if check.name == "compiler"]
    assert check.status == status and words in check.detail


def test_without_the_tool_the_rest_is_still_checked(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = list(Preflight(Plan(made.checkpoint, made.workdir)).run())
    assert checks[-1].name == "compiler" and checks[-1].status == "warning"
    assert not [check for check in checks if check.status == "failed"]
