"""Step 1 as a user runs it: the files, the text, bad input."""

import json
import os
import shutil
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import run_video_by_sec
from qwen_vl_axera.checkpoint.config import load_config
from qwen_vl_axera.contract import DESCRIBE, STEP_PATCHES
from qwen_vl_axera.language.chat import build_prompt, load_tokenizer
from qwen_vl_axera.oracle import record as capture
from qwen_vl_axera.towers import find_tower
from tests.conftest import run_main
from tests.talking import make_talking, names

FILES = {
    "hidden_states.pth",
    "rotary_pos_emb.pth",
    "cu_seqlens.pth",
    "cu_window_seqlens.pth",
    "window_index.pth",
    "pixels.npy",
    "vit_out.npy",
    "vit_exact.npy",
    "capture.json",
}
# frames_dir: six frames of 320x240 -> three steps of 252x308, 18x22 patches, 9x11 tokens
STEPS, ROWS, COLUMNS = 3, 18, 22
S = ROWS * COLUMNS
EXACT_STEPS = [1, 2]  # the most varied and the flattest
HOSTILE = '-it\'s a "clip" $(x) 视频'


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return make_talking(tmp_path_factory.mktemp("talking") / "tiny")


@pytest.fixture(scope="module")
def workdir(run_script, tiny_dir, frames_dir, tmp_path_factory):
    """A work directory that did not exist, in a path that a careless script stumbles over."""
    directory = tmp_path_factory.mktemp("run") / HOSTILE / "work"
    done = run_script("run_video_by_sec.py", tiny_dir, "--video", frames_dir, "--workdir", directory, "--fps", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 frames of 252x308 at 2 fps: 3 steps of 18x22 patches, 297 tokens" in done.stdout
    return directory


run = partial(run_main, run_video_by_sec.main)


def test_files(workdir):
    assert names(workdir) == FILES


def test_the_demo_clip_is_announced(tiny_dir, tmp_path, capsys):
    code, _, errors = run(capsys, tiny_dir, "--num-frames", 2, "--size", 56, 56, "--workdir", tmp_path)
    assert code == 0 and "no --video: the demo clip" in errors


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("hidden_states", (1, 3, S, 392), torch.float32),
        ("rotary_pos_emb", (S, 8), torch.float32),
        ("cu_seqlens", (2,), torch.int32),
        ("cu_window_seqlens", (10,), torch.int32),
        ("window_index", (S // 4,), torch.int64),
    ],
)
def test_tensors(workdir, name, shape, dtype):
    tensor = torch.load(workdir / f"{name}.pth", weights_only=True)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)


