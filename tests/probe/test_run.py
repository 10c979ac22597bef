"""`probe_build.py` as a user runs it, with the stand-in: which form works, what it says, what it leaves."""

import json
import os
import shutil
import sys

import pytest

import get_calib
import probe_build
from qwen_vl_axera.compiler.tool import VARIABLE
from qwen_vl_axera.contract import WINDOW_MODES
from qwen_vl_axera.graph.files import load_graph, read_metadata
from tests.conftest import ROOT, run_main
from tests.talking import capture_and_export

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("STAND_IN_") or name == VARIABLE:
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def calibrated(tiny_dir, frames_dir, tmp_path_factory):
    """A work directory with everything that the compiler takes."""
    workdir = tmp_path_factory.mktemp("calibrated")
    capture_and_export(tiny_dir, workdir, frames_dir, (140, 252))
    assert get_calib.main(["--inputs", str(frames_dir), "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture
def probe(tiny_dir, calibrated, tmp_path, monkeypatch, capsys):
    """Runs the script over a copy of it: exit code, stdout, stderr, probe.json."""
    workdir = shutil.copytree(calibrated, tmp_path / "work")
    monkeypatch.setenv(VARIABLE, str(STAND_IN))
    monkeypatch.setenv("STAND_IN_COMPUTE", sys.executable)

    def run(*flags, **switches):
        for name, value in switches.items():
            monkeypatch.setenv(f"STAND_IN_{name}", value)
        code, out, err = run_main(probe_build.main, capsys, tiny_dir, "--workdir", workdir, *flags)
        path = workdir / "probe.json"
        return code, out, err, json.loads(path.read_text()) if path.is_file() else None

    run.workdir = workdir
    return run


def test_the_first_form_works(probe):
    code, out, err, report = probe()
    assert code == 0, err
    assert (report["passed"], report["form"]) == (True, "grouped")
    (attempt,) = report["attempts"]
    assert attempt["works"] and min(step["cosine"] for step in attempt["steps"]) > 0.99999
    assert attempt["precision"]["wishes"][0]["status"] == "ok"
    assert attempt["cycles"] == 1000 * attempt["nodes"]
    assert report["whole"]["seconds"] == pytest.approx(
        attempt["seconds"] * report["whole"]["nodes"] / attempt["nodes"], abs=0.1
    )
    assert "0.0-stand-in" in report["versions"]["pulsar2"] and report["config"]["npu_mode"] == "NPU3"
    assert "build the whole with --window-mode grouped" in out
    graph = probe.workdir / "tiny_vision_probe.onnx"
    assert read_metadata(load_graph(graph))["probe"] is True


def test_another_form_takes_over(probe):
    code, out, _, report = probe(REFUSE="grouped folded")
    assert (code, report["form"]) == (0, "unrolled")
    assert [attempt["works"] for attempt in report["attempts"]] == [False, False, True]
    assert "cannot tile MatMul of form grouped" in out  # what the compiler said last, without an end of line


def test_wrong_numbers_are_no_success(probe):
    code, out, _, report = probe(NOISE="2 grouped")
    assert (code, report["form"]) == (0, "folded"), out
    first = report["attempts"][0]
    assert first["error"] is None, first["error"]
    assert first["compiled"] and not first["works"]
    assert min(step["min_token_cosine"] for step in first["steps"]) < 0.98


def test_no_form_works(probe):
    code, out, _, report = probe(REFUSE=" ".join(WINDOW_MODES))
    assert (code, report["passed"], report["form"], len(report["attempts"])) == (1, False, None, len(WINDOW_MODES))
    assert out.splitlines()[-1].startswith("no form works")


def test_a_wish_without_effect_stops(probe, tmp_path):
    config = json.loads((ROOT / "config_video.json").read_text())
    config["quant"]["layer_configs"].append({"op_types": ["RMSNormalization"], "data_type": "U16"})
    (tmp_path / "mixed.json").write_text(json.dumps(config))
    code, out, _, report = probe("--config", tmp_path / "mixed.json")
    assert (code, report["passed"], report["form"]) == (1, False, "grouped")
    assert "operators RMSNormalization: matched nothing" in out


def test_a_precision_that_was_not_given_is_seen(probe):
    code, out, _, report = probe(**{"8BITS": "MatMul"})
    assert code == 0 and "WARNING U16" in out
    assert report["attempts"][0]["precision"]["bits"]["MatMul"] == {
        "8": 8
    }  # two for each of three sizes of windows, and for all


def test_no_record_of_precision(probe):
    code, out, _, report = probe(SILENT="1")
    assert (code, report["passed"]) == (0, True)
    assert "precision: not known" in out


def test_every_form_and_the_fewest_cycles(probe):
    code, _, _, report = probe("--all")
    assert code == 0 and [attempt["form"] for attempt in report["attempts"]] == list(WINDOW_MODES)
    fewest = min(report["attempts"], key=lambda attempt: attempt["cycles"])
    assert report["form"] == fewest["form"]


def test_only_the_form_asked_for(probe):
    code, _, _, report = probe("--window-mode", "dense", "--json")
    assert code == 0 and [attempt["form"] for attempt in report["attempts"]] == ["dense"]


@pytest.mark.parametrize("switch", [{"KILL": "build"}, {"OMIT": "build"}])
def test_a_build_that_ends_badly_is_told(probe, switch):
    code, out, _, report = probe("--window-mode", "grouped", **switch)
    assert code == 1 and not report["attempts"][0]["compiled"]
    assert ("SIGKILL" if "KILL" in switch else "files were not written") in out


def test_the_weights_are_those_of_the_export(probe):
    (probe.workdir / "tiny_vision.onnx.data").write_bytes(b"short")
    code, _, err, report = probe()
    assert (code, report, len(err.splitlines())) == (2, None, 1)
    assert "expected the" in err and "run it again" in err


def test_without_a_compiler(probe, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err, _ = probe()
    assert code == 2 and "PULSAR2" in err
