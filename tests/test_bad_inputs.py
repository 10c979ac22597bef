"""Bad input over all scripts: exit code 2, one clear line, nothing written, nothing lost.

Each case damages a copy of a good checkpoint or work directory and says what the line must name.
"""

import importlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_vl_axera import cli

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tiny_dir, frames_dir, tmp_path_factory):
    """A checkpoint with capture, graphs and calibration set."""
    base = tmp_path_factory.mktemp("good")
    shutil.copytree(tiny_dir, base / "ckpt")
    shutil.copytree(frames_dir, base / "frames")
    work = base / "work"
    for command in (
        ["run_video_by_sec", base / "ckpt", "--video", base / "frames", "--size", "56", "84", "--workdir", work],
        ["export", base / "ckpt", "video", "--workdir", work],
        ["get_calib", "--inputs", base / "frames", "--workdir", work],
    ):
        assert call(*command) == 0
    return base


@pytest.fixture
def world(good, tmp_path, monkeypatch):
    """A copy of it to damage; the current directory."""
    for name in ("ckpt", "frames", "work"):
        shutil.copytree(good / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(script: str, *arguments) -> int:
    try:
        return cli.run(importlib.import_module(script).main, [str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse
        return exit.code


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def change_config(**fields) -> Callable[[], None]:
    def damage():
        config = json.loads(Path("ckpt/config.json").read_text())
        Path("ckpt/config.json").write_text(json.dumps(config | fields))

    return damage


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[], None]:
    def damage():
        tensors = load_file(f"ckpt/{SHARD}")
        tensors[name] = change(tensors[name])
        save_file({key: value for key, value in tensors.items() if value is not None}, f"ckpt/{SHARD}")

    return damage


def write(path: str, data: bytes | str) -> Callable[[], None]:
    def damage():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data.encode() if isinstance(data, str) else data)

    return damage


def cut(path: str, keep: float) -> Callable[[], None]:
    def damage():
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: int(len(data) * keep)])

    return damage


def remove(path: str) -> Callable[[], None]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


class Exploit:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return (open, ("exploited", "w"))


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[-1] = float("nan")
    return tensor


CAPTURE = ["run_video_by_sec", "ckpt", "--video", "frames", "--size", "56", "84", "--workdir", "work"]
EXPORT = ["export", "ckpt", "video", "--workdir", "work"]
CHECK = ["test_onnx_video_by_sec", "ckpt", "--workdir", "work"]
CALIB = ["get_calib", "--inputs", "frames", "--workdir", "work"]
EMBED = ["extract_embedding", "ckpt", "out"]
QKV = "visual.blocks.0.attn.qkv.weight"
EMBEDDING = "model.embed_tokens.weight"


def video(*paths: str) -> list[str]:
    return ["run_video_by_sec", "ckpt", "--video", *paths, "--workdir", "work"]


