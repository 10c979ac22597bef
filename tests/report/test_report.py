"""The report: a page that stands alone, shows what is there, and says when something is wrong or absent."""

import base64
import io
import json
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import export
import get_calib
import make_report
import run_video_by_sec
import test_onnx_video_by_sec as verify
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.report.page import format_bytes, format_cosine, write_report
from qwen_vl_axera.report.pictures import FLOOR, Scale, error_map

HOSTILE = "<script>alert(1)<img src=x onerror=alert(1)>\"'&amp;猫"
SPOOFED = "gnp\u202e.exe\x1b[31m\x00"
SIZE = (140, 168)
LIMIT = 5_000_000  # bytes of the page for 8 frames
VOID = {"meta", "img", "br"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements and the text of a page; refuses what is not well-formed."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of <{tag}> is given twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def picture(self, alt: str) -> Image.Image:
        return decode(next(image["src"] for image in self.all("img") if image["alt"] == alt))


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head.startswith("data:image/") and head.endswith(";base64")
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    picture.load()
    return picture


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory) -> Path:
    """A work directory after all host steps, over 8 noisy frames (the worst case for size) of a hostile name."""
    root = tmp_path_factory.mktemp("report")
    source, workdir = root / HOSTILE, root / "work"
    source.mkdir()
    random = np.random.default_rng(3)
    for number in range(8):
        frame = random.integers(0, 256, (120, 150, 3), dtype=np.uint8)
        Image.fromarray(frame).save(source / f"{number}.png")
    ckpt, place = str(tiny_dir), ["--workdir", str(workdir)]
    size = ["--size", *map(str, SIZE)]
    assert run_video_by_sec.main([ckpt, "--video", str(source), *size, *place]) == 0
    assert export.main([ckpt, "video", *place]) == 0
    assert verify.main([ckpt, *place]) == 0
    assert get_calib.main(["--inputs", str(source), *size, "--num-samples", "4", *place]) == 0
    checks = [{"name": HOSTILE, "status": "ok", "detail": SPOOFED, "remedy": None}]
    write(workdir / "preflight.json", {"passed": True, "checks": checks})
    steps = [
        {"name": "capture", "seconds": 1.5, "peak_bytes": 2e9, "returncode": 0, "command": ["run", HOSTILE]},
        {"name": "export", "seconds": None, "peak_bytes": None, "returncode": 0, "command": [], "skipped": True},
    ]
    write(workdir / "steps.json", steps)
    (workdir / "pulsar2_commands.sh").write_text(f"pulsar2 build '{HOSTILE}'\n", "utf-8")
    return workdir


@pytest.fixture
def workdir(made, tmp_path) -> Path:
    """A copy to break things in."""
    return shutil.copytree(made, tmp_path / "work")


def write(path: Path, value) -> None:
    path.write_text(json.dumps(value), "utf-8")


def change(path: Path, edit) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    write(path, value)


def report(checkpoint: Checkpoint, workdir: Path) -> tuple[Page, dict[str, str]]:
    """The page, and the worst status of each section that the verdict names."""
    findings = write_report(checkpoint, workdir, workdir / "report.html")
    worst = {}
    for finding in findings:  # failures come first
        worst.setdefault(finding.anchor, finding.status)
    return Page((workdir / "report.html").read_text("utf-8")), worst


def test_the_script_writes_a_page_that_stands_alone(made, tiny_dir, tmp_path, run_script):
    output = tmp_path / "page.html"
    finished = run_script("make_report.py", tiny_dir, "--workdir", made, "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [str(output)]  # no warning, no failure
    html = output.read_text("utf-8")
    assert len(html.encode()) < LIMIT
    page = Page(html)

    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "video", "audio"}
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
    assert "gnp\ufffd.exe\ufffd[31m\ufffd" in page.text
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


def test_error_map_finds_the_wrong_token(workdir, tiny):
    page, worst = report(tiny, workdir)
    assert worst.get("maps", "ok") == "ok" and "none above" in page.text
    oracle = np.load(workdir / "vit_out.npy")
    rows, columns = SIZE[0] // 28, SIZE[1] // 28
    oracle[2 * rows * columns + 3 * columns + 4] *= np.linspace(0.9, 1.1, oracle.shape[1], dtype=np.float32)
    np.save(workdir / "vit_out.npy", oracle)
    page, worst = report(tiny, workdir)
    assert worst["maps"] == "failed" and worst["fidelity"] == "ok"
    assert "at row 3, column 4" in page.text and "1 above" in page.text and "✗ Failed" in page.text
    plain, wrong = (np.asarray(page.picture(f"Error map of step {step}"), np.float64) for step in (1, 2))
    token = np.s_[3 * 28 + 4 : 3 * 28 + 9, 4 * 28 + 4 : 4 * 28 + 24]  # inside the frame, above the cross
    assert wrong[token].mean((0, 1))[0] > wrong[token].mean((0, 1))[2] + 40  # red over blue
    assert plain[token].mean((0, 1))[0] <= plain[token].mean((0, 1))[2]


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: report["graphs"][0]["steps"][1].update(min_token_cosine=0.99),
        lambda report: report["graphs"][0]["steps"][1].update(max_abs_relative=1e-3),
        lambda report: report["graphs"][1]["steps"][0].update(cosine=float("nan"), min_token_cosine=float("nan")),
        lambda report: report["graphs"][0].update(passed=False),
        lambda report: report["graphs"][0].update(steps=[]),
        lambda report: report.update(passed=False),
        lambda report: report.update(graphs=[]),
        lambda report: report["text"].append(
            {"prompt": "?", "reference": "left", "onnx": "right", "tokens": 2, "equal": False}
        ),
    ],
)
def test_a_missed_threshold_is_seen_whatever_the_flags_say(workdir, tiny, edit):
    change(workdir / "fidelity.json", edit)
    page, worst = report(tiny, workdir)
    assert worst["fidelity"] == "failed" and "✗ Failed" in page.text


