"""The compiled model's check: without a compiler, and how strict it is."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest

from qwen_vl_axera.compiled import axmodel
from qwen_vl_axera.compiled.axmodel import limits, measure, with_error
from qwen_vl_axera.compiled.record import CompiledModel
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import AXMODEL_THRESHOLDS
from tests.conftest import ROOT, run_main
from tests.quantization.test_advice import FIGURES, REPORT

run = partial(run_main, axmodel.main)
CONFIG = ROOT / "config_video.json"


def test_without_the_compiler_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PULSAR2", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = run(capsys, "x.axmodel", "x.onnx", "--workdir", tmp_path)
    assert code == 2
    assert errors == (
        "error: no pulsar2 on PATH, and PULSAR2 is not set: the simulator is the compiler's; "
        "set PULSAR2 to a command or docker:IMAGE\n"
    )


def preview(workdir, mean, lowest, layer_configs=None):
    """A quantization.json with one setting: the configuration's own, unless another is given."""
    own = json.loads(CONFIG.read_text())["quant"]["layer_configs"]
    figures = FIGURES | {"mean_token_cosine": mean, "min_token_cosine": lowest}
    entry = figures | {"name": "vendor", "config": own if layer_configs is None else layer_configs}
    graph = workdir / REPORT["graph"]
    graph.write_bytes(b"graph")
    about = {graph.name: hashlib.sha256(b"graph").hexdigest()}
    (workdir / "quantization.json").write_text(json.dumps(REPORT | {"settings": [entry], "made_from": about}))


@pytest.mark.parametrize(
    ("mean", "lowest", "expected"),
    [(0.9995, 0.995, (0.9895, 0.985)), (0.98, 0.95, (0.96, 0.90))],
    ids=["a small loss may grow by 0.01", "a larger one may double"],
)
def test_a_preview_of_the_configuration_sets_the_limits(tmp_path, mean, lowest, expected):
    preview(tmp_path, mean, lowest)
    found, source = limits(tmp_path, CONFIG)
    assert (found["cosine"], found["min_token_cosine"]) == pytest.approx(expected)
    assert "as the preview predicts for config_video.json" in source
    assert limits(tmp_path / "pictures", CONFIG) == (found, source)


def test_otherwise_the_manuals_limit_holds(tmp_path):
    manual = with_error(AXMODEL_THRESHOLDS)
    assert limits(tmp_path, CONFIG)[0] == manual  # no preview
    preview(tmp_path, 0.9, 0.5, layer_configs=[])
    assert limits(tmp_path, CONFIG)[0] == manual  # of another configuration
    assert limits(tmp_path, None)[0] == manual
    preview(tmp_path, 0.9, 0.5)
    assert limits(tmp_path, CONFIG)[0] != manual
    (tmp_path / REPORT["graph"]).write_bytes(b"another graph")  # exported since
    assert limits(tmp_path, CONFIG)[0] == manual
    (tmp_path / "quantization.json").write_text('{"settings": [3]}')
    with pytest.raises(InputError, match=r"quantization\.json"):
        limits(tmp_path, CONFIG)


def judged(tokens, cosines=AXMODEL_THRESHOLDS):
    """Whether tokens pass in the place of `expected()`."""
    return CompiledModel("m.axmodel", with_error(cosines), "a test", [measure(expected(), tokens)]).holds


def expected():
    return np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32)


def test_noise_of_the_size_that_the_cosine_allows_passes():
    noise = np.random.default_rng(1).standard_normal((12, 64)).astype(np.float32)
    assert judged(expected()) and judged(expected() + 0.12 * noise)
    assert not judged(expected() + 0.4 * noise)


@pytest.mark.parametrize("factor", [2, 100, 1.3, 0.5, 0.0, -1])
def test_an_output_of_another_scale_is_caught(factor):
    """A cosine does not see it."""
    assert not judged(expected() * np.float32(factor))
    loose = {"cosine": 0.5, "min_token_cosine": 0.3}  # where a preview predicts much loss
    assert judged(expected() * np.float32(factor), loose) is (factor in (1.3, 0.5))


def test_one_token_of_another_scale_is_caught():
    tokens = expected()
    tokens[3] *= 2
    assert not judged(tokens)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_values_that_are_no_numbers_are_caught(value):
    tokens = expected()
    tokens[0, 0] = value
    assert not judged(tokens)
