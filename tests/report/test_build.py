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
from tests.conftest import ROOT
from tests.report.pages import ESCAPED, HOSTILE, LIMIT, SPOOFED, change, report, touch

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"
CONFIG = ROOT / "config_video.json"


@pytest.fixture(scope="module")
def built(made, tiny_dir, tmp_path_factory) -> Path:
    """A work directory after a probe whose first form is wrong and second does not compile, and a whole build."""
    workdir = shutil.copytree(made, tmp_path_factory.mktemp("built") / "work")
    place = ["--workdir", str(workdir)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(STAND_IN))
        patch.setenv("STAND_IN_COMPUTE", sys.executable)
        patch.setenv("STAND_IN_NOISE", "2 grouped")
        patch.setenv("STAND_IN_REFUSE", "folded")
        assert probe_build.main([str(tiny_dir), *place, "--config", str(CONFIG)]) == 0
        patch.setenv("STAND_IN_NOISE", "0")
        build = ["build", str(workdir / "tiny_vision.onnx"), "--config", str(CONFIG), *place]
        assert compiler.main([*build, "--output-dir", str(workdir / "build-output")]) == 0
        model = workdir / "build-output" / "tiny_vision.axmodel"
        assert axmodel.main([str(model), str(workdir / "tiny_vision_uint8.onnx"), "--config", str(CONFIG), *place]) == 0
    return workdir


@pytest.fixture
def workdir(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "work")


def test_the_probes_verdict_form_by_form(built, tiny):
    page, worst = report(tiny, built)
    probe = json.loads((built / "probe.json").read_bytes())
    rows = {row[0].split()[0]: row for row in page.rows if len(row) == 8 and row[0][0].isalpha()}
    assert list(rows) == ["grouped", "folded", "unrolled"]
    status = {name: [cell.split()[-1] for cell in row[1:3]] for name, row in rows.items()}
    assert status == {"grouped": ["ok", "failed"], "folded": ["failed", "–"], "unrolled": ["ok", "ok"]}
    assert "chosen" in rows["unrolled"][0] and "chosen" not in rows["grouped"][0]
    lowest = min(step["min_token_cosine"] for step in probe["attempts"][0]["steps"])
    assert rows["grouped"][3] == f"{lowest:.5f}"
    assert rows["unrolled"][7] == f"{probe['attempts'][2]['cycles']:,}" and rows["folded"][7] == "–"
    assert "cannot tile MatMul of form folded" in page.text and "at least 0.98" in page.text
    # The probe chose another form than the one that is exported here.
    assert worst["probe"] == "warning" and "exported as grouped, the probe chose unrolled" in page.text


def test_the_compiled_model_step_by_step(built, tiny):
    page, worst = report(tiny, built)
    found = json.loads((built / "axmodel_fidelity.json").read_bytes())
    assert worst["axmodel"] == "ok"
    for step in found["graphs"][0]["steps"]:
        assert f"{step['max_abs']:.2e}" in page.text
    assert "tiny_vision.axmodel" in page.text
    assert "cosine ≥ 0.98, worst token ≥ 0.98: the manual’s own limit" in page.text


def test_which_wishes_took_effect(workdir, tiny):
    page, worst = report(tiny, workdir)
    precision = json.loads((workdir / "axmodel_fidelity.json").read_bytes())["precision"]
    (wish,) = precision["wishes"]
    assert page.text.count(wish["selector"]) == 2 and wish["detail"] in page.text  # of the build, of the probe
    assert f"{precision['kept']} of {precision['nodes']} nodes kept their names" in page.text
    assert "precision" not in worst
    probe = json.loads((workdir / "probe.json").read_bytes())["attempts"][2]["precision"]
    counts = [str(of["bits"]["Softmax"]["16"]) for of in (precision, probe)]
    assert [next(filter(None, row[1:])) for row in page.rows if row[0] == "Softmax"] == counts

    # Counts decide, whatever the words beside them say.
    change(workdir / "axmodel_fidelity.json", lambda value: value["precision"]["wishes"][0].update(honoured=1))
    page, worst = report(tiny, workdir)
    assert worst["precision"] == "warning" and f"1 of {wish['matched']} nodes got it" in page.text
    change(workdir / "axmodel_fidelity.json", lambda value: value["precision"]["wishes"][0].update(honoured=0))
    page, worst = report(tiny, workdir)
    assert worst["precision"] == "failed" and "✗ Failed" in page.text
    change(workdir / "axmodel_fidelity.json", lambda value: value.pop("precision"))
    page, worst = report(tiny, workdir)
    assert "precision" not in worst and "The probe" in page.text and "The whole build" not in page.text

    def ignored(value):
        value["attempts"][2]["precision"]["wishes"][0].update(honoured=0)  # of the form that was chosen

    change(workdir / "probe.json", ignored)
    assert report(tiny, workdir)[1]["precision"] == "failed"


def test_no_form_works(workdir, tiny):
    def spoil(value):
        value.update(passed=False, form=None, whole=None)
        value["attempts"][2].update(works=False, compiled=False, steps=[], error="out of memory")

    change(workdir / "probe.json", spoil)
    page, worst = report(tiny, workdir)
    assert worst["probe"] == "failed" and "No form works" in page.text and "out of memory" in page.text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["attempts"][2]["steps"][0].update(min_token_cosine=0.9),
        lambda value: value["attempts"][2].update(compiled=False),
        lambda value: value["attempts"][2].update(works=False),
        lambda value: value["attempts"][2].update(steps=[]),
        lambda value: value.update(passed=False),
    ],
)
def test_a_probe_that_misses_a_limit_is_seen_whatever_the_flags_say(workdir, tiny, spoil):
    change(workdir / "probe.json", spoil)
    page, worst = report(tiny, workdir)
    assert worst["probe"] == "failed" and "✗ Failed" in page.text


