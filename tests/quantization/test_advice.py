"""advice.py: the line before a build."""

import json

import pytest

from qwen_vl_axera.quantization import advice
from tests.conftest import run_main

FLOOR = {"mean_token_cosine": 0.998, "centred_cosine": 0.997}
MIXED = {
    "name": "mixed",
    "mac8": 0.982,
    "relative_time": [0.35, 0.6],
    "mean_token_cosine": 0.997,
    "centred_cosine": 0.9945,
}


def write(workdir, report) -> None:
    (workdir / "quantization.json").write_text(json.dumps(report))
    (workdir / "config_video_mixed.json").write_text("{}")


def test_what_the_mix_would_buy(tmp_path, capsys):
    write(tmp_path, {"floor": FLOOR, "settings": [MIXED]})
    code, out, _ = run_main(advice.main, capsys, "--workdir", tmp_path)
    assert code == 0
    assert "98.2% of the products" in out
    assert "0.35 to 0.60 of the time, for 0.0025" in out


@pytest.mark.parametrize("report", [None, {"floor": FLOOR, "settings": []}])
def test_silence_without_a_search(tmp_path, capsys, report):
    if report:
        write(tmp_path, report)
    assert run_main(advice.main, capsys, "--workdir", tmp_path) == (0, "", "")


@pytest.mark.parametrize("report", [[], {}, {"settings": [MIXED]}, {"floor": FLOOR, "settings": [{"name": "mixed"}]}])
def test_a_foreign_file_is_bad_input(tmp_path, capsys, report):
    write(tmp_path, report)
    code, _, err = run_main(advice.main, capsys, "--workdir", tmp_path)
    assert code == 2
    assert "run it again" in err
