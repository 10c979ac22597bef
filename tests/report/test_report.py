"""The report: a page that stands alone, shows what is there, and says when something is wrong or absent."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import test_onnx_video_by_sec as verify
from qwen_vl_axera.compiled.record import AxmodelFidelity
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import write_record
from qwen_vl_axera.made_from import made_from
from qwen_vl_axera.oracle.record import read_capture
from qwen_vl_axera.preflight.checks import Check, Outcome
from qwen_vl_axera.report.page import format_cosine, write_report
from qwen_vl_axera.report.pictures import FLOOR, Scale, error_map
from tests.report.pages import ESCAPED, HOSTILE, LIMIT, SIZE, Page, change, decode, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_script_writes_a_page_that_stands_alone(made, tiny_dir, tmp_path, run_script):
    output = tmp_path / "page.html"
    finished = run_script("make_report.py", tiny_dir, "--workdir", made, "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [str(output)]  # no warning, no failure
    html = output.read_text("utf-8")
    assert len(html.encode()) < LIMIT
    page = Page(html)

    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio"}
    assert not names & {"use", "image", "foreignobject", "animate", "set"}  # of a drawing, what loads or moves
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("srcset", "background") for name in attributes)
        if "href" in attributes:
            assert tag == "a" and attributes["href"].removeprefix("#") in ids
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    images = page.all("img")
    assert len(images) >= 8 + 5 + 4 + 4  # frames, the patch image and both sides of it, maps, samples
    assert all("alt" in image and min(decode(image["src"]).size) > 0 for image in images)
    assert page.all("html")[0]["lang"] == "en"
    assert any(attributes.get("lang") == "zh" for attributes in page.all("span"))
    assert "✓ Passed" in page.text and "通过" in page.text


def test_hostile_names_stay_text(made, tiny):
    page, _ = report(tiny, made)
    assert page.text.count(HOSTILE) >= 3  # source, check, build commands
    assert f"run {shlex.quote(HOSTILE)}" in page.text
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert ESCAPED in page.text
    assert not any(letter in page.text for letter in "\u202e\x1b\x00")


def test_the_same_work_directory_gives_the_same_bytes(made, tiny, tmp_path):
    outputs = [tmp_path / name for name in ("a.html", "b.html")]
    for output in outputs:
        write_report(tiny, made, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_patch_image_and_frames_are_the_real_ones(made, tiny):
    page, worst = report(tiny, made)
    assert worst["patches"] == "ok"
    pixels = np.load(made / "pixels.npy")
    assert (np.asarray(page.picture("Patch image of step 0")) == pixels[0]).all()
    for number in range(2):
        with Image.open(made.parent / HOSTILE / f"{number}.png") as picture:
            expected = np.asarray(picture.resize(SIZE[::-1], Image.Resampling.BICUBIC))
        assert (np.asarray(page.picture(f"Frame {number}, turned back")) == expected).all()
    assert "7.00 s · frame 7 · step 3" in page.text


def test_another_source_is_noticed(workdir, tiny, tmp_path):
    other = tmp_path / "frames"
    other.mkdir()
    for number in range(8):
        Image.new("RGB", (150, 120), (number, 0, 0)).save(other / f"{number}.png")
    change(workdir / "capture.json", lambda capture: capture.update(source=[str(other)]))
    assert report(tiny, workdir)[1]["patches"] == "failed"

    shutil.rmtree(other)
    page, worst = report(tiny, workdir)
    assert worst["patches"] == "warning" and "is not there any more" in page.text


def without_onnx_runtime(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the report runs a graph")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)


def test_no_graph_runs(made, tiny, monkeypatch):
    without_onnx_runtime(monkeypatch)
    page, worst = report(tiny, made)
    assert "maps" not in worst and "none above" in page.text
    assert sum(image["alt"].startswith("Error ratios") for image in page.all("img")) == 2  # those with an exact answer
    assert sum(image["alt"].startswith("Distances") for image in page.all("img")) == 4


def move_token(path: Path, token: int) -> None:
    """Makes a graph answer wrongly in one token: with its neighbour's."""
    model = onnx.load(path, load_external_data=False)
    (order,) = (tensor for tensor in model.graph.initializer if tensor.name == "reading_order")
    values = onnx.numpy_helper.to_array(order).copy()
    values[token] = values[token + 1]
    order.CopyFrom(onnx.numpy_helper.from_array(values, order.name))
    path.write_bytes(model.SerializeToString())