def test_layout_of_a_step(workdir):
    load = lambda name: torch.load(workdir / f"{name}.pth", weights_only=True)  # noqa: E731
    assert load("cu_seqlens").tolist() == [0, S]
    windows = load("cu_window_seqlens")
    assert windows[-1] == S
    # 9x11 tokens in windows of 4x4: 4+4+1 by 4+4+3
    assert windows.diff().tolist() == [4 * rows * columns for rows in (4, 4, 1) for columns in (4, 4, 3)]
    assert sorted(load("window_index").tolist()) == list(range(S // 4))


def test_arrays(workdir):
    pixels = np.load(workdir / "pixels.npy", allow_pickle=False)
    features = np.load(workdir / "vit_out.npy", allow_pickle=False)
    assert (pixels.shape, pixels.dtype) == ((STEPS, S, 392, 3), np.uint8)
    assert (features.shape, features.dtype) == ((STEPS * S // 4, 48), np.float32)
    hidden = torch.load(workdir / "hidden_states.pth", weights_only=True).numpy()
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (pixels[0] / 255 - mean) / std  # the first step's
    np.testing.assert_allclose(hidden[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_features_are_transformers_answer_for_the_whole_clip(workdir, tiny_dir):
    pixels = np.load(workdir / "pixels.npy")
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    rows = ((pixels / 255 - mean) / std).transpose(0, 1, 3, 2).reshape(STEPS * S, 1176).astype(np.float32)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_dir).float().eval()
    tower = model.visual if hasattr(model, "visual") else model.model.visual
    with torch.no_grad():
        output = tower(torch.from_numpy(rows), grid_thw=torch.tensor([[STEPS, ROWS, COLUMNS]]))
    expected = (output if isinstance(output, torch.Tensor) else output.pooler_output).numpy()
    error = np.abs(np.load(workdir / "vit_out.npy") - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_the_exact_answer_is_transformers_in_float64(workdir, tiny_dir):
    """transformers' own model, all of it in float64; it casts to float32 in places, which costs a digit or two."""
    pixels, exact = np.load(workdir / "pixels.npy"), np.load(workdir / "vit_exact.npy")
    assert (exact.shape, exact.dtype) == ((2, S // 4, 48), np.float64)
    assert sorted([int(np.argmin(pixels.std((1, 2, 3)))), int(np.argmax(pixels.std((1, 2, 3))))]) == EXACT_STEPS
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    rows = ((pixels[EXACT_STEPS] / 255 - mean) / std).transpose(0, 1, 3, 2).reshape(2 * S, 1176)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_dir).double().eval()
    tower = model.visual if hasattr(model, "visual") else model.model.visual
    with torch.no_grad():
        output = tower(torch.from_numpy(rows), grid_thw=torch.tensor([[2, ROWS, COLUMNS]]))
    expected = (output if isinstance(output, torch.Tensor) else output.pooler_output).numpy()
    oracle = np.load(workdir / "vit_out.npy").reshape(STEPS, S // 4, 48)[EXACT_STEPS]
    rounding = np.linalg.norm(oracle - exact)
    assert 1e-8 < rounding / np.linalg.norm(exact) < 1e-5
    assert np.linalg.norm(expected.reshape(exact.shape) - exact) < rounding / 2


def test_capture(workdir, frames_dir):
    raw = json.loads((workdir / "capture.json").read_text(encoding="utf-8"))
    versions = raw.pop("versions")
    assert set(raw.pop("made_from")) == FILES - {"capture.json"}
    assert raw == {
        "size": [252, 308],
        "grid_thw": [STEPS, ROWS, COLUMNS],
        "kind": "frames",
        "source": [str(frames_dir)],
        "indices": [0, 1, 2, 3, 4, 5],
        "sample_fps": 2.0,
        "second_per_grid_ts": 1.0,
        "exact_steps": EXACT_STEPS,
        "checkpoint": "tiny",
    }
    assert versions["transformers"] == version("transformers")
    assert versions["torch"] == version("torch")


def test_the_same_clip_gives_the_same_bytes(workdir, run_script, tiny_dir, frames_dir, tmp_path):
    # In a process of its own, too: the libraries loaded before torch decide the order in which it hashes file names.
    done = run_script("run_video_by_sec.py", tiny_dir, "--video", frames_dir, "--fps", 2, "--workdir", tmp_path)
    assert done.returncode == 0
    answers = {"vit_out.npy", "vit_exact.npy"}  # threads decide their last digits
    for name in FILES - answers - {"capture.json"}:
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes(), name
    one, other = (json.loads((place / "capture.json").read_text()) for place in (tmp_path, workdir))
    assert set(one["made_from"]) == set(other["made_from"]) == FILES - {"capture.json"}
    for name in answers:
        del one["made_from"][name], other["made_from"][name]
    assert one == other


def test_a_view_is_saved_without_the_memory_behind_it(workdir, tmp_path):
    """transformers' window bounds are a view of a larger buffer, whose rest is whatever lay there."""
    saved = capture.read_capture(workdir)
    layout = {name: torch.zeros(4)[:2] for name in (STEP_PATCHES, *find_tower("qwen2_5_vl").layout_tensors)}
    arrays = (np.load(workdir / f"{name}.npy") for name in ("pixels", "vit_out", "vit_exact"))
    capture.save_capture(tmp_path, saved, *arrays, layout)
    for name in layout:
        tensor = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes == 8


def test_only_the_vision_weights_are_needed(tiny_dir, frames_dir, tmp_path, capsys):
    copy = shutil.copytree(tiny_dir, tmp_path / "tiny")
    (copy / "model.safetensors.index.json").unlink()
    (file,) = copy.glob("*.safetensors")
    save_file({name: value for name, value in load_file(file).items() if name.startswith("visual.")}, file)
    arguments = ("--video", frames_dir, "--size", 56, 84, "--workdir", tmp_path / "work")
    code, out, err = run(capsys, copy, *arguments)
    assert (code, err) == (0, "")
    assert "56x84" in out
    assert names(tmp_path / "work") == FILES


def test_the_default_workdir_is_the_current_directory(capsys, monkeypatch, tiny_dir, frames_dir, tmp_path):
    shutil.copytree(frames_dir, tmp_path / HOSTILE)
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, tiny_dir, "--video", f"./{HOSTILE}", "--size", 56, 56)
    assert (code, error) == (0, "")
    assert names(tmp_path) == FILES | {HOSTILE}
    assert json.loads((tmp_path / "capture.json").read_text(encoding="utf-8"))["source"] == [HOSTILE]


def test_text_is_what_transformers_generates(capsys, talking, frames_dir, tmp_path):
    """One picture, one step: here every version of transformers has the released models' positions."""
    picture = frames_dir / "003.png"
    flags = ("--size", 84, 112, "--workdir", tmp_path, "--generate", "--dtype", "float32", "--max-new-tokens", 12)
    code, out, error = run(capsys, talking, "--video", picture, *flags)
    assert (code, error) == (0, "")
    asked, answered = out.split("\n", 2)[1:]

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(talking).float().eval()
    tokenizer, config = load_tokenizer(talking), load_config(talking)
    prompt = build_prompt(tokenizer, config, DESCRIBE, (1, 6, 8), 2.0)
    ids = torch.from_numpy(prompt.input_ids)[None]
    inputs = {
        "pixel_values_videos": torch.load(tmp_path / "hidden_states.pth", weights_only=True)[0]
        .permute(1, 0, 2)
        .reshape(48, 1176),
        "video_grid_thw": torch.tensor([[1, 6, 8]]),
        "second_per_grid_ts": torch.tensor([2.0]),
    }
    if int(version("transformers").split(".")[0]) >= 5:
        inputs["mm_token_type_ids"] = 2 * (ids == config.video_token_id).int()
    mask = torch.ones_like(ids)
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **inputs)
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert len(expected) > 5
    assert asked == "描述这个视频."
    assert answered.strip() == expected


def test_prompts_of_the_user(capsys, talking, frames_dir, tmp_path):
    flags = ("--generate", "--max-new-tokens", 2, "--prompt", "Describe this video.", "物体在哪里?")
    code, out, _ = run(capsys, talking, "--video", frames_dir, "--size", 56, 56, "--workdir", tmp_path, *flags)
    assert code == 0
    assert [line for line in out.splitlines()[1:] if not line.startswith("  ")][:1] == ["Describe this video."]
    assert "\n物体在哪里?\n" in out


@pytest.fixture(scope="module")
def bad(tmp_path_factory, tiny_dir):
    """A directory of things that go wrong."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "text.mp4").write_text("no video")
    (root / "nothing.mp4").write_bytes(b"")
    (root / "nothing.png").write_bytes(b"")
    Image.new("RGB", (84, 56)).save(root / "good.png")
    (root / "half.png").write_bytes((root / "good.png").read_bytes()[:60])
    Image.new("RGB", (4200, 20)).save(root / "wide.png")
    for name in ("truncated", "no_shard", "text_only", "no_json"):
        shutil.copytree(tiny_dir, root / name)
    (shard,) = (root / "truncated").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5000])
    (shard,) = (root / "no_shard").glob("*.safetensors")
    shard.unlink()
    config = json.loads((tiny_dir / "config.json").read_text())
    del config["vision_config"]
    (root / "text_only" / "config.json").write_text(json.dumps(config))
    (root / "no_json" / "config.json").write_text("{")
    return root


CHECKPOINTS = {
    "absent": "expected a directory with a Qwen2.5-VL checkpoint",
    "empty": "config.json is missing",
    "no_shard": "1 absent: model-00001-of-00001.safetensors",
    "truncated": "truncated",
    "text_only": "no vision_config",
    "no_json": "not readable as JSON",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoints(capsys, bad, tmp_path, name):
    result = run(capsys, bad / name, "--video", bad / "good.png", "--workdir", tmp_path)
    refused(*result, CHECKPOINTS[name])
    assert name in result[2]
    assert names(tmp_path) == set()


INPUTS = {
    "absent file": (["--video", "absent.mp4"], "absent.mp4: no such file"),
    "not a video": (["--video", "text.mp4"], "text.mp4: does not decode"),
    "an empty file": (["--video", "nothing.mp4"], "nothing.mp4"),
    "not a picture": (["--video", "nothing.png"], "nothing.png"),
    "half a picture": (["--video", "good.png", "half.png"], "half.png"),
    "no frames": (["--video", "empty"], "empty"),
    "picture and video": (["--video", "good.png", "text.mp4"], "text.mp4"),
    "too wide": (["--video", "wide.png"], "aspect ratio of 210"),
    "no multiples of 28": (["--video", "good.png", "--size", "308", "300"], "multiples of 28"),
    "nothing left of it": (["--video", "good.png", "--size", "0", "28"], "multiples of 28"),
    "too wide a size": (
        ["--video", "good.png", "--size", "28", "5600"],
        "size 28 5600: expected one side to be below",
    ),
    "too few pixels": (["--video", "good.png", "--max-pixels", "100"], "784"),
    "both sizes": (["--video", "good.png", "--max-pixels", "10000", "--size", "28", "28"], "not allowed with"),
    "half a size": (["--video", "good.png", "--size", "28"], "2 arguments"),
    "both samplings": (["--video", "good.png", "--fps", "1", "--num-frames", "4"], "--num-frames and --fps"),
    "no rate": (["--video", "good.png", "--fps", "0"], "--fps"),
    "not a rate": (["--video", "good.png", "--fps", "nan"], "--fps"),
    "no frames asked for": (["--video", "good.png", "--num-frames", "0"], "--num-frames"),
    "no device": (["--video", "good.png", "--device", "npu9"], "--device npu9"),
    "a file for a workdir": (["--video", "good.png", "--workdir", "good.png"], "expected a directory"),
}


def refused(code, out, err, words):
    """Exit code 2, one line that says what is wrong, no traceback, nothing on stdout."""
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert words in err
    assert out == ""


@pytest.mark.parametrize("case", INPUTS)
def test_bad_input(capsys, monkeypatch, bad, tiny_dir, tmp_path, case):
    monkeypatch.chdir(bad)
    flags, words = INPUTS[case]
    flags = flags if "--workdir" in flags else [*flags, "--workdir", tmp_path]
    refused(*run(capsys, tiny_dir, *flags), words)
    assert names(tmp_path) == set()


def test_bad_input_leaves_an_earlier_capture_alone(capsys, bad, tiny_dir, tmp_path):
    assert run(capsys, tiny_dir, "--video", bad / "good.png", "--workdir", tmp_path)[0] == 0
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert run(capsys, tiny_dir, "--video", bad / "half.png", "--workdir", tmp_path)[0] == 2
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("name", ["capture.json", "pixels.npy", "window_index.pth"])
def test_what_is_no_file_is_not_replaced(capsys, bad, tiny_dir, tmp_path, monkeypatch, name):
    """Said before the work; an earlier capture stays."""
    assert run(capsys, tiny_dir, "--video", bad / "good.png", "--workdir", tmp_path)[0] == 0
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.setattr("qwen_vl_axera.oracle.run.run_clip", None)
    refused(*run(capsys, tiny_dir, "--video", bad / "good.png", "--workdir", tmp_path), f"{name}: would be replaced")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert (tmp_path / name).is_fifo()


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)])
def test_a_capture_that_breaks_off_is_none(capsys, bad, tiny_dir, tmp_path, monkeypatch, error, code):
    """The old capture.json must not describe the new arrays: it goes first and comes last."""
    assert run(capsys, tiny_dir, "--video", bad / "good.png", "--workdir", tmp_path)[0] == 0

    def full_disk(path, array):
        raise error

    monkeypatch.setattr(capture, "write_array", full_disk)
    ended, _, err = run(capsys, tiny_dir, "--video", bad / "good.png", "--size", 28, 28, "--workdir", tmp_path)
    assert ended == code
    assert len(err.strip().splitlines()) == 1
    assert names(tmp_path) == FILES - {"capture.json"}


def test_generate_without_a_tokenizer(capsys, bad, tiny_dir, tmp_path):
    copy = shutil.copytree(tiny_dir, tmp_path / "tiny")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / name).unlink()
    code, _, err = run(capsys, copy, "--video", bad / "good.png", "--generate", "--workdir", tmp_path / "work")
    assert code == 2
    assert "no tokenizer.json" in err
    assert len(err.splitlines()) == 1