def test_figures_of_another_graph_are_noticed(workdir, tiny):
    def edit(fidelity):
        for graph in fidelity["graphs"]:
            graph["steps"][0]["min_token_cosine"] = 0.999995  # within the threshold, not what the graph gives

    change(workdir / "fidelity.json", edit)
    page, worst = report(tiny, workdir)
    assert worst["maps"] == "warning" and "has changed since" in page.text


def test_text_and_compiled_model_are_shown(workdir, tiny):
    answer = {"prompt": "描述这个视频.", "reference": "一只猫", "onnx": "一只猫", "tokens": 3, "equal": True}
    change(workdir / "fidelity.json", lambda fidelity: fidelity["text"].append(answer))
    compiled = json.loads((workdir / "fidelity.json").read_bytes())
    figures = {"max_abs": 0.5, "mean_abs": 0.1, "cosine": 0.97, "min_token_cosine": 0.91}
    graph = {"file": "x.axmodel", "passed": True, "thresholds": {"cosine": 0.98}, "steps": [figures]}
    write(workdir / "axmodel_fidelity.json", compiled | {"graphs": [graph], "text": []})
    page, worst = report(tiny, workdir)
    assert "the same 3 tokens" in page.text and "一只猫" in page.text
    assert worst["fidelity"] == "ok" and worst["axmodel"] == "failed" and "0.97000" in page.text


def test_an_empty_work_directory_names_the_commands(tiny, tmp_path):
    page, worst = report(tiny, tmp_path)
    assert set(worst.values()) == {"warning"} and "Nothing failed" in page.text
    scripts = ("run_video_by_sec.py", "test_onnx_video_by_sec.py", "get_calib.py", "preflight.py", "export_video.sh")
    assert all(script in page.text for script in scripts)


@pytest.mark.parametrize(
    "name", ["capture.json", "fidelity.json", "preflight.json", "steps.json", "calib/manifest.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"passed": 1e999}', b"[[[[", b"\xff\xfe", b'[{"seconds": NaN}]']
)
def test_an_unreadable_part_does_not_take_the_others_down(workdir, tiny, name, content):
    if (name, content) == ("steps.json", b"[]"):
        pytest.skip("no steps is a valid list of steps")
    (workdir / "vit_out.npy").unlink()  # no graph needs to run for this
    (workdir / name).write_bytes(content)
    page, worst = report(tiny, workdir)
    assert Path(name).name in page.text
    assert "✗ Failed" not in page.text
    if name != "steps.json":
        assert "warning" in worst.values()


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
    assert worst["calibration"] == "failed" and "outside of calib/" in page.text


@pytest.mark.parametrize(("status", "word"), [("warning", "Nothing failed"), ("failed", "✗ Failed")])
def test_checks_and_steps_decide_the_verdict(workdir, tiny, status, word):
    check = {"name": "disk", "status": status, "detail": "3 GB free", "remedy": "free 40 GB"}
    change(workdir / "preflight.json", lambda value: value["checks"].append(check))
    page, worst = report(tiny, workdir)
    assert worst["checks"] == status and word in page.text and "free 40 GB" in page.text
    change(workdir / "steps.json", lambda steps: steps[0].update(returncode=9))
    assert report(tiny, workdir)[1]["timings"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/none"], "none"),
        (["{ckpt}", "--workdir", "{tmp}/none"], "no such directory"),
        (["{ckpt}", "--workdir", "{tmp}", "--preflight", "{tmp}/none.json"], "no such file"),
        (["{ckpt}", "--workdir", "{tmp}", "--output", "{tmp}/none/report.html"], "No such file or directory"),
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
    assert make_report.build_parser().parse_args(["x"]).output is None


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
    assert error_map(np.zeros((56, 84, 3), np.uint8), errors, scale).size == (84, 56)


def test_figures_are_written_for_people():
    assert format_cosine(1.0) == "1" and format_cosine(0.5) == "0.50000"
    assert format_cosine(1 - 2e-9) == "1 − 2.0e-09" and format_cosine(float("nan")) == "nan"
    assert (format_bytes(None), format_bytes(999), format_bytes(2.5e9)) == ("–", "999 B", "2.50 GB")


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
