"""`probe_build.py` as a user runs it, with the stand-in: which form works, what it says, what it leaves."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import get_calib
import probe_build
from qwen_vl_axera.compiler.tool import VARIABLE
from qwen_vl_axera.contract import WINDOW_MODES
from qwen_vl_axera.graph.files import load_graph, read_metadata
from qwen_vl_axera.made_from import stale
from qwen_vl_axera.probe.record import read_probe
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
    assert min(step["cosine"] for step in attempt["compared"]["steps"]) > 0.99999
    (selector,) = attempt["build"]["selectors"]
    assert selector["obeyed"] == selector["seen"] > 0
    assert attempt["build"]["cycles"] > 0 and attempt["build"]["subgraphs"] == 1
    assert report["config_file"] == str(ROOT / "config_video.json")
    assert stale(report["made_from"], probe.workdir) is None and "calib/hidden_states.tar" in report["made_from"]
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
    assert [attempt["build"] is not None for attempt in report["attempts"]] == [False, False, True]
    assert "cannot tile MatMul of form grouped" in out  # what the compiler said last, without an end of line


def test_wrong_numbers_are_no_success(probe):
    code, out, _, report = probe(NOISE="2 grouped")
    assert (code, report["form"]) == (0, "folded"), out
    first = report["attempts"][0]
    assert first["error"] is None, first["error"]
    assert min(step["min_token_cosine"] for step in first["compared"]["steps"]) < 0.98


def test_no_form_works(probe):
    code, out, _, report = probe(REFUSE=" ".join(WINDOW_MODES))
    assert (code, report["passed"], report["form"], len(report["attempts"])) == (1, False, None, len(WINDOW_MODES))
    assert out.splitlines()[-1].startswith("no form works")


def test_a_precision_that_was_not_given_is_seen(probe):
    code, out, _, report = probe(**{"8BITS": "MatMul"})
    assert code == 0 and "WARNING   U16" in out
    # Two for each of three sizes of windows, and for all.
    assert report["attempts"][0]["build"]["widths"]["MatMul"] == {"8": 8}


def test_a_recipe_without_effect_stops_and_can_be_accepted(probe, tmp_path):
    recipe = write_recipe(tmp_path, {"op_types": ["MatMul"], "data_type": "U16"})
    code, out, _, report = probe("--config", recipe, **{"8BITS": "MatMul"})
    assert (code, report["passed"], report["form"]) == (1, False, "grouped")
    assert "FAILED    U16 for operators MatMul" in out and "--accept-precision" in out.splitlines()[-2]
    code, *_, report = probe("--config", recipe, "--accept-precision", **{"8BITS": "MatMul"})
    assert (code, report["passed"], report["accepted"]) == (0, True, True)


def write_recipe(directory, *entries):
    """A configuration with these entries behind the vendor's."""
    config = json.loads((ROOT / "config_video.json").read_text())
    config["quant"]["layer_configs"].extend(entries)
    (directory / "mixed.json").write_text(json.dumps(config))
    return directory / "mixed.json"


def test_the_probe_holds_what_a_recipe_names(probe, tmp_path, tiny):
    """Blocks that it names are held; layers that no graph has, and blocks beyond the few, are left out and said."""
    last = tiny.config.vision.depth - 1
    named = {"layer_names": [f"blocks.{last}.mlp.down_proj", "blocks.900.mlp.down_proj"], "data_type": "U16"}
    recipe = write_recipe(tmp_path, {"op_types": ["Gemm"], "data_type": "U8"}, named)
    code, out, err, report = probe("--config", recipe)
    assert code == 0, out + err
    assert report["left_out"] == ["blocks.900.mlp.down_proj"]
    graph = load_graph(probe.workdir / "tiny_vision_probe.onnx").graph
    assert f"blocks.{last}.mlp.down_proj" in {node.name for node in graph.node}
    selectors = report["attempts"][0]["build"]["selectors"]
    assert [entry["obeyed"] for entry in selectors[1:]] == [selectors[1]["seen"], 1]


def test_a_mix_that_works_is_kept_beside_the_vendors(probe, tmp_path):
    recipe = write_recipe(tmp_path, {"op_types": ["Gemm"], "data_type": "U8"})
    code, _, _, report = probe("--config", recipe, "--fallback", ROOT / "config_video.json")
    assert code == 0 and report["reason"] is None
    assert [attempt["recipe"] for attempt in report["attempts"]] == ["given", "fallback"]
    assert Path(report["config_file"]).samefile(recipe)
    assert read_probe(probe.workdir).gemms_by == "operator types"


