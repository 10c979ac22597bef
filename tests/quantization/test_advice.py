"""advice.py and record.py: the line before a build, and files that are none of a preview's."""

import json

import pytest

from qwen_vl_axera.quantization import advice
from tests.conftest import run_main

FIGURES = {
    "mac8": None,
    "border_bytes": None,
    "mean_token_cosine": 0.998,
    "min_token_cosine": 0.99,
    "centred_cosine": 0.997,
    "relative_error": 0.05,
    "clipped": {"share": 0, "worst": {}},
    "steps": [],
    "blocks": [],
    "notes": [],
}
FLOOR = FIGURES | {"name": "weights alone in S8", "config": None}
MIXED = FIGURES | {
    "name": "mixed",
    "config": [],
    "mac8": 0.982,
    "relative_time": [0.35, 0.6],
    "mean_token_cosine": 0.997,
    "centred_cosine": 0.9945,
}
CENSUS = {"massive_tokens": [], "outlier_channels": [], "spikes": [], "softmax": [], "findings": []}
REPORT = {
    "assumptions": [],
    "graph": "x_vision.onnx",
    "calibration": {},
    "evaluation": {},
    "floor": FLOOR,
    "settings": [MIXED],
    "census": CENSUS,
    "notes": [],
}


def write(workdir, report) -> None:
    (workdir / "quantization.json").write_text(json.dumps(report))
    (workdir / "config_video_mixed.json").write_text("{}")


def test_what_the_mix_would_buy(tmp_path, capsys):
    write(tmp_path, REPORT)
    code, out, _ = run_main(advice.main, capsys, "--workdir", tmp_path)
    assert code == 0
    assert "98.2% of the multiply-accumulates" in out
    assert "0.35 to 0.60 of the time, for 0.0025" in out


@pytest.mark.parametrize("report", [None, REPORT | {"settings": []}])
def test_silence_without_a_search(tmp_path, capsys, report):
    if report:
        write(tmp_path, report)
    assert run_main(advice.main, capsys, "--workdir", tmp_path) == (0, "", "")


@pytest.mark.parametrize(
    "report",
    [
        [],
        {},
        REPORT | {"floor": {}},
        REPORT | {"settings": [MIXED | {"mac8": 2}]},
        REPORT | {"settings": [MIXED | {"mean_token_cosine": None}]},
        REPORT | {"more": 1},
    ],
)
def test_a_foreign_file_is_a_warning_and_in_no_builds_way(tmp_path, capsys, report):
    write(tmp_path, report)
    code, out, err = run_main(advice.main, capsys, "--workdir", tmp_path)
    assert (code, out, len(err.splitlines())) == (0, "", 1)
    assert "run preview_quantization.py again" in err
