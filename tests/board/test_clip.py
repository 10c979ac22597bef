"""OUT/check/: the frames and the host's answers, and the board's part played by a stand-in from what was packaged."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import check_board
import package_model
import preflight
import test_onnx_video_by_sec
from preprocess import unpatchify
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.language.chat import LanguageModel, Prompt
from tests.board import runtime
from tests.board.stand_in import StandIn
from tests.conftest import run_main
from tests.talking import capture_and_export, make_talking

QUESTIONS = ["what moves?", "描述这个视频."]
TOKENS = 8
OTHER_CLIP = {"pixels.npy": 64 * "0"}
SLOW = {"second_per_grid_ts": 600.0, "sample_fps": 2 / 600}  # fields of a capture


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    return make_talking(tmp_path_factory.mktemp("clip") / "talking")


@pytest.fixture(scope="module")
def checked(talking, frames_dir, tmp_path_factory) -> Path:
    """A work directory after step 3: five frames, so that the last one fills its step alone."""
    workdir, frames = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("frames")
    for path in sorted(frames_dir.iterdir())[:5]:
        shutil.copy(path, frames)
    capture_and_export(talking, workdir, frames, size=(84, 112))
    flags = ("--generate", "--dtype", "float32", "--device", "cpu", "--max-new-tokens", TOKENS)
    argv = [talking, *flags, "--prompt", *QUESTIONS, "--workdir", workdir]
    assert test_onnx_video_by_sec.main([str(argument) for argument in argv]) == 0
    return workdir


@pytest.fixture
def workdir(checked, tmp_path) -> Path:
    return Path(shutil.copytree(checked, tmp_path / "work"))


def package(capsys, checkpoint: Path, workdir: Path, out: Path) -> str:
    code, printed, err = run_main(package_model.main, capsys, checkpoint, out, "--workdir", workdir)
    assert (code, err) == (0, ""), err
    return printed


def record_of(out: Path) -> dict:
    return json.loads((out / "check" / "check.json").read_text(encoding="utf-8"))


def test_frames_and_answers(talking, workdir, tmp_path, capsys):
    out = tmp_path / "out"
    package(capsys, talking, workdir, out)
    record = record_of(out)
    pictures = runtime.frame_files(out / "check")
    assert [path.name for path in pictures] == record["frames"] == [f"{number:04d}.png" for number in range(5)]
    seen = unpatchify(np.load(workdir / "pixels.npy"), 84, 112)
    for path, frame in zip(pictures, seen, strict=False):
        with Image.open(path) as image:
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), frame)
    fidelity = json.loads((workdir / "fidelity.json").read_text(encoding="utf-8"))
    assert (record["checkpoint"], record["settings"]) == (talking.name, "video84x112")
    assert [question["prompt"] for question in record["questions"]] == QUESTIONS
    for question, entry in zip(record["questions"], fidelity["text"], strict=True):
        assert question["transformers"] == {"text": entry["reference"], "token_ids": entry["reference_ids"]}
        assert question["onnx"] == {"text": entry["onnx"], "token_ids": entry["onnx_ids"]}
        assert len(entry["reference_ids"]) == entry["tokens"] and question["complete"] is entry["complete"]
    listed = {entry["path"] for entry in json.loads((out / "manifest.json").read_text())["files"]}
    assert {"check/check.json", "check/0000.png", "check/0004.png", "check_board.py"} <= listed
    assert run_main(package_model.main, capsys, "--check", out)[0] == 0


def test_the_bytes_are_the_same_each_time(talking, workdir, tmp_path, capsys):
    package(capsys, talking, workdir, tmp_path / "one")
    package(capsys, talking, workdir, tmp_path / "two")
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n / "check").iterdir()} for n in ("one", "two"))
    assert first == second


class Board:
    """What the runtime would do with a package, by its arithmetic: the graph in the compiled model's place."""

    def __init__(self, out: Path, workdir: Path, checkpoint: Path):
        (directory,) = out.glob("video*")
        self.settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.tower = OnnxTower(workdir / f"{checkpoint.name}_vision_uint8.onnx")
        self.model = LanguageModel(checkpoint, "float32", "cpu")

    def __call__(self, pictures: list[bytes], question: str) -> str:
        shape = self.tower.session.get_inputs()[0].shape
        size = runtime.infer_size(int(np.prod(shape)), self.settings)
        frames = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures]
        assert all(frame.shape[:2] == size for frame in frames)
        runs = runtime.cut_patches(frames, self.settings)
        features = [self.tower.step(np.frombuffer(run, np.uint8).reshape(shape[1:])) for run in runs]
        patch = self.settings["vision_patch_size"]
        grid = (len(runs), size[0] // patch, size[1] // patch)
        text = runtime.prompt_text(question, sum(map(len, features)), self.settings)
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        axes = runtime.positions(ids, self.model.config.video_token_id, grid, self.settings)
        prompt = Prompt(question, np.array(ids), np.array(axes)[:, None], axes[0][-1] + 1)
        return self.model.text(self.model.generate(prompt, np.concatenate(features), TOKENS))


@pytest.mark.parametrize("upload", [[], ["--upload"]], ids=["path", "pictures"])
def test_a_package_answers_with_the_hosts_tokens(talking, workdir, tmp_path, capsys, upload):
    """From the packaged files alone: settings, frames, questions. The patches that the graph gets are the capture's."""
    out = tmp_path / "out"
    package(capsys, talking, workdir, out)
    board = Board(out, workdir, talking)
    with StandIn(board, model=talking.name) as stand_in:
        code, printed, err = run_main(check_board.main, capsys, stand_in.url, "--check", out / "check", *upload)
    assert (code, err) == (0, ""), printed
    assert "2 of 2 answers are transformers' own" in printed


def test_a_board_that_reads_the_frames_wrongly_is_noticed(talking, workdir, tmp_path, capsys):
    out = tmp_path / "out"
    package(capsys, talking, workdir, out)
    board = Board(out, workdir, talking)
    for change in ({"vision_fps": 1, "vision_tokens_per_second": 9}, {"system_prompt": ""}):
        settings, board.settings = board.settings, board.settings | change
        with StandIn(board, model=talking.name) as stand_in:
            code, printed, _ = run_main(check_board.main, capsys, stand_in.url, "--check", out / "check")
        board.settings = settings
        assert code == 1 and "first difference" in printed, change


# What does not fit


def test_a_shorter_clip_leaves_no_frames_behind(talking, workdir, tmp_path, capsys):
    out = tmp_path / "out"
    package(capsys, talking, workdir, out)
    for name in ("0005.png", "0006.png", "mine.txt"):
        (out / "check" / name).write_text(name)
    entry = {"path": "check/0005.png", "bytes": 8, "sha256": hashlib.sha256(b"0005.png").hexdigest()}
    change(out / "manifest.json", lambda manifest: manifest["files"].append(entry))  # as of a longer clip
    printed = package(capsys, talking, workdir, out)
    assert not (out / "check" / "0005.png").exists()
    assert (out / "check" / "0006.png").exists() and (out / "check" / "mine.txt").exists()
    assert "check/0006.png is none of ours" in printed


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (lambda work: (work / "fidelity.json").unlink(), "no fidelity.json"),
        (lambda work: change(work / "fidelity.json", lambda value: value["text"].clear()), "--generate"),
        (
            lambda work: change(work / "fidelity.json", lambda value: value["made_from"].update(OTHER_CLIP)),
            "about other files: pixels.npy has changed",
        ),
    ],
)
def test_without_answers(talking, workdir, tmp_path, capsys, prepare, word):
    """The questions travel, and check_board.py passes nothing."""
    prepare(workdir)
    printed = package(capsys, talking, workdir, tmp_path / "out")
    assert word in printed and "--generate" in printed
    assert {question["transformers"] for question in record_of(tmp_path / "out")["questions"]} == {None}
    with StandIn(lambda frames, question: "x", model=talking.name) as stand_in:
        check = tmp_path / "out" / "check"
        code, _, err = run_main(check_board.main, capsys, stand_in.url, "--check", check)
    assert code == 2 and "nothing was compared" in err


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (lambda work: (work / "pixels.npy").unlink(), "no pixels.npy"),
        (lambda work: change(work / "capture.json", lambda value: value.update(checkpoint="other")), "made from other"),
        (lambda work: [path.unlink() for path in work.glob("*.onnx")], "no vision model of the captured size"),
    ],
)
def test_without_frames(talking, workdir, tmp_path, capsys, prepare, word):
    prepare(workdir)
    printed = package(capsys, talking, workdir, tmp_path / "out")
    assert f"warning: no frames for check_board.py: {word}" in printed.replace("the capture was ", "")
    assert not (tmp_path / "out" / "check").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["text"][0].pop("reference_ids"),
        lambda value: value.pop("made_from"),
        lambda value: value["text"][0].update(reference=3),
        lambda value: value["text"][0].update(onnx_ids=["1"]),
        lambda value: value["text"][0].update(complete=1),
        lambda value: value.update(text=3),
    ],
)
def test_a_fidelity_file_that_is_none(talking, workdir, tmp_path, capsys, edit):
    change(workdir / "fidelity.json", edit)
    code, _, err = run_main(package_model.main, capsys, talking, tmp_path / "out", "--workdir", workdir)
    assert (
        code == 2
        and "fidelity.json: " in err
        and "run test_onnx_video_by_sec.py again" in err
        and len(err.splitlines()) == 1
    )