# name: (damage, command, a word of the line)
CASES: dict[str, tuple[Callable[[], object], list[str], str]] = {
    # the checkpoint, seen by every script that reads it
    "no such checkpoint": (remove("ckpt"), CAPTURE, "ckpt"),
    "checkpoint is a file": (lambda: (remove("ckpt")(), write("ckpt", "x")()), EXPORT, "directory"),
    "empty checkpoint": (lambda: (remove("ckpt")(), Path("ckpt").mkdir()), EXPORT, "config.json"),
    "config is empty": (write("ckpt/config.json", ""), EXPORT, "config.json"),
    "config is binary": (write("ckpt/config.json", bytes(range(256))), EXPORT, "config.json"),
    "config is a list": (write("ckpt/config.json", "[]"), CAPTURE, "object"),
    "another model": (change_config(model_type="llama"), EXPORT, "llama"),
    "no vision_config": (change_config(vision_config=None), EXPORT, "vision_config"),
    "vision_config is text": (change_config(vision_config="yes"), CAPTURE, "vision_config"),
    "depth is text": (change_config(vision_config={"depth": "four"}), EXPORT, "vision_config."),
    "no hidden size": (change_config(hidden_size=None), EMBED, "hidden_size"),
    "index is broken": (write(f"ckpt/{INDEX}", "{"), EXPORT, INDEX),
    "index without map": (write(f"ckpt/{INDEX}", "{}"), EXPORT, "weight_map"),
    "index leaves the directory": (write(f"ckpt/{INDEX}", '{"weight_map": {"a": "../x"}}'), EXPORT, "../x"),
    "shard absent": (remove(f"ckpt/{SHARD}"), CAPTURE, SHARD),
    "shard absent, embedding": (remove(f"ckpt/{SHARD}"), EMBED, SHARD),
    "shard empty": (write(f"ckpt/{SHARD}", b""), EXPORT, "safetensors"),
    "shard truncated in the header": (cut(f"ckpt/{SHARD}", 0.001), EXPORT, SHARD),
    "shard truncated in the data": (cut(f"ckpt/{SHARD}", 0.9), EXPORT, "truncated"),
    "shard truncated, embedding": (cut(f"ckpt/{SHARD}", 0.9), EMBED, "truncated"),
    "shard is a pickle": (lambda: torch.save({"x": torch.ones(3)}, f"ckpt/{SHARD}"), EXPORT, "safetensors"),
    "shard is HTML": (write(f"ckpt/{SHARD}", "<html>" * 100), CAPTURE, "safetensors"),
    "only a pickle": (
        lambda: (remove(f"ckpt/{SHARD}")(), remove(f"ckpt/{INDEX}")(), write("ckpt/pytorch_model.bin", "x")()),
        EXPORT,
        "pickle",
    ),
    "vision tensor missing": (change_tensor(QKV, lambda tensor: None), EXPORT, "blocks.0.attn.qkv"),
    "vision tensor missing, capture": (change_tensor(QKV, lambda tensor: None), CAPTURE, "blocks.0.attn.qkv"),
    "vision tensor of another shape": (change_tensor(QKV, lambda tensor: tensor[:-1]), EXPORT, "shape"),
    "vision tensor of integers": (change_tensor(QKV, lambda tensor: tensor.int()), EXPORT, "I32"),
    "vision tensor with NaN": (change_tensor(QKV, nan), EXPORT, "NaN"),
    "vision tensor with NaN, capture": (change_tensor(QKV, nan), CAPTURE, "NaN"),
    "embedding missing": (change_tensor(EMBEDDING, lambda tensor: None), EMBED, "embed_tokens"),
    "embedding of another shape": (change_tensor(EMBEDDING, lambda tensor: tensor[:-1].clone()), EMBED, "shape"),
    "embedding of integers": (change_tensor(EMBEDDING, lambda tensor: tensor.int()), EMBED, "I32"),
    # media
    "no such video": (lambda: None, video("no such.mp4"), "no such.mp4"),
    "video is empty": (write("v.mp4", b""), video("v.mp4"), "v.mp4"),
    "video is text": (write("v.mp4", "not a video\n" * 999), video("v.mp4"), "v.mp4"),
    "video is zeros": (write("v.mp4", bytes(99999)), video("v.mp4"), "v.mp4"),
    "video is a pickle": (write("v.mp4", pickle.dumps(Exploit())), video("v.mp4"), "v.mp4"),
    "directory without pictures": (lambda: Path("none").mkdir(), video("none"), "none"),
    "picture is truncated": (cut("frames/003.png", 0.5), video("frames"), "003.png"),
    "picture is text": (write("frames/000.png", "x"), video("frames"), "000.png"),
    "dangling link": (lambda: Path("v.mp4").symlink_to("gone.mp4"), video("v.mp4"), "v.mp4"),
    "link to itself": (lambda: Path("v.mp4").symlink_to("v.mp4"), video("v.mp4"), "v.mp4"),
    "hostile name": (write("a\nb'\"$(id).mp4", "x"), video("a\nb'\"$(id).mp4"), "b'"),
    "zero frames": (lambda: None, [*video("frames"), "--num-frames", "0"], "num-frames"),
    "negative rate": (lambda: None, [*video("frames"), "--fps", "-1"], "fps"),
    "rate is no number": (lambda: None, [*video("frames"), "--fps", "nan"], "fps"),
    "sides no multiples of 28": (lambda: None, [*video("frames"), "--size", "300", "300"], "308"),
    "side of zero": (lambda: None, [*video("frames"), "--size", "0", "28"], "28"),
    "no room for a token": (lambda: None, [*video("frames"), "--max-pixels", "10"], "pixels"),
    # the export and what it finds in the work directory
    "no capture and no size": (remove("work/capture.json"), EXPORT, "run_video_by_sec.py"),
    "capture of another size": (lambda: None, [*EXPORT, "--size", "140", "252"], "56x84"),
    "export, sides no multiples": (lambda: None, ["export", "ckpt", "image", "--size", "30", "28"], "28"),
    "capture is broken": (write("work/capture.json", "{"), EXPORT, "capture.json"),
    "capture is incomplete": (write("work/capture.json", '{"size": [56, 84]}'), EXPORT, "run_video_by_sec.py"),
    "layout file missing": (remove("work/window_index.pth"), EXPORT, "window_index.pth"),
    "layout file is a hostile pickle": (
        lambda: Path("work/window_index.pth").write_bytes(pickle.dumps(Exploit())),
        EXPORT,
        "window_index.pth",
    ),
    "layout file holds an object": (
        lambda: torch.save({"exploit": Exploit()}, "work/window_index.pth"),
        EXPORT,
        "window_index.pth",
    ),
    # the fidelity gate
    "gate without capture": (remove("work/capture.json"), CHECK, "run_video_by_sec.py"),
    "gate without pixels": (remove("work/pixels.npy"), CHECK, "pixels.npy"),
    "gate without oracle": (remove("work/vit_out.npy"), CHECK, "vit_out.npy"),
    "gate without graph": (remove("work/ckpt_vision.onnx"), CHECK, "export.py"),
    "gate without weights": (remove("work/ckpt_vision.onnx.data"), CHECK, "ckpt_vision"),
    "gate, weights truncated": (cut("work/ckpt_vision.onnx.data", 0.5), CHECK, "ckpt_vision"),
    "gate, graph truncated": (cut("work/ckpt_vision.onnx", 0.5), CHECK, "ckpt_vision.onnx"),
    "gate, graph is text": (write("work/ckpt_vision.onnx", "x"), CHECK, "ckpt_vision.onnx"),
    "gate, pixels truncated": (cut("work/pixels.npy", 0.5), CHECK, "pixels.npy"),
    "gate, pixels of another dtype": (
        lambda: np.save("work/pixels.npy", np.zeros((3, 24, 392, 3), np.float32)),
        CHECK,
        "pixels.npy",
    ),
    "gate, pixels are objects": (
        lambda: np.save("work/pixels.npy", np.array([Exploit()], object), allow_pickle=True),
        CHECK,
        "pixels.npy",
    ),
    "gate, oracle of another length": (
        lambda: np.save("work/vit_out.npy", np.zeros((1, 48), np.float32)),
        CHECK,
        "vit_out.npy",
    ),
    "gate, another checkpoint's capture": (
        lambda: os.rename("ckpt", "other"),
        [CHECK[0], "other", *CHECK[2:]],
        "other",
    ),
    # calibration
    "calibration without inputs": (lambda: None, ["get_calib", "--inputs", "gone", "--workdir", "work"], "gone"),
    "calibration of text": (
        write("t.mp4", "x" * 999),
        ["get_calib", "--inputs", "t.mp4", "--workdir", "work"],
        "t.mp4",
    ),
    "calibration, no samples": (lambda: None, [*CALIB, "--num-samples", "0"], "num-samples"),
    "calibration, odd size": (lambda: None, [*CALIB, "--size", "57", "84"], "28"),
    "calibration, capture broken": (
        write("work/capture.json", "[]"),
        ["get_calib", "--workdir", "work"],
        "capture.json",
    ),
    # places
    "workdir is a file": (write("file", "x"), [*EXPORT[:3], "--size", "56", "84", "--workdir", "file"], "file"),
    "output directory is a file": (write("out", "x"), EMBED, "out"),
    "unknown flag": (lambda: None, [*EXPORT, "--no-such-flag"], "--no-such-flag"),
    "unknown opset": (lambda: None, [*EXPORT, "--opset", "99"], "opset"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(world, capsys, name):
    damage, command, word = CASES[name]
    damage()
    before = contents(world)
    capsys.readouterr()

    code = call(*command)

    captured = capsys.readouterr()
    assert code == 2, captured
    assert len(captured.err.rstrip("\n").splitlines()) == 1, captured.err
    assert word in captured.err
    assert "Traceback" not in captured.err
    after = contents(world)
    assert {path: data for path, data in after.items() if path in before} == before, "a file was changed or lost"
    assert not [path for path in after if path not in before], "something half-written was left"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written(world, capsys):
    (world / "work").chmod(0o555)
    assert call(*EXPORT) == 2
    assert "work" in capsys.readouterr().err