def test_the_map_shows_the_token_that_the_gate_refused(workdir, tiny):
    columns = SIZE[1] // 28
    move_token(workdir / "tiny_vision.onnx", 3 * columns + 4)
    assert verify.main([str(tiny.directory), "--workdir", str(workdir)]) == 1
    page, worst = report(tiny, workdir)
    assert worst["maps"] == worst["fidelity"] == "failed" and "✗ Failed" in page.text
    assert "2 tokens of tiny_vision.onnx err too much" in page.text  # of the two steps with an exact answer
    assert page.text.count("at row 3, column 4") >= 2 and page.text.count("1 above") == 2
    step = read_capture(workdir).exact_steps[0]
    colours = np.asarray(page.picture(f"Error ratios of step {step}"), np.float64)
    wrong, right = (
        colours[3 * 28 + 4 : 3 * 28 + 9, column * 28 + 4 : column * 28 + 24].mean((0, 1)) for column in (4, 2)
    )  # inside the frame, above the cross
    assert wrong[0] > wrong[2] + 40 and right[0] <= right[2]  # red, blue


def change_exact(fidelity, **figures):
    fidelity["graphs"][1]["exact"].update(figures)


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: change_exact(report, ratio=301),
        lambda report: change_exact(report, typical_ratio=3.1),
        lambda report: change_exact(report, token_ratio=1001),
        lambda report: report["graphs"][0].update(exact=None),
        lambda report: report["graphs"][0]["steps"][1].update(passed=False),
        lambda report: report["graphs"][0]["steps"][1].update(bound={"distance": 2, "limit": 1}, exact=None),
        lambda report: report["graphs"][0].update(passed=False),
        lambda report: report["graphs"][0].update(problems=["weight x differs"]),
        lambda report: report["graphs"][0].update(steps=[]),
        lambda report: report.update(passed=False),
        lambda report: report.update(graphs=[]),
        lambda report: report["text"].append(
            {"prompt": "?", "reference": "left", "onnx": "right", "tokens": 2, "equal": False}
            | {"reference_ids": [1, 2], "onnx_ids": [3, 2], "complete": True}
        ),
    ],
)
def test_a_missed_threshold_is_seen_whatever_the_flags_say(workdir, tiny, edit):
    change(workdir / "fidelity.json", edit)
    page, worst = report(tiny, workdir)
    assert "failed" in (worst.get("fidelity"), worst.get("text")) and "✗ Failed" in page.text


def other_figures(workdir):
    def edit(fidelity):
        for graph in fidelity["graphs"]:
            graph["steps"][0]["min_token_cosine"] = 1 - 1e-9

    change(workdir / "fidelity.json", edit)


def other_answer(workdir):
    np.save(workdir / "vit_out.npy", np.load(workdir / "vit_out.npy") * np.float32(1.001))


def other_exact(workdir):
    np.save(workdir / "vit_exact.npy", np.load(workdir / "vit_exact.npy") * 1.001)


def other_weights(workdir):
    data = bytearray((workdir / "tiny_vision.onnx.data").read_bytes())
    data[1000] ^= 1
    (workdir / "tiny_vision.onnx.data").write_bytes(data)


def another_clips(workdir):
    """What --video leaves: it is about the clip in check/."""

    def edit(fidelity):
        fidelity["made_from"] = {
            f"check/{name}" if name.endswith(".npy") else name: value for name, value in fidelity["made_from"].items()
        }

    change(workdir / "fidelity.json", edit)