def test_pixels_of_another_clip(talking, workdir, tmp_path, capsys):
    change(workdir / "capture.json", lambda value: value["indices"].pop(0) or value["indices"].pop(0))
    code, _, err = run_main(package_model.main, capsys, talking, tmp_path / "out", "--workdir", workdir)
    assert code == 2 and "indices do not make the 3 steps" in err


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda capture, fidelity: fidelity["text"][0].update(prompt="Query: x"), "before the frames"),
        (lambda capture, fidelity: fidelity.update(passed=False), "the graph failed"),
        (lambda capture, fidelity: capture.update(SLOW), "is at position 2400"),
    ],
)
def test_warnings(talking, workdir, tmp_path, capsys, edit, word):
    capture, fidelity = (json.loads((workdir / name).read_text()) for name in ("capture.json", "fidelity.json"))
    edit(capture, fidelity)
    (workdir / "capture.json").write_text(json.dumps(capture))
    (workdir / "fidelity.json").write_text(json.dumps(fidelity))
    assert word in package(capsys, talking, workdir, tmp_path / "out")


def test_preflight_warns_of_a_clip_that_lasts_too_long(talking, workdir, capsys):
    change(workdir / "capture.json", lambda value: value.update(SLOW))
    _, out, _ = run_main(preflight.main, capsys, talking, "--workdir", workdir)
    assert "WARNING clip length" in out and "position 2400" in out
    _, out, _ = run_main(preflight.main, capsys, talking, "--workdir", workdir, "--kv-cache-len", 2600)
    assert "clip length" not in out


@pytest.mark.parametrize("name", ["video84x112", "check"])
def test_a_linked_directory_is_refused(talking, workdir, tmp_path, capsys, name):
    out = tmp_path / "out"
    package(capsys, talking, workdir, out)
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    code, _, err = run_main(package_model.main, capsys, talking, out, "--workdir", workdir)
    assert code == 2 and f"{name} is a link" in err


def test_the_checkpoint_is_refused_before_anything_is_read(tmp_path, capsys):
    """Neither the checkpoint nor the work directory is looked at: both are missing here."""
    checkpoint = tmp_path / "absent"
    for out, words in ((checkpoint, "checkpoint itself"), (checkpoint / "out", "within the checkpoint")):
        code, _, err = run_main(package_model.main, capsys, checkpoint, out, "--workdir", tmp_path / "no workdir")
        assert code == 2 and words in err and not checkpoint.exists()
    with pytest.raises(Exception, match="absent"):
        Checkpoint(checkpoint)