def test_a_mix_that_breaks_the_model_gives_way_to_the_vendors(probe, tmp_path):
    """A public case: .9995 layer by layer, .0103 from end to end."""
    recipe = write_recipe(tmp_path, {"op_types": ["Gemm"], "data_type": "U8"})
    code, out, _, report = probe("--config", recipe, "--fallback", ROOT / "config_video.json", LIES="mix_breaks")
    assert (code, report["passed"], report["form"]) == (0, True, "grouped")
    assert Path(report["config_file"]).samefile(ROOT / "config_video.json")
    assert "breaks the model" in report["reason"] and f"go on with {report['config_file']}" in out
    assert read_probe(probe.workdir).holds
    assert probe("--config", recipe, "--window-mode", "grouped", LIES="mix_breaks")[0] == 1  # nothing to fall back to


def test_operator_types_that_reach_a_few_are_written_as_names(probe, tmp_path):
    recipe = write_recipe(tmp_path, {"op_types": ["Gemm"], "data_type": "U8"})
    code, out, _, report = probe("--config", recipe, "--fallback", ROOT / "config_video.json", LIES="reach=3")
    assert code == 0, out
    assert [attempt["recipe"] for attempt in report["attempts"]] == ["given", "by names", "fallback"]
    assert report["attempts"][0]["build"]["selectors"][1]["obeyed"] == 3
    chosen = json.loads(Path(report["config_file"]).read_text())["quant"]["layer_configs"][-1]
    whole = load_graph(probe.workdir / "tiny_vision.onnx").graph
    assert chosen["layer_names"] == [node.name for node in whole.node if node.op_type == "Gemm"]
    assert chosen["data_type"] == "U8" and read_probe(probe.workdir).gemms_by == "names"


@pytest.mark.parametrize("lie", ["scaled=2", "scaled=100", "subgraphs=3", "half_axmodel"])
def test_a_compiler_that_lies_is_caught(probe, lie):
    code, _, _, report = probe("--window-mode", "grouped", LIES=lie)
    assert (code, report["passed"], report["form"]) == (1, False, None)


@pytest.mark.parametrize(
    "form",
    ["renamed", "gemm_renamed", "no_quant", "half_json", "schema=new", "extra,unknown,bad_scales", "unfused=Silu"],
)
def test_an_honest_compiler_gets_through_whatever_it_writes(probe, form):
    code, out, _, report = probe(LIES=form)
    assert (code, report["passed"], report["form"]) == (0, True, "grouped"), out
    fusions = report["attempts"][0]["build"]["fusions"]
    if form.startswith("unfused"):
        assert fusions["Silu"]["fused"] == 0 < fusions["RMSNorm"]["fused"]
    elif form == "renamed":
        assert fusions == {} and "not known precision: none of the graph's" in out


def test_words_for_the_compiler_reach_it(probe, tmp_path):
    log = tmp_path / "calls"
    assert probe("--extra=--quant.check", "--extra=1", LOG=str(log))[0] == 0
    (build,) = [call["argv"] for call in map(json.loads, log.read_text().splitlines()) if call["argv"][0] == "build"]
    assert build[-4:] == ["--compiler.npu_perf", "true", "--quant.check", "1"]


def test_no_record_of_precision(probe):
    code, out, _, report = probe(SILENT="1")
    assert (code, report["passed"]) == (0, True)
    assert "not known precision: the build left no quant/quant_axmodel.json" in out


def test_every_form_and_the_fewest_cycles(probe):
    code, _, _, report = probe("--all")
    assert code == 0 and [attempt["form"] for attempt in report["attempts"]] == list(WINDOW_MODES)
    fewest = min(report["attempts"], key=lambda attempt: attempt["build"]["cycles"])
    assert report["form"] == fewest["form"]


def test_only_the_form_asked_for(probe):
    code, _, _, report = probe("--window-mode", "dense", "--json")
    assert code == 0 and [attempt["form"] for attempt in report["attempts"]] == ["dense"]


@pytest.mark.parametrize("switch", [{"KILL": "build"}, {"OMIT": "build"}])
def test_a_build_that_ends_badly_is_told(probe, switch):
    code, out, _, report = probe("--window-mode", "grouped", **switch)
    assert code == 1 and report["attempts"][0]["build"] is None
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