def test_limits_of_a_preview_are_said_to_be_its(workdir, tiny):
    limits = {"cosine": 0.97, "min_token_cosine": 0.9}

    def loosen(value):
        value["thresholds"] = limits
        value["graphs"][0]["thresholds"] = limits

    change(workdir / "axmodel_fidelity.json", loosen)
    text = report(tiny, workdir)[0].text
    assert "worst token ≥ 0.9: as the preview predicts" in text and "not known any more" in text

    figures = {"mean_token_cosine": 0.985, "min_token_cosine": 0.95, "centred_cosine": 0.9, "relative_error": 0.1}
    config = json.loads(CONFIG.read_text())["quant"]["layer_configs"]
    floor = figures | {"mac8": None, "border_bytes": None, "clipped": {"share": 0, "worst": {}}}
    floor |= {"name": "floor", "config": None, "steps": [], "blocks": [], "notes": []}
    census = {"massive_tokens": [], "outlier_channels": [], "spikes": [], "softmax": [], "findings": []}
    preview = {"assumptions": [], "graph": "tiny_vision.onnx", "calibration": {}, "evaluation": {}, "notes": []}
    preview |= {"floor": floor, "settings": [floor | {"name": "vendor", "config": config}], "census": census}
    (workdir / "quantization.json").write_text(json.dumps(preview))
    predicted = axmodel.limits(workdir, CONFIG)
    change(workdir / "axmodel_fidelity.json", lambda value: value["graphs"][0].update(thresholds=predicted))
    assert "as the preview predicts, whose loss may double and grow by 0.01 at least (config_video.json)" in (
        report(tiny, workdir)[0].text
    )


@pytest.mark.parametrize(
    ("part", "spoil", "words"),
    [
        ("probe", lambda workdir: touch(workdir / "tiny_vision.onnx"), "older than tiny_vision.onnx"),
        ("probe", lambda workdir: touch(workdir / "calib" / "hidden_states.tar"), "older than hidden_states.tar"),
        ("probe", lambda workdir: change(workdir / "probe.json", another_size), "is about size [448, 448]"),
        ("probe", lambda workdir: change(workdir / "probe.json", another_form), "is about windows 'dense'"),
        ("probe", lambda workdir: change(workdir / "probe.json", another_depth), "graph of 7 nodes"),
        ("probe", lambda workdir: (workdir / "probe.json").write_text("{"), "not readable as JSON"),
        ("axmodel", lambda workdir: touch(workdir / "tiny_vision_uint8.onnx"), "older than tiny_vision_uint8.onnx"),
        ("axmodel", lambda workdir: touch(workdir / "pixels.npy"), "older than pixels.npy"),
        (
            "axmodel",
            lambda workdir: change(workdir / "axmodel_fidelity.json", another_model),
            "not about a model of",
        ),
        ("axmodel", lambda workdir: change(workdir / "axmodel_fidelity.json", another_clip), "a clip of 3 steps"),
        ("axmodel", lambda workdir: (workdir / "axmodel_fidelity.json").write_text("[]"), "again"),
    ],
)
def test_what_is_of_something_else_or_damaged_is_said_and_not_shown(workdir, tiny, part, spoil, words):
    spoil(workdir)
    page, worst = report(tiny, workdir)
    assert worst[part] == "warning" and words in page.text
    shown = {"probe": "Lowest token", "axmodel": "tiny_vision.axmodel"}[part]
    assert shown not in page.text


def another_size(value):
    value["spec"]["size"] = [448, 448]


def another_form(value):
    value["spec"]["window_mode"] = "dense"


def another_depth(value):
    value["whole"]["nodes"] = 7


def another_model(value):
    value["graphs"][0]["file"] = "other_vision.axmodel"


def another_clip(value):
    value["graphs"][0]["steps"].pop()


def test_a_graph_in_the_form_that_the_probe_chose_may_be_newer(workdir, tiny):
    """As in the chain: the probe was made beside another form, and the graph is exported once more."""

    def chosen(value):
        value["form"] = "grouped"
        value["spec"]["window_mode"] = "dense"

    change(workdir / "probe.json", chosen)
    touch(workdir / "tiny_vision.onnx")
    page, _ = report(tiny, workdir)
    assert "is older than tiny_vision.onnx" not in page.text and "The graph here is exported as grouped." in page.text


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
        wish = value["precision"]["wishes"][0]
        long = [f"{number} {HOSTILE}" for number in range(2000)]
        value["precision"]["wishes"] = [wish | {"selector": SPOOFED, "missing": long, "others": long}] * 100
        value["precision"]["bits"] = dict.fromkeys(long[:200], dict.fromkeys(long[:30], 3))

    change(workdir / "probe.json", spoil_probe)
    change(workdir / "axmodel_fidelity.json", spoil_model)
    page, _ = report(tiny, workdir)
    assert HOSTILE in page.text and ESCAPED in page.text and "more characters" in page.text
    assert sum(row[0].startswith("unrolled") for row in page.rows) < 20
    assert not any(letter in page.text for letter in "\u202e\x1b\x00")
    assert not any(tag == "script" for tag, _ in page.elements)
    assert len((workdir / "report.html").read_bytes()) < LIMIT