def fewer_steps(workdir):
    change(workdir / "fidelity.json", lambda fidelity: [graph["steps"].pop() for graph in fidelity["graphs"]])


def other_limits(workdir):
    change(workdir / "fidelity.json", lambda fidelity: fidelity["thresholds"].update(ratio=1e12))


def unequal_answers(workdir):
    answer = {"prompt": "?", "reference": "left", "onnx": "left", "tokens": 2, "equal": True, "complete": True}
    answer |= {"reference_ids": [1, 2], "onnx_ids": [3, 2]}
    change(workdir / "fidelity.json", lambda fidelity: fidelity["text"].append(answer))


def other_graph(workdir):
    graph = workdir / "tiny_vision_uint8.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x0a\x00")


def no_tokens(workdir):
    (workdir / "fidelity_tokens.npz").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_figures, "another run"),
        (other_answer, "about other files: vit_out.npy has changed"),
        (other_exact, "about other files: vit_exact.npy has changed"),
        (other_graph, "about other files: tiny_vision_uint8.onnx has changed"),
        (other_weights, "about other files: tiny_vision.onnx.data has changed"),
        (another_clips, "it was not made from pixels.npy"),
        (fewer_steps, "it has not the 4 steps of the clip"),
        (other_limits, "thresholds are not those of this version"),
        (unequal_answers, "reference_ids and onnx_ids differ"),
        (no_tokens, "not there yet"),
    ],
)
def test_errors_of_something_else_are_said_and_not_drawn(workdir, tiny, spoil, words):
    """Nor is such a record called ok."""
    spoil(workdir)
    page, worst = report(tiny, workdir)
    if spoil not in (other_figures, no_tokens):
        assert worst["fidelity"] == "warning" and "err no more than" not in page.text
    assert (
        "warning" in (worst.get("maps"), worst.get("fidelity"))
        and words in page.text
        and "test_onnx_video_by_sec.py" in page.text
    )
    assert not any(image["alt"].startswith(("Error ratios", "Distances")) for image in page.all("img"))


def test_text_and_compiled_model_are_shown(workdir, tiny):
    answer = {"prompt": "描述这个视频.", "reference": "一只猫", "onnx": "一只猫", "tokens": 3, "equal": True}
    answer |= {"reference_ids": [1, 2, 3], "onnx_ids": [1, 2, 3], "complete": True}
    sides = {
        "reference": {"id": 7, "text": "左", "probability": 0.5},
        "onnx": {"id": 8, "text": "右", "probability": 0.25},
    }
    differs = answer | {"onnx": "一只狗", "equal": False, "first_difference": {"token": 2} | sides}
    change(workdir / "fidelity.json", lambda fidelity: fidelity["text"].extend([answer, differs]))
    figures = {"max_abs": 0.5, "mean_abs": 0.1, "max_abs_relative": 0.2, "cosine": 0.97, "min_token_cosine": 0.91}
    figures["token_error"] = 0.3
    graph = {"file": "tiny_vision.axmodel", "thresholds": {"cosine": 0.98}, "source": "a test", "steps": [figures] * 4}
    about = made_from([workdir / "pixels.npy"], workdir)
    compiled = {"passed": True, "accepted": False, "graphs": [graph], "made_from": about}
    write_record(workdir / "axmodel_fidelity.json", AxmodelFidelity, compiled)
    page, worst = report(tiny, workdir)
    assert "the same 3 tokens" in page.text and "一只猫" in page.text and "一只狗" in page.text
    assert "first at token 2: transformers “左” (probability 0.500), ONNX “右” (probability 0.250)" in page.text
    assert worst["text"] == "failed" and worst["axmodel"] == "failed" and "0.97000" in page.text


def test_an_empty_work_directory_names_the_commands(tiny, tmp_path):
    page, worst = report(tiny, tmp_path)
    assert set(worst.values()) == {"warning"} and "Nothing failed" in page.text
    scripts = ("run_video_by_sec.py", "test_onnx_video_by_sec.py", "get_calib.py", "preflight.py", "export_video.sh")
    assert all(script in page.text for script in scripts)


