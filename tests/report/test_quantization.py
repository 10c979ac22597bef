"""The chapter on 8 bits: the record's numbers and nothing else, bounded, escaped, and of the graph that is there."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import make_report
import preview_quantization
from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.report.charts import depth_chart
from qwen_vl_axera.report.pictures import Scale
from qwen_vl_axera.report.quantization import MOST_LAYERS, MOST_MAPS, MOST_SETTINGS, ROOM, TILE, group_name, token_maps
from tests.conftest import run_main
from tests.report.pages import ESCAPED, HOSTILE, LIMIT, SIZE, SPOOFED, Page, append, change, decode, report

RECORD = "quantization.json"
ROWS, COLUMNS = (side // 28 for side in SIZE)
SETTINGS = ("weights alone in S8", "vendor", "linear layers at 8 bits", "all at 8 bits", "mixed")


@pytest.fixture(scope="module")
def previewed(made, tiny_dir, frames_dir, tmp_path_factory) -> tuple[Path, str]:
    """A work directory after a preview that searched, and what it printed."""
    workdir = shutil.copytree(made, tmp_path_factory.mktemp("previewed") / "work")
    arguments = [str(tiny_dir), "--workdir", str(workdir), "--evaluate", str(frames_dir)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert preview_quantization.main([*arguments, "--search"]) == 0
    return workdir, printed.getvalue()


@pytest.fixture
def workdir(previewed, tmp_path) -> Path:
    return shutil.copytree(previewed[0], tmp_path / "work")


def record(workdir: Path) -> dict:
    return json.loads((workdir / RECORD).read_bytes())


def edit(workdir: Path, **fields) -> None:
    change(workdir / RECORD, lambda value: value.update(fields))


def tile(page: Page, step: int, setting: str) -> np.ndarray:
    return np.asarray(page.picture(f"Losses of step {step}, {setting}"))


def test_the_table_is_the_one_on_the_screen(previewed, tiny):
    workdir, printed = previewed
    page, worst = report(tiny, workdir)
    assert "preview" in worst and "Mixed precision" in page.text
    lines = printed.splitlines()[1 : 1 + len(SETTINGS)]
    assert tuple(line[:24].strip() for line in lines) == SETTINGS
    for line in lines:
        cells = [cell.removesuffix(" MB") for cell in line[24:].split() if cell != "MB"]
        (row,) = (row for row in page.rows if row[0] == line[:24].strip() and len(row) == 9)
        assert [cell.removesuffix(" MB").replace("–", "-") for cell in row[1:] if cell] == cells
    for entry in record(workdir)["census"]["findings"]:
        assert entry["finding"] in page.text and entry["remedy"] in page.text
    assumptions = record(workdir)["assumptions"]
    assert len(assumptions) > 5 and all(entry["rule"] in page.text for entry in assumptions)
    assert len(page.all("details")) >= 2


def test_another_number_in_the_record_is_another_number_on_the_page(workdir, tiny):
    change(workdir / RECORD, lambda value: value["settings"][1].update(mean_token_cosine=0.12345, mac8=0.678))
    page, _ = report(tiny, workdir)
    (row,) = (row for row in page.rows if row[0] == SETTINGS[2] and len(row) == 9)
    assert row[1:3] == ["67.8%", "0.12345"]


def test_curves_show_each_block_of_each_setting(previewed, tiny):
    found = record(previewed[0])
    entries = [found["floor"], *found["settings"]]
    losses = {entry["name"]: [1 - block["mean_token_cosine"] for block in entry["blocks"]] for entry in entries}
    depth = tiny.config.vision.depth
    chart = depth_chart(losses, range(depth))
    (top, high), (second, low) = chart.rows[-1], chart.rows[0]
    for name, points in chart.lines.items():
        exponents = [low + (y - second) / (top - second) * (high - low) for _, y in points]
        assert 10 ** np.array(exponents) == pytest.approx(losses[name])
    page, _ = report(tiny, previewed[0])
    drawn = [line["points"].split() for line in page.all("polyline")]
    expected = [[f"{x:.1f},{y:.1f}" for x, y in points] for points in chart.lines.values()]
    assert drawn == expected and len(drawn) == len(SETTINGS) and len(drawn[0]) == depth


@pytest.mark.parametrize("losses", [[0.0], [0.0, 0.0], [2.0, 1e-12, 0.5], [-1e-9, 1e-3]])
def test_a_chart_of_odd_losses_stays_within_its_frame(losses):
    chart = depth_chart({"a": losses, "b": losses[::-1]}, range(len(losses)))
    for points in chart.lines.values():
        assert all(chart.left <= x <= chart.right and 0 <= y <= chart.bottom for x, y in points)
    assert chart.rows and len(chart.columns) == len(losses)


def test_maps_have_one_scale_and_show_the_bad_token(workdir, tiny):
    def plant(value):
        for entry in (value["floor"], *value["settings"]):
            for step in entry["steps"]:
                step["token_cosines"] = [0.999] * (ROWS * COLUMNS)
        value["settings"][-1]["steps"][1]["token_cosines"][2 * COLUMNS + 3] = 0.5

    change(workdir / RECORD, plant)
    page, _ = report(tiny, workdir)
    planted, others = tile(page, 1, "mixed"), tile(page, 1, "vendor")
    assert planted.shape[:2] == (ROWS, COLUMNS)
    differs = (planted != others).any(-1)
    assert np.argwhere(differs).tolist() == [[2, 3]]
    assert (planted[2, 3].astype(int) < others[2, 3]).all()  # darker
    scale = Scale.of(np.array([1e-3, 0.5]))
    assert (planted[2, 3] == scale.colours(np.array(0.5))).all()
    (titled,) = (image["title"] for image in page.all("img") if image["alt"] == "Losses of step 1, mixed")
    assert titled == "worst at row 2, column 3" and "worst 5.0e-01" in page.text


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (46, 1), (1, 46), (46, 46), (5, 9)])
@pytest.mark.parametrize("steps", [1, 64])
def test_maps_of_any_shape_fit_the_page(rows, columns, steps):
    step = SimpleNamespace(token_cosines=[0.9] * (rows * columns))
    settings = [SimpleNamespace(name=f"{number}", steps=[step] * steps) for number in range(1 + MOST_SETTINGS)]
    for some in (settings[:1], settings):
        maps = token_maps(some, GraphSpec("qwen2_5_vl", (28 * rows, 28 * columns)), None)
        assert 1 <= maps["width"] <= TILE[0] and 1 <= maps["height"] <= TILE[1]
        assert maps["width"] * len(some) <= ROOM
        assert len(maps["steps"]) == min(steps, MOST_MAPS) and maps["total"] == steps
        assert decode(maps["steps"][0]["tiles"][0]["uri"]).size == (columns, rows)


def test_layers_are_listed_by_the_loss_that_they_cause(workdir, tiny):
    groups = [{"layers": [f"blocks.{n}.mlp.down_proj"], "damage": n * 1e-5, "macs": 10 + n} for n in range(200)]

    def many(value):
        value["search"]["sensitivity"] = groups
        value["search"]["wide"] = ["blocks.199.mlp.down_proj"]

    change(workdir / RECORD, many)
    page, _ = report(tiny, workdir)
    rows = [row for row in page.rows if row[0].startswith("blocks.")]
    assert [row[0] for row in rows] == [f"blocks.{n}.mlp.down_proj" for n in range(199, 199 - MOST_LAYERS, -1)]
    assert [row[1] for row in rows[:2]] == ["2.0e-03", "2.0e-03"] and rows[-1][1] == "1.8e-03"
    assert [row[-1] for row in rows[:2]] == ["16 bits", "8 bits"]
    assert f"{200 - MOST_LAYERS} more follow" in page.text and "above 1.8e-03" in page.text
    widths = [bar["style"] for bar in page.all("i")][-MOST_LAYERS - 2 :]
    assert "width:100.0%" in widths and f"width:{100 * 190 / 199:.1f}%" in widths


def test_a_target_that_is_missed_is_seen_whatever_the_flag_says(workdir, tiny):
    def spoil(value):
        value["search"]["reached"] = True
        value["settings"][-1]["centred_cosine"] = value["floor"]["centred_cosine"] - 0.0051

    change(workdir / RECORD, spoil)
    page, worst = report(tiny, workdir)
    assert worst["preview"] == "warning" and "No mix stays within 0.005 of the floor" in page.text


def test_plain_and_centred_cosine_each_keep_the_target(workdir, tiny):
    """As the search has it: what one lies above the other does not make up for a loss."""

    def spoil(value):
        value["search"]["reached"] = True
        value["floor"]["centred_cosine"] = value["floor"]["mean_token_cosine"] - 0.1
        value["settings"][-1]["centred_cosine"] = value["floor"]["centred_cosine"]
        value["settings"][-1]["mean_token_cosine"] = value["floor"]["mean_token_cosine"] - 0.0051

    change(workdir / RECORD, spoil)
    page, worst = report(tiny, workdir)
    assert worst["preview"] == "warning" and "No mix stays within 0.005 of the floor" in page.text


def test_layers_that_read_one_tensor_have_a_short_name():
    assert group_name(["a.qkv.q", "a.qkv.k", "a.qkv.v"]) == "a.qkv.q, k, v"
    assert group_name(["first", "b.second"]) == "first, b.second"
    assert group_name([f"x.{n}" for n in range(9)]) == "x.0, 1, 2, 3 and 5 more"
    assert group_name([]) == "–"


def test_answers_that_change_are_shown(workdir, tiny):
    def holds(value):
        value["search"]["reached"] = True
        for name in ("mean_token_cosine", "centred_cosine"):
            value["settings"][-1][name] = value["floor"][name]

    change(workdir / RECORD, holds)
    page, worst = report(tiny, workdir)
    assert worst["preview"] == "ok" and "Answers with quantised features" not in page.text
    said = {"float": {"text": "左边", "equal": True}, "vendor": {"text": "左边", "equal": True}}
    kept = {"clip": "a.mp4", "prompt": "哪里?", "answers": said | {"mixed": {"text": "左边", "equal": True}}}
    # The words decide, whatever the flag says.
    lost = {"clip": "b.mp4", "prompt": "哪里?", "answers": said | {"mixed": {"text": "右边", "equal": True}}}
    edit(workdir, text=[kept, lost])
    page, worst = report(tiny, workdir)
    assert ["vendor", "2 of 2"] in page.rows and ["mixed", "1 of 2"] in page.rows
    assert "1 of 2 answers change" in page.text
    assert "右边" in page.text and page.text.index("b.mp4") < page.text.index("a.mp4")
    assert worst["preview"] == "warning"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda workdir: append(workdir / "tiny_vision.onnx", b"\x12\x00"), "tiny_vision.onnx has changed"),
        (lambda workdir: append(workdir / "tiny_vision.onnx.data", b"0"), "tiny_vision.onnx.data has changed"),
        (lambda workdir: append(workdir / "calib" / "hidden_states.tar", b"0"), "hidden_states.tar has changed"),
        (lambda workdir: edit(workdir, made_from={}), "does not say what it was made from"),
        (lambda workdir: edit(workdir, graph="other_vision.onnx"), "not about a graph of tiny"),
        (lambda workdir: edit(workdir, graph="../work/tiny_vision.onnx"), "not about a graph of tiny"),
        (lambda workdir: (workdir / "tiny_vision.onnx").unlink(), "is not there any more"),
        (lambda workdir: edit(workdir, graph="tiny_vision_28x28.onnx"), "is not there any more"),
        (lambda workdir: change(workdir / RECORD, cut_tokens), "of another size"),
        (
            lambda workdir: shorten(workdir, "blocks"),
            "other steps or blocks",
        ),
        (
            lambda workdir: shorten(workdir, "steps"),
            "other steps or blocks",
        ),
        (lambda workdir: change(workdir / RECORD, same_names), "two settings have one name"),
        (lambda workdir: edit(workdir, evaluation={"clips": "a.mp4"}), "evaluation"),
        (lambda workdir: edit(workdir, calibration={"archive": 3, "samples": 2}), "calibration"),
        (lambda workdir: edit(workdir, text=[{"clip": 3}]), "text"),
        (lambda workdir: edit(workdir, text=[{"clip": "a", "prompt": "b", "answers": {}}]), "float network"),
        (lambda workdir: (workdir / RECORD).write_text("{"), "not readable as JSON"),
        (lambda workdir: (workdir / RECORD).write_text('{"floor": NaN}'), "not readable as JSON"),
        (lambda workdir: (workdir / RECORD).write_text('{"settings": [3]}'), "preview_quantization.py again"),
    ],
)
def test_what_is_of_something_else_or_damaged_is_said_and_not_drawn(workdir, tiny, capsys, spoil, words):
    spoil(workdir)
    page, worst = report(tiny, workdir)
    assert worst["preview"] == "warning" and words in page.text
    assert "preview_quantization.py" in page.text and not page.all("polyline") and "Centred" not in page.text
    code, out, err = run_main(make_report.main, capsys, tiny.directory, "--workdir", workdir)
    assert (code, err) == (0, "")  # as with every other record: the page is written, the line says what is wrong
    assert any(line.startswith("warning: Mixed precision: ") and words in line for line in out.splitlines())


def cut_tokens(value):
    value["settings"][0]["steps"][0]["token_cosines"].pop()


def shorten(workdir, name):
    change(workdir / RECORD, lambda value: value["floor"][name].pop())


def same_names(value):
    value["settings"][0]["name"] = value["settings"][1]["name"]


def test_no_preview_leaves_no_chapter(made, tiny):
    page, worst = report(tiny, made)
    assert "preview" not in worst and not page.all("polyline")
    assert not any(section.get("id") == "preview" for section in page.all("section"))
    assert "Mixed precision" not in page.text


def test_a_captured_clip_lies_under_its_maps(workdir, tiny):
    def of_the_capture(value):
        value["evaluation"] = {"clips": ["the captured clip"], "steps": 4, "simulated_steps": 4}
        for entry in (value["floor"], *value["settings"]):
            entry["steps"] = [entry["steps"][0]] * 4

    change(workdir / RECORD, of_the_capture)
    page, _ = report(tiny, workdir)
    assert "over the first frame of each step" in page.text
    assert min(tile(page, 3, "mixed").shape[:2]) > ROWS  # a picture, not a pixel for each token
    assert "pixels.npy has changed" not in page.text  # no file of this preview
    edit(workdir, made_from=record(workdir)["made_from"] | {"pixels.npy": "0" * 64})  # another clip was captured since
    assert "pixels.npy has changed" in report(tiny, workdir)[0].text


def test_a_hostile_record_stays_text_and_the_page_small(workdir, tiny):
    long = HOSTILE * 40

    def spoil(value):
        first = value["settings"][0]
        value["settings"] += [first | {"name": f"{number} {long}"} for number in range(60)]
        for entry in (value["floor"], *value["settings"]):
            entry["steps"] = [entry["steps"][0]] * 64
            entry["notes"] = [f"{number} {SPOOFED}" for number in range(300)]
            if entry.get("relative_time"):
                entry["relative_time"] = [1e300, 1e308]
                entry["time_parts"] = {f"{number} {long}": 1e308 for number in range(20)}
        value["evaluation"] = {"clips": [HOSTILE] * 100, "steps": 64, "simulated_steps": 64}
        value["assumptions"] = [{"grade": "inf", "rule": long}] * 500
        value["census"]["findings"] = [{"finding": long, "remedy": SPOOFED}] * 500
        value["search"]["wide"] = [long] * 500
        said = {name: {"text": long, "equal": False} for name in ("float", *(f"{n} {HOSTILE}" for n in range(50)))}
        value["text"] = [{"clip": HOSTILE, "prompt": long, "answers": said}] * 100

    before = len((workdir / "report.html").read_bytes()) if (workdir / "report.html").exists() else 0
    change(workdir / RECORD, spoil)
    page, _ = report(tiny, workdir)
    assert HOSTILE in page.text and ESCAPED in page.text
    assert not any(letter in page.text for letter in "\u202e\x1b\x00")
    assert not any(tag == "script" for tag, _ in page.elements)
    maps = [image for image in page.all("img") if image["alt"].startswith("Losses of step")]
    assert len(maps) == MOST_MAPS * (MOST_SETTINGS + 1) and all(decode(image["src"]).size for image in maps)
    assert len(page.all("polyline")) == MOST_SETTINGS + 1 and "of 64" in page.text
    assert before <= len((workdir / "report.html").read_bytes()) < LIMIT


def test_where_the_time_goes_is_drawn_for_the_first_setting_and_the_mix(workdir, tiny):
    def slow(value):
        for entry in value["settings"]:
            entry["time_parts"] = {"products": 90.0, "all other operators": 150.0, "changes of width": 0.0}

    change(workdir / RECORD, slow)
    page, _ = report(tiny, workdir)
    rows = [row[:3] for row in page.rows if row[1:2] == ["products"] or row[1:2] == ["all other operators"]]
    parts = [["all other operators", "150"], ["products", "90"]]
    assert rows == [[name, *part] for name in ("vendor", "mixed") for part in parts]
    assert {"width:100.0%", "width:60.0%"} <= {bar["style"] for bar in page.all("i")}
    assert "Time is an estimate relative to all at 16 bits" in page.text and "371 ms at 308x308" in page.text
