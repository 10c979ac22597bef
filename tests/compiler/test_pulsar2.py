"""The compiler's command lines: as documented, and refused where their numbers contradict each other."""

import os
from pathlib import Path

import numpy as np
import pytest

from qwen_vl_axera.compiler.pulsar2 import build_command, llm_build_command, run_command, version
from qwen_vl_axera.compiler.tool import Tool, execute
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.compiler.running import CONFIG, HERE, MISSING, cli


def test_build_as_documented(make_workdir):
    make_workdir(graph="Qwen2.5-VL-3B-Instruct_vision.onnx")
    Path("config_video.json").write_bytes(CONFIG.read_bytes())
    command = build_command(MISSING, Path("Qwen2.5-VL-3B-Instruct_vision.onnx"), Path("config_video.json"))
    assert command.line() == (
        "pulsar2 build --input Qwen2.5-VL-3B-Instruct_vision.onnx --config config_video.json --output_dir build-output "
        "--output_name Qwen2.5-VL-3B-Instruct_vision.axmodel --target_hardware AX650 --compiler.check 0"
    )


def test_llm_build_as_documented(make_workdir, tiny_dir):
    make_workdir()
    checkpoint = Path(os.path.relpath(tiny_dir))
    command = llm_build_command(MISSING, checkpoint, Path("../tiny-AX650"))
    assert command.line() == (
        f"pulsar2 llm_build --input_path {checkpoint} --output_path ../tiny-AX650 --kv_cache_len 1023 "
        "--hidden_state_type bf16 --prefill_len 512 --parallel 32 --chip AX650"
    )


def test_llm_build_in_chunks(tiny_dir):
    command = llm_build_command(
        MISSING, tiny_dir, Path("out"), prefill_len=128, parallel=4, last_kv_cache_len=[128, 256, 384, 512]
    )
    lengths = [command.argv[at + 1] for at, word in enumerate(command.argv) if word == "--last_kv_cache_len"]
    assert lengths == ["128", "256", "384", "512"]
    assert command.argv[command.argv.index("--prefill_len") + 1] == "128"
    assert command.argv[command.argv.index("--parallel") + 1] == "4"


def test_llm_build2_as_in_the_manual(tiny_dir):
    argv = llm_build_command(MISSING, tiny_dir, Path("out"), build2=True, prefill_step_size=128).argv
    assert argv[:2] == ["pulsar2", "llm_build2"]
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    assert (options["--max_context"], options["--prefill_len"], options["--prefill_step_size"]) == (
        "1024",
        "512",
        "128",
    )
    assert "--kv_cache_len" not in options


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"prefill_len": 1024}, "does not fit a kv cache of 1023"),
        ({"last_kv_cache_len": [128, 2048]}, "does not fit a kv cache of 1023"),
        ({"last_kv_cache_len": [256, 128]}, "rising"),
        ({"last_kv_cache_len": [128, 128]}, "rising"),
        ({"prefill_len": 0}, "above 0"),
        ({"parallel": -1}, "above 0"),
        ({"last_kv_cache_len": [0]}, "above 0"),
        ({"build2": True, "last_kv_cache_len": [128]}, "knows no --last-kv-cache-len"),
        ({"prefill_step_size": 128}, "belongs to llm_build2"),
        ({"chip": "AX8850"}, "expected one of AX650"),
    ],
)
def test_contradicting_numbers_are_refused(tiny_dir, numbers, words):
    with pytest.raises(InputError, match=words):
        llm_build_command(MISSING, tiny_dir, Path("out"), **numbers)


def test_unknown_hardware_is_refused():
    with pytest.raises(InputError, match="'AX651': expected one of AX650"):
        build_command(MISSING, Path("x.onnx"), CONFIG, chip="AX651")


def test_version(tmp_path):
    assert version(HERE) == "version: 0.0-stand-in, commit: 0000000"
    done = cli("version")
    assert (done.returncode, done.stdout) == (0, "version: 0.0-stand-in\ncommit: 0000000\n")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(CheckFailed, match=r"\(exit code 3\): no licence"):
        version(Tool("command", str(broken)))
    broken.write_text("no program at all")
    with pytest.raises(CheckFailed, match="does not start"):
        version(Tool("command", str(broken)))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2026-01-31 12:00:00.123 | INFO | version: 7.0", "| INFO | version: 7.0"),
        ("2026-01-31T09:12:00+08:00 version: 7.0", "version: 7.0"),
        ("version: 7.0\nstarted Sat Jan 31 12:00:00 UTC 2026", "version: 7.0, started"),
        ("version: 7.0 1769860800\ncommit: 1234567890123456789a", "version: 7.0, commit: 1234567890123456789a"),
        ("version: 7.0 1769860800123456789", "version: 7.0"),
        ("[9:05:01] version: 7.0-20260131", "[] version: 7.0-20260131"),
        ("12:00\nversion: 7.0\ncommit: 2026-01-31", "version: 7.0, commit: 2026-01-31"),
    ],
)
def test_a_time_is_no_part_of_the_version(tmp_path, said, expected):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\ncat <<'.'\n{said}\n.\n")
    compiler.chmod(0o755)
    assert version(Tool("command", str(compiler))) == expected


def test_run_simulates_every_listed_step(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 392, 3), np.uint8)
    features = np.arange(2 * 4 * 5, dtype=np.float32).reshape(8, 5)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "vit_out.npy", features)
    monkeypatch.setenv("STAND_IN_ANSWERS", str(tmp_path))
    (tmp_path / "x.axmodel").touch()
    (tmp_path / "list").write_text("0\n1\n")
    for step, patches in enumerate(pixels):
        (tmp_path / "in" / str(step)).mkdir(parents=True)
        patches.tofile(tmp_path / "in" / str(step) / "hidden_states.bin")
    execute(run_command(HERE, tmp_path / "x.axmodel", tmp_path / "in", tmp_path / "out", tmp_path / "list"))
    read = [np.fromfile(tmp_path / "out" / step / "hidden_states_out.bin", np.float32) for step in "01"]
    np.testing.assert_array_equal(np.concatenate(read), features.ravel())
    (pixels[0] ^ 1).tofile(tmp_path / "in" / "0" / "hidden_states.bin")
    with pytest.raises(CheckFailed, match=r"no uint8 \(1, S, 392, 3\) of the clip"):
        execute(run_command(HERE, tmp_path / "x.axmodel", tmp_path / "in" / "0", tmp_path / "out"))
    with pytest.raises(CheckFailed, match="pulsar2 run failed with exit code 2"):
        execute(run_command(HERE, tmp_path / "none.axmodel", tmp_path / "in", tmp_path / "out"))
