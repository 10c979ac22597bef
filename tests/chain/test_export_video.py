"""`export_video.sh` as a user runs it: host steps, a recording stand-in for the compiler, resume, bad input."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from preprocess import to_graph_input
from qwen_vl_axera.graph.files import load_graph, read_metadata
from tests.conftest import ROOT

STAND_IN = ROOT / "tests" / "stand_in"
TIMEOUT = 600


def export_video(*arguments, env=None, cwd=None):
    """Runs the script with this environment's Python and without any real compiler."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PULSAR2", "STAND_IN"))}
    variables |= {"VENV": sys.prefix} | {name: str(value) for name, value in (env or {}).items()}
    command = ["bash", str(ROOT / "export_video.sh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def host(tiny_dir, frames_dir, tmp_path_factory):
    """A finished host-only run over hostile names, in the current directory as documented."""
    base = tmp_path_factory.mktemp("host") / 'it\'s a "测试" & more'
    base.mkdir()
    checkpoint = shutil.copytree(tiny_dir, base / "-tiny 模型")
    frames = shutil.copytree(frames_dir, base / "-frames $HOME")
    process = export_video("--host-only", "--", checkpoint.name, frames.name, cwd=base)
    return base, process


def test_host_only_makes_every_artefact(host):
    base, process = host
    assert process.returncode == 0, process.stderr
    name = "-tiny 模型"
    for file in (
        *("hidden_states.pth", "rotary_pos_emb.pth", "cu_seqlens.pth", "cu_window_seqlens.pth", "window_index.pth"),
        *("pixels.npy", "vit_out.npy", "capture.json", "fidelity.json", "report.html", "pulsar2_commands.sh"),
        *(f"{name}_vision.onnx", f"{name}_vision.onnx.data", f"{name}_vision_uint8.onnx"),
        *("calib/hidden_states.tar", "calib/manifest.json"),
        *(f"{name}-AX650/model.embed_tokens.weight.bfloat16.bin", f"{name}-AX650/manifest.json"),
        *(f"{name}-AX650/config.json", f"{name}-AX650/tokenizer.json"),
    ):
        assert (base / file).is_file(), file
    assert json.loads((base / "fidelity.json").read_text())["passed"] is True
    last = process.stdout.rstrip().splitlines()[-1]
    assert last.startswith("done: the host steps") and "--host-only" in last


def test_calibration_samples_are_the_graphs_input(host):
    base, _ = host
    pixels = np.load(base / "pixels.npy")
    inputs = [to_graph_input(step) for step in pixels]
    samples = json.loads((base / "calib" / "manifest.json").read_text())["samples"]
    with tarfile.open(base / "calib" / "hidden_states.tar") as tar:
        for member, entry in zip(tar, samples, strict=True):
            sample = np.load(io.BytesIO(tar.extractfile(member).read()))
            for change in entry.get("range", ()):  # two values of the first sample
                patch, pixel, channel = change["index"]
                sample[0, channel, patch, pixel] = change["before"]
            assert (sample.dtype, sample.shape) == (np.float32, inputs[0].shape)
            assert any(np.array_equal(sample, given) for given in inputs)


def test_the_commands_that_are_left_are_the_documented_ones(host):
    base, process = host
    script = (base / "pulsar2_commands.sh").read_text()
    assert subprocess.run(["bash", "-n", base / "pulsar2_commands.sh"]).returncode == 0
    assert os.access(base / "pulsar2_commands.sh", os.X_OK)
    assert script.strip() in process.stdout
    lines = script.splitlines()
    language, build = (shlex.split(line.strip("()")) for line in lines if line.startswith("(") and "pulsar2 " in line)
    assert options(build[build.index("pulsar2") :]) == {
        "--input": "./-tiny 模型_vision.onnx",
        "--config": str(ROOT / "config_video.json"),
        "--output_dir": "build-output",
        "--output_name": "-tiny 模型_vision.axmodel",
        "--target_hardware": "AX650",
        "--compiler.check": "0",
    }
    assert options(language) == {
        "--input_path": "./-tiny 模型",
        "--output_path": "./-tiny 模型-AX650",
        "--kv_cache_len": "1023",
        "--hidden_state_type": "bf16",
        "--prefill_len": "512",
        "--parallel": "32",
        "--chip": "AX650",
    }


def test_what_is_left_runs_as_the_chain_does(host):
    """The probe first; the form that it finds is exported; the model is compared; the package is whole."""
    base, _ = host
    env = os.environ | {"PATH": f"{STAND_IN}:{os.environ['PATH']}", "STAND_IN_LOG": str(base / "log.jsonl")}
    env |= {"STAND_IN_COMPUTE": sys.executable, "STAND_IN_REFUSE": "grouped"}
    process = subprocess.run([base / "pulsar2_commands.sh"], env=env, cwd="/", capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert [call[0] for call in calls(base) if call[0] != "version"] == [
        *("build", "build", "run"),  # the probe: grouped does not compile, folded does
        *("llm_build", "build", "run"),
    ]
    name = "-tiny 模型"
    assert read_metadata(load_graph(base / f"{name}_vision.onnx"))["window_mode"] == "folded"
    assert json.loads((base / "axmodel_fidelity.json").read_text())["passed"]
    assert json.loads((base / f"{name}-AX650" / "manifest.json").read_text())["complete"]


def options(argv: list[str]) -> dict[str, str]:
    """`pulsar2 COMMAND --a x --b=y` -> {"--a": "x", "--b": "y"}."""
    words = [part for word in argv[2:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture(scope="module")
def built(tiny_dir, frames_dir, tmp_path_factory):
    """A finished run with the stand-in on PATH; `run` answers with transformers' own features."""
    base = tmp_path_factory.mktemp("built")
    env = {"WORKDIR": base / "work", "OUT": base / "out", "SIZE": "140 252", "PREFILL_LEN": "640"}
    first = export_video(tiny_dir, frames_dir, "--host-only", env=env)
    assert first.returncode == 0, first.stderr
    assert "a step's tokens do not depend on other steps" in first.stdout
    assert "Left to do" in (base / "work" / "report.html").read_text("utf-8")
    np.load(base / "work" / "vit_out.npy").astype(np.float32).tofile(base / "features")
    env |= {
        "PATH": f"{STAND_IN}:{os.environ['PATH']}",
        "STAND_IN_LOG": base / "log.jsonl",
        "STAND_IN_FEATURES": base / "features",
        "PROBE": "0",
    }
    return base, env, export_video(tiny_dir, frames_dir, "--resume", env=env)


def calls(base: Path) -> list[list[str]]:
    return [json.loads(line)["argv"] for line in (base / "log.jsonl").read_text().splitlines()]


def test_the_whole_chain_with_the_stand_in(built, tiny):
    base, _, process = built
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.rstrip().splitlines()[-1].startswith("done: everything")
    out = base / "out"
    assert (out / "tiny_vision.axmodel").is_file()
    assert not (base / "work" / "build-output" / "tiny_vision.axmodel").exists()
    assert len(list(out.glob("qwen2_5_vl_p640_l*_together.axmodel"))) == tiny.config.text.num_hidden_layers
    steps = [call[call.index(word)] for call in calls(base) for word in ("build", "run", "llm_build") if word in call]
    assert steps == ["llm_build", "build", "run"]
    assert json.loads((base / "work" / "axmodel_fidelity.json").read_text())["passed"] is True
    # The host steps were finished before: nothing of them was done again.
    assert "a step's tokens do not depend on other steps" not in process.stdout
    # What the earlier run left to do is done.
    assert not (base / "work" / "pulsar2_commands.sh").exists()
    assert "Left to do" not in (base / "work" / "report.html").read_text("utf-8")


def test_a_second_resume_does_nothing_again(built, tiny_dir, frames_dir):
    base, env, _ = built
    before = len(calls(base))
    files = {path: path.stat().st_mtime_ns for path in (base / "work").glob("*_vision*")}
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 0, process.stderr
    assert [call for call in calls(base)[before:] if "version" not in call] == []
    assert {path: path.stat().st_mtime_ns for path in files} == files


def redone(base, before: int) -> list[str]:
    """What the compiler was asked to do again."""
    steps = ("build", "run", "llm_build")
    return [word for call in calls(base)[before:] for word in steps if word in call[:1]]


def test_a_deleted_layer_is_noticed(built, tiny_dir, frames_dir):
    base, env, _ = built
    before = len(calls(base))
    (base / "out" / "qwen2_5_vl_p640_l1_together.axmodel").unlink()
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 0, process.stderr
    assert redone(base, before) == ["llm_build"]
    assert "output" in process.stderr and "_l1_together.axmodel missing" in process.stderr


def test_a_deleted_layout_file_is_noticed(built, tiny_dir, frames_dir):
    base, env, _ = built
    name = "window_index.pth"
    (base / "work" / name).unlink()
    process = export_video(tiny_dir, frames_dir, "--resume", "--host-only", env=env)
    assert process.returncode == 0, process.stderr
    assert f"{name} missing" in process.stderr and (base / "work" / name).is_file()


def test_another_compiler_builds_again(built, tiny_dir, frames_dir):
    base, env, _ = built
    before = len(calls(base))
    process = export_video(tiny_dir, frames_dir, "--resume", env=env | {"STAND_IN_VERSION": "9.9-stand-in"})
    assert process.returncode == 0, process.stderr
    assert redone(base, before) == ["llm_build", "build", "run"]
    assert "npu-vision: compiler changed from " in process.stderr
    assert export_video(tiny_dir, frames_dir, "--resume", env=env).returncode == 0  # as it was, for the next test


def test_a_compiled_model_that_computes_something_else_stops_the_chain(built, tiny_dir, frames_dir):
    base, env, _ = built
    wrong = np.fromfile(base / "features", np.float32)
    np.random.default_rng(0).shuffle(wrong)
    wrong.tofile(base / "wrong")
    env = env | {"STAND_IN_FEATURES": base / "wrong"}
    (base / "work" / "axmodel_fidelity.json").unlink()
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 1
    assert "FAILED" in process.stdout
    assert "== 5 token embeddings" not in process.stdout
    assert not (base / "work" / ".steps" / "npu-vision.json").exists()  # --resume builds it again


def test_what_changes_during_the_build_is_noticed_at_the_end(built, tiny_dir, frames_dir, tmp_path):
    base, env, _ = built
    changed = base / "work" / "calib" / "manifest.json"
    before = changed.read_bytes()
    script = f'#!/usr/bin/env bash\n[ "$1" != build ] || echo >> "{changed}"\nexec {STAND_IN}/pulsar2 "$@"\n'
    (tmp_path / "pulsar2").write_text(script)
    (tmp_path / "pulsar2").chmod(0o755)
    env = env | {"PULSAR2": tmp_path / "pulsar2", "OUT": tmp_path / "out"}
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    changed.write_bytes(before)
    assert process.returncode == 1, process.stdout + process.stderr
    assert "calibration: output" in process.stderr and "after it had ended: run this again" in process.stderr
    assert "done: everything" not in process.stdout and not (tmp_path / "out" / "manifest.json").exists()


def test_a_compiler_that_fails_is_quoted(built, tiny_dir, frames_dir):
    base, env, _ = built
    env = env | {"STAND_IN_FAIL": "build:3", "OUT": base / "out2"}
    process = export_video(tiny_dir, frames_dir, "--resume", env=env)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert not (base / "out2" / "tiny_vision.axmodel").exists()


def test_a_compiler_that_is_named_but_absent(tiny_dir, frames_dir, tmp_path):
    process = export_video(tiny_dir, frames_dir, env={"WORKDIR": tmp_path, "PULSAR2": "no-such-compiler"})
    assert process.returncode == 2
    assert "no-such-compiler" in process.stderr
    assert not (tmp_path / "capture.json").exists()


def test_dry_run_prints_and_does_nothing(tiny_dir, frames_dir, tmp_path):
    env = {"WORKDIR": tmp_path / "work", "OUT": tmp_path / "out", "VENV": tmp_path / "venv"}
    process = export_video(tiny_dir, frames_dir, "--dry-run", env=env | {"PYTHON": sys.executable})
    assert process.returncode == 0, process.stderr
    for word in ("-m venv", "run_video_by_sec.py", "export.py", "get_calib.py", "pulsar2 build", "pulsar2 llm_build"):
        assert word in process.stdout, word
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a checkpoint directory"),
        (["/no/such/checkpoint"], "/no/such/checkpoint"),
        (["--no-such-option"], "--no-such-option"),
        (["--resume", "--force"], "exclude each other"),
        (["--demo", "clip.mp4"], "leave out clip.mp4"),
        ([""], "the checkpoint's path is empty"),
        (["/"], "error: /config.json is missing: expected the directory"),
        (["/no\x1b[2Jsuch"], "/no\\u001b[2Jsuch"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    process = export_video(*arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_video(tiny_dir, tmp_path):
    process = export_video(tiny_dir, "no such.mp4", cwd=tmp_path)
    assert process.returncode == 2
    assert "no such.mp4" in process.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CHIP": "AX651"}, "CHIP=AX651: expected a chip"),
        ({"CONFIG": "none.json"}, "CONFIG=none.json: no such file"),
        ({"CONFIG": "-x"}, "CONFIG=-x: no such file"),
        ({"CONFIG": "/dev"}, "CONFIG=/dev: expected a file, found a directory"),
        ({"VENV": "/dev/null"}, "VENV=/dev/null: expected a directory"),
        ({"WORKDIR": "/tmp/a\x1bb"}, "WORKDIR=/tmp/a\\u001bb: expected a name without control characters"),
        ({"CHIP": "M57"}, "CHIP=M57: expected a chip"),  # pulsar2 build knows it, llm_build does not
        ({"PREFILL_LEN": "many"}, "PREFILL_LEN=many: expected a whole number above 0"),
        ({"PARALLEL": "0"}, "PARALLEL=0"),
        ({"KV_CACHE_LEN": "511"}, "does not fit a kv cache of 511"),
        ({"SIZE": "300 308"}, "the nearest is 308 308"),
        ({"IMAGE_SIZE": "300 308"}, "IMAGE_SIZE=300 308: expected multiples of 28; the nearest is 308 308"),
        ({"QUANTIZE": "all8"}, "QUANTIZE=all8: expected vendor or mixed"),
        ({"QUANTIZE": "mixed"}, "config_video_mixed.json is missing: run this once with --host-only"),
    ],
)
def test_bad_variables_are_refused_before_the_first_step(tiny_dir, frames_dir, tmp_path, variables, message):
    places = {"WORKDIR": tmp_path / "work", "OUT": tmp_path / "out"}
    process = export_video(tiny_dir, frames_dir, "--host-only", env=places | variables)
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert message in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_is_not_written_into(tiny_dir, frames_dir, tmp_path):
    process = export_video(tiny_dir, frames_dir, env={"WORKDIR": tmp_path, "OUT": tiny_dir})
    assert process.returncode == 2 and "the checkpoint" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_was_searched_is_built_with(tiny_dir, frames_dir, tmp_path):
    (tmp_path / "config_video_mixed.json").write_bytes((ROOT / "config_video.json").read_bytes())
    env = {"WORKDIR": tmp_path, "OUT": tmp_path / "out", "QUANTIZE": "mixed"}
    process = export_video(tiny_dir, frames_dir, "--dry-run", env=env)
    assert process.returncode == 0, process.stderr
    assert f"preflight.py {tiny_dir} --config {tmp_path}/config_video_mixed.json" in process.stdout
    # The vendor's goes on only where the probe shows that this one breaks.
    mixed = f"--config {tmp_path}/config_video_mixed.json"
    assert f"{mixed} --fallback {ROOT}/config_video.json" in process.stdout
    assert process.stdout.count(f"{ROOT}/config_video.json") == 1


def test_the_demo_clip_is_announced(tiny_dir, tmp_path):
    process = export_video(tiny_dir, "--dry-run", env={"WORKDIR": tmp_path / "work", "OUT": tmp_path / "out"})
    assert process.returncode == 0
    assert "no video given" in process.stderr and "demo.mp4" in process.stderr


def test_nothing_in_the_current_directory_is_a_module_of_ours(tiny_dir, tmp_path):
    for name in ("qwen_vl_axera", "json", "argparse", "numpy", "venv", "pip"):
        (tmp_path / f"{name}.py").write_text("import sys; open('exploited', 'w'); sys.exit(7)")
    before = sorted(tmp_path.iterdir())
    env = {"WORKDIR": tmp_path / "work", "OUT": tmp_path / "out"}
    process = export_video(tiny_dir, ROOT / "assets" / "demo.mp4", "--dry-run", env=env, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_streams_that_are_closed_or_full(tiny_dir, tmp_path):
    env = os.environ | {"VENV": sys.prefix, "WORKDIR": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    line = f"bash {ROOT}/export_video.sh {shlex.quote(str(tiny_dir))} --dry-run --host-only"
    for streams, code in (("<&- >&- 2>&-", 0), ("> /dev/full", 2)):
        done = subprocess.run(["bash", "-c", f"{line} {streams}"], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (streams, done.stderr)
        errors = [text for text in done.stderr.splitlines() if not text.startswith("note: ")]
        assert errors == ["error: standard output cannot be written"] * (code == 2)


def test_something_else_in_an_outputs_place(tiny_dir, frames_dir, tmp_path):
    (tmp_path / "report.html").mkdir()
    process = export_video(tiny_dir, frames_dir, env={"WORKDIR": tmp_path, "OUT": tmp_path / "out"})
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1
    assert "report.html: would be replaced" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_exported_cdpath_leads_nowhere(tiny_dir, tmp_path):
    (tmp_path / "elsewhere" / "tests").mkdir(parents=True)
    env = {"CDPATH": tmp_path / "elsewhere", "WORKDIR": tmp_path / "work", "OUT": tmp_path / "out"}
    process = export_video(tiny_dir, ROOT / "assets" / "demo.mp4", "--dry-run", env=env, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert str(tmp_path / "elsewhere") not in process.stdout


SLOW = """#!/usr/bin/env bash
case $1 in version) echo slow ;; *) echo $$ > "$PID_FILE"; exec sleep 60 ;; esac
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_shell_alone_ends_everything(built, tiny_dir, frames_dir, tmp_path, number):
    """The compiler must not go on for hours, unseen."""
    _, env, _ = built
    (tmp_path / "slow").write_text(SLOW)
    (tmp_path / "slow").chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("STAND_IN")}
    variables |= {name: str(value) for name, value in env.items()} | {"VENV": sys.prefix}
    variables |= {"PULSAR2": str(tmp_path / "slow"), "PID_FILE": str(tmp_path / "pid")}
    command = ["bash", str(ROOT / "export_video.sh"), str(tiny_dir), str(frames_dir), "--resume"]
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + TIMEOUT
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    busy = export_video(tiny_dir, frames_dir, "--resume", env=env | {"PULSAR2": tmp_path / "slow"})
    assert busy.returncode == 2 and "another run is at work" in busy.stderr
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_help():
    process = export_video("--help")
    assert process.returncode == 0
    assert "PREFILL_LEN" in process.stdout and "set -euo" not in process.stdout
