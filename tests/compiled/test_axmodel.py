"""The compiled model's check: without a compiler, and how strict it is."""

import json
from functools import partial

import pytest

from qwen_vl_axera.compiled import axmodel
from qwen_vl_axera.compiled.axmodel import limits
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
    (workdir / "quantization.json").write_text(json.dumps(REPORT | {"settings": [entry]}))


@pytest.mark.parametrize(
    ("mean", "lowest", "expected"),
    [(0.9995, 0.995, (0.9895, 0.985)), (0.98, 0.95, (0.96, 0.90))],
    ids=["a small loss may grow by 0.01", "a larger one may double"],
)
def test_a_preview_of_the_configuration_sets_the_limits(tmp_path, mean, lowest, expected):
    preview(tmp_path, mean, lowest)
    found = limits(tmp_path, CONFIG)
    assert tuple(found) == tuple(AXMODEL_THRESHOLDS)
    assert tuple(found.values()) == pytest.approx(expected)
    assert limits(tmp_path / "pictures", CONFIG) == found


def test_otherwise_the_manuals_limit_holds(tmp_path):
    assert limits(tmp_path, CONFIG) == AXMODEL_THRESHOLDS  # no preview
    preview(tmp_path, 0.9, 0.5, layer_configs=[])
    assert limits(tmp_path, CONFIG) == AXMODEL_THRESHOLDS  # of another configuration
    assert limits(tmp_path, None) == AXMODEL_THRESHOLDS
    (tmp_path / "quantization.json").write_text('{"settings": [3]}')
    with pytest.raises(InputError, match=r"quantization\.json"):
        limits(tmp_path, CONFIG)