@pytest.mark.parametrize(
    "name", ["capture.json", "fidelity.json", "preflight.json", "steps.json", "calib/manifest.json"]
)
@pytest.mark.parametrize("content", [b"{", b'[{"name": 3}]'])
def test_an_unreadable_part_does_not_take_the_others_down(workdir, tiny, name, content):
    (workdir / name).write_bytes(content)
    page, worst = report(tiny, workdir)
    assert Path(name).name in page.text and "again" in page.text
    assert "✗ Failed" not in page.text and "warning" in worst.values()


def test_an_array_that_does_not_fit_is_named(workdir, tiny):
    np.save(workdir / "pixels.npy", np.zeros((4, 5, 392, 3), np.uint8))
    page, worst = report(tiny, workdir)
    assert worst["clip"] == "warning" and "does not fit capture.json" in page.text
    change(workdir / "capture.json", lambda capture: capture.update(checkpoint="another"))
    np.save(workdir / "pixels.npy", np.zeros((4, 120, 392, 3), np.uint8))
    assert "not through tiny" in report(tiny, workdir)[0].text


def _nan(values):
    values[0, 0, 0, 0] = np.nan
    return values


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values + np.float32(0.3),
        lambda values: values * 3,
        lambda values: values.astype(np.float64),
        lambda values: values[0],
        lambda values: values[:, :, :-4],
        lambda values: np.array([{"a": 1}], dtype=object),
        _nan,
    ],
)
def test_a_spoilt_calibration_sample_is_named(workdir, tiny, spoil):
    path = sorted((workdir / "calib").glob("*.npy"))[1]
    np.save(path, spoil(np.load(path)), allow_pickle=True)
    page, worst = report(tiny, workdir)
    assert worst["calibration"] == "failed" and f"{path.name}: " in page.text


def test_normalised_and_picture_samples_are_turned_back(workdir, tiny):
    manifest = json.loads((workdir / "calib" / "manifest.json").read_bytes())
    before = report(tiny, workdir)[0].picture(manifest["samples"][0]["file"])
    path = workdir / "calib" / manifest["samples"][0]["file"]
    patches = np.load(path)[0].transpose(1, 2, 0).astype(np.uint8)
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(tiny.directory)
    mean, std = (np.array(values, np.float32) for values in (processor.image_mean, processor.image_std))
    normal = (patches.astype(np.float32) / 255 - mean) / std
    np.save(path, np.ascontiguousarray(normal.transpose(2, 0, 1)[None]))
    picture = manifest["samples"][1]["file"].replace(".npy", ".png")
    Image.fromarray(patches).save(workdir / "calib" / picture)
    change(workdir / "calib" / "manifest.json", lambda value: value["samples"][1].update(file=picture))
    page, worst = report(tiny, workdir)
    assert worst["calibration"] == "ok"
    for name in (manifest["samples"][0]["file"], picture):
        assert (np.asarray(page.picture(name)) == np.asarray(before)).all()


def test_a_sample_outside_of_calib_is_not_opened(workdir, tiny):
    shutil.copy(workdir / "calib" / "sample_00000.npy", workdir / "outside.npy")
    change(workdir / "calib" / "manifest.json", lambda value: value["samples"][0].update(file="../outside.npy"))
    page, worst = report(tiny, workdir)
    assert worst["calibration"] == "warning" and "samples[0].file" in page.text


