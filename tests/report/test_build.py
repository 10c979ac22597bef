"""The chapter on the build: the probe's verdict, the precision used and the compiled model, as the records say."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import probe_build
from qwen_vl_axera.compiled import axmodel
from qwen_vl_axera.compiler import __main__ as compiler
from qwen_vl_axera.compiler.tool import VARIABLE
from qwen_vl_axera.graph.files import load_graph, write_graph
from tests.conftest import ROOT
from tests.report.pages import ESCAPED, HOSTILE, LIMIT, SPOOFED, change, report

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"
CONFIG = ROOT / "config_video.json"


@pytest.fixture(scope="module")
def built(made, tiny_dir, tmp_path_factory) -> Path:
    """A work directory after a probe whose first form is wrong and second does not compile, and a whole build."""
    workdir = shutil.copytree(made, tmp_path_factory.mktemp("built") / "work")
    config = shutil.copy(CONFIG, workdir)  # beside its records: copies of the directory find it
    place = ["--workdir", str(workdir)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(STAND_IN))
        patch.setenv("STAND_IN_COMPUTE", sys.executable)
        patch.setenv("STAND_IN_NOISE", "2 grouped")
        patch.setenv("STAND_IN_REFUSE", "folded")
        assert probe_build.main([str(tiny_dir), *place, "--config", str(config)]) == 0
        patch.setenv("STAND_IN_NOISE", "0")
        build = ["build", str(workdir / "tiny_vision.onnx"), "--config", str(config), *place]
        assert compiler.main([*build, "--output-dir", str(workdir / "build-output")]) == 0
        model = workdir / "build-output" / "tiny_vision.axmodel"
        assert axmodel.main([str(model), str(workdir / "tiny_vision_uint8.onnx"), "--config", str(config), *place]) == 0
    return workdir


@pytest.fixture
def workdir(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "work")


def test_the_probes_verdict_form_by_form(built, tiny):
    page, worst = report(tiny, built)
    probe = json.loads((built / "probe.json").read_bytes())
    rows = {row[0].split()[0]: row for row in page.rows if len(row) == 8 and row[1] == "given"}
    assert list(rows) == ["grouped", "folded", "unrolled"]
    status = {name: [cell.split()[-1] for cell in row[2:4]] for name, row in rows.items()}
    assert status == {"grouped": ["ok", "failed"], "folded": ["failed", "–"], "unrolled": ["ok", "ok"]}
    assert "chosen" in rows["unrolled"][0] and "chosen" not in rows["grouped"][0]
    lowest = min(step["min_token_cosine"] for step in probe["attempts"][0]["compared"]["steps"])
    assert rows["grouped"][4] == f"{lowest:.5f}"
    assert rows["unrolled"][7] == f"{probe['attempts'][2]['build']['cycles']:,}" and rows["folded"][7] == "–"
    assert "cannot tile MatMul of form folded" in page.text and "worst token ≥ 0.98" in page.text
    # The probe chose another form than the one that is exported here.
    assert worst["probe"] == "warning" and "exported as grouped, the probe chose unrolled" in page.text


def test_the_compiled_model_step_by_step(built, tiny):
    page, worst = report(tiny, built)
    found = json.loads((built / "axmodel_fidelity.json").read_bytes())
    assert worst["axmodel"] == "ok"
    for step in found["graphs"][0]["steps"]:
        assert f"{step['max_abs']:.2e}" in page.text
    assert "tiny_vision.axmodel" in page.text
    assert "cosine ≥ 0.98, worst token ≥ 0.98" in page.text and found["graphs"][0]["source"] in page.text


def test_what_the_build_says(workdir, tiny):
    page, worst = report(tiny, workdir)
    build = json.loads((workdir / "axmodel_fidelity.json").read_bytes())["build"]
    (selector,) = build["selectors"]
    assert page.text.count(f"U16 for {selector['selector']}") == 2  # of the build, of the probe
    assert f"{build['kept']} of {build['nodes']} nodes kept their names" in page.text
    assert "precision" not in worst and "subgraphs" in page.text
    probe = json.loads((workdir / "probe.json").read_bytes())["attempts"][2]["build"]
    counts = [f"16: {of['widths']['Softmax']['16']}" for of in (build, probe)]
    assert [row[1] for row in page.rows if row[0] == "Softmax" and len(row) == 2] == counts

    # Counts decide: nothing beside them is stored.
    def obey(count):
        return lambda value: value["build"]["selectors"][0].update(obeyed=count)

    change(workdir / "axmodel_fidelity.json", obey(1))
    page, worst = report(tiny, workdir)
    assert worst["precision"] == "warning" and f"1 of {selector['seen']} nodes have it" in page.text
    change(workdir / "axmodel_fidelity.json", obey(0))
    page, worst = report(tiny, workdir)
    assert worst["precision"] == "failed" and "✗ failed" in page.text.replace("Failed", "failed")
    change(workdir / "axmodel_fidelity.json", lambda value: value.update(accepted=True))
    assert report(tiny, workdir)[1]["precision"] == "warning"
    change(workdir / "axmodel_fidelity.json", lambda value: value.pop("build"))
    page, worst = report(tiny, workdir)
    assert "precision" not in worst and "The probe" in page.text and "The whole build" not in page.text

    def ignored(value):
        value["attempts"][2]["build"]["selectors"][0].update(obeyed=0)  # of the form that was chosen

    change(workdir / "probe.json", ignored)
    assert report(tiny, workdir)[1]["precision"] == "failed"


def test_more_than_one_subgraph_is_seen(workdir, tiny):
    finding = {"part": "subgraphs", "status": "failed", "detail": "19 subgraphs"}
    change(workdir / "axmodel_fidelity.json", lambda value: value["build"]["findings"].append(finding))
    page, worst = report(tiny, workdir)
    assert worst["precision"] == "failed" and "The build: subgraphs: 19 subgraphs" in page.text


def test_no_form_works(workdir, tiny):
    def spoil(value):
        value.update(passed=False, form=None, whole=None)
        value["attempts"][2].update(build=None, compared=None, error="out of memory")

    change(workdir / "probe.json", spoil)
    page, worst = report(tiny, workdir)
    assert worst["probe"] == "failed" and "No form works" in page.text and "out of memory" in page.text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["attempts"][2]["compared"]["steps"][0].update(min_token_cosine=0.9),
        lambda value: value["attempts"][2]["compared"]["steps"][0].update(token_error=1.0),
        lambda value: value["attempts"][2]["compared"].update(steps=[]),
        lambda value: value["attempts"][2].update(compared=None),
        lambda value: value.update(passed=False),
    ],
)
def test_a_probe_that_misses_a_limit_is_seen_whatever_the_flags_say(workdir, tiny, spoil):
    change(workdir / "probe.json", spoil)
    page, worst = report(tiny, workdir)
    assert worst["probe"] == "failed" and "✗ Failed" in page.text


def test_the_recipe_to_go_on_with_is_said(workdir, tiny):
    def fell_back(value):
        value["reason"] = "mixed.json breaks the model"

    change(workdir / "probe.json", fell_back)
    page, worst = report(tiny, workdir)
    assert worst["probe"] == "warning" and "mixed.json breaks the model" in page.text


def anew(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("part", "spoil", "words"),
    [
        ("probe", lambda workdir: anew(workdir / "calib" / "hidden_states.tar"), "hidden_states.tar has changed"),
        ("probe", lambda workdir: anew(workdir / "tiny_vision.onnx.data"), "tiny_vision.onnx.data has changed"),
        ("probe", lambda workdir: change(workdir / "probe.json", of_nothing), "does not say what it was made from"),
        ("probe", lambda workdir: (workdir / "probe.json").write_text("{"), "not readable as JSON"),
        ("axmodel", lambda workdir: anew(workdir / "tiny_vision_uint8.onnx"), "tiny_vision_uint8.onnx has changed"),
        ("axmodel", lambda workdir: anew(workdir / "pixels.npy"), "pixels.npy has changed"),
        ("axmodel", lambda workdir: (workdir / MODEL).unlink(), "tiny_vision.axmodel is missing"),
        ("axmodel", lambda workdir: (workdir / "axmodel_fidelity.json").write_text("[]"), "again"),
    ],
)
def test_what_is_of_something_else_or_damaged_is_said_and_not_shown(workdir, tiny, part, spoil, words):
    spoil(workdir)
    page, worst = report(tiny, workdir)
    assert worst[part] == "warning" and words in page.text
    assert {"probe": "Lowest token", "axmodel": "tiny_vision.axmodel"}[part] not in page.text.replace(words, "")


MODEL = "build-output/tiny_vision.axmodel"


def of_nothing(value):
    value["made_from"] = {}


def test_a_graph_exported_once_more_is_no_other(workdir, tiny):
    """As in the chain: after the probe the graph is exported in the form that it chose."""
    graph = load_graph(workdir / "tiny_vision.onnx")
    graph.doc_string = "anew"
    write_graph(graph, workdir / "tiny_vision.onnx")
    page, _ = report(tiny, workdir)
    assert "probe.json is about other files" not in page.text and "Lowest token" in page.text
    assert "fidelity.json is about other files: tiny_vision.onnx has changed" in page.text  # that was another graph


@pytest.mark.parametrize(
    ("gone", "chapter"), [(["probe.json"], True), (["axmodel_fidelity.json", "probe.json"], False)]
)
def test_without_records_there_is_no_chapter(workdir, tiny, gone, chapter):
    for name in gone:
        (workdir / name).unlink()
    page, worst = report(tiny, workdir)
    ids = {section.get("id") for section in page.all("section")}
    assert ("build" in ids) is chapter and "probe" not in ids and "probe" not in worst
    assert ("The build" in page.text) is chapter


def test_hostile_records_stay_text_and_the_page_small(workdir, tiny):
    def spoil_probe(value):
        long = value["attempts"][1] | {"error": HOSTILE * 200_000}
        value["attempts"] = [long, *value["attempts"] * 300]
        value["versions"]["pulsar2"] = SPOOFED * 100
        value["attempts"][0]["seconds"] = 1e308

    def spoil_model(value):
        selector = value["build"]["selectors"][0]
        long = [f"{number} {HOSTILE}" for number in range(2000)]
        value["build"]["selectors"] = [selector | {"selector": SPOOFED, "missing": long, "others": long}] * 100
        value["build"]["findings"] = [{"part": SPOOFED, "status": "failed", "detail": HOSTILE * 1000}] * 1000
        value["build"]["widths"] = dict.fromkeys(long[:200], dict.fromkeys(long[:30], 3))

    change(workdir / "probe.json", spoil_probe)
    change(workdir / "axmodel_fidelity.json", spoil_model)
    page, _ = report(tiny, workdir)
    assert HOSTILE in page.text and ESCAPED in page.text and "more characters" in page.text
    assert sum(row[0].startswith("unrolled") for row in page.rows) < 20
    assert not any(letter in page.text for letter in "\u202e\x1b\x00")
    assert not any(tag == "script" for tag, _ in page.elements)
    assert len((workdir / "report.html").read_bytes()) < LIMIT