@pytest.mark.parametrize(("status", "word"), [("warning", "Nothing failed"), ("failed", "✗ Failed")])
def test_checks_and_steps_decide_the_verdict(workdir, tiny, status, word):
    outcome = Outcome.of([Check("disk", status, "3 GB free", "free 40 GB")])
    write_record(workdir / "preflight.json", Outcome, outcome)
    page, worst = report(tiny, workdir)
    assert worst["checks"] == status and word in page.text and "free 40 GB" in page.text
    change(workdir / "steps.json", lambda steps: steps[0].update(returncode=9))
    assert report(tiny, workdir)[1]["steps"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/none"], "none"),
        (["{ckpt}", "--workdir", "{tmp}/none"], "no such directory"),
        (["{ckpt}", "--workdir", "{tmp}", "--preflight", "{tmp}/none.json"], "no such file"),
        (["{ckpt}", "--workdir", "{tmp}", "--output", "{ckpt}/report.html"], "within the checkpoint"),
        (["{ckpt}", "--workdir", "{tmp}", "--output", "{tmp}/capture.json"], "ends in .html"),
        (["{ckpt}", "--workdir", "{tmp}", "--output", "{tmp}/none/report.html"], "there is no directory"),
    ],
)
def test_bad_input_ends_in_one_line(tiny_dir, tmp_path, run_script, arguments, expected):
    finished = run_script("make_report.py", *(word.format(ckpt=tiny_dir, tmp=tmp_path) for word in arguments))
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1 and expected in finished.stderr
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_page(made, tiny, tmp_path, monkeypatch):
    output = tmp_path / "report.html"
    output.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_report(tiny, made, output)
    assert output.read_text() == "old" and list(tmp_path.iterdir()) == [output]
    with pytest.raises(InputError, match="no such directory"):
        write_report(tiny, tmp_path / "none", output)


def test_colours_warn_from_the_threshold_on():
    errors = np.array([[1e-13, 1e-9, 9.9e-6], [1.01e-5, 1e-3, 0.5]])
    scale = Scale.of(errors, 1e-5)
    assert (scale.low, scale.high) == (-13, 0)
    red, _, blue = np.moveaxis(scale.colours(errors).astype(int), -1, 0)
    assert (red[0] <= blue[0] + 5).all() and (red[1] > blue[1] + 40).all()
    assert scale.position(1e-13) == 0 and scale.position(1) == 1 and scale.position(0) == 0
    positions, exponents = zip(*scale.ticks(), strict=True)
    assert [scale.position(10.0**exponent) for exponent in exponents] == pytest.approx(positions)
    assert scale.bar().size == (512, 1)
    assert Scale.of(np.zeros((1, 2)), 1e-5).low == round(np.log10(FLOOR))
    neutral = Scale.of(errors)
    assert (neutral.low, neutral.high) == (-13, 0) and not neutral.warns(errors).any()
    assert (np.diff(neutral.colours(errors).astype(int).sum(-1).ravel()) <= 0).all()  # ever darker
    assert error_map(np.zeros((56, 84, 3), np.uint8), errors, scale).size == (84, 56)


def test_figures_are_written_for_people():
    assert format_cosine(1.0) == "1" and format_cosine(0.5) == "0.50000"
    assert format_cosine(1 - 2e-9) == "1 − 2.0e-09" and format_cosine(float("nan")) == "nan"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_a_browser_shows_it(made, tiny, tmp_path, scheme, dark):
    """The screenshot stays in the test's temporary directory, to be looked at."""
    output, screenshot = tmp_path / "report.html", tmp_path / f"report-{scheme}.png"
    write_report(tiny, made, output)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2400", f"--screenshot={screenshot}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    # Under load the screenshot is otherwise taken before every picture is decoded and painted.
    command += ["--virtual-time-budget=5000", "--run-all-compositor-stages-before-draw", output.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shown = np.asarray(Image.open(screenshot).convert("RGB"), np.float64)
    assert shown.shape[:2] == (2400, 1200)
    margin = shown[:, :20].mean()
    assert margin < 40 if dark else margin > 240
    rows_with_something = (np.abs(shown - shown[0, 0]).max((1, 2)) > 30).mean()
    assert rows_with_something > 0.6
    assert (shown.max(-1) - shown.min(-1) > 60).mean() > 0.05  # the frames' colours
