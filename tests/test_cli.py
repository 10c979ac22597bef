"""What all scripts share: exit codes, one line per error, a quick --help, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qwen_vl_axera import cli, doors, progress
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.conftest import ROOT, run_main

# Everything that takes longer than a moment to import.
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "decord", "torchvision", "qwen_vl_utils", "matplotlib")
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "bench")
    for path in folder.glob("*.py")
    if "def build_parser" in path.read_text(encoding="utf-8") and "__main__" in path.read_text(encoding="utf-8")
)
ENDINGS = {
    130: "\ninterrupted; nothing half-written was left behind\n",
    143: "ended by SIGTERM; nothing half-written was left behind\n",
}
HELP = """
import runpy, sys
script, *heavy = sys.argv[1:]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in heavy if name in sys.modules]
print("\\nloaded:", *loaded)
"""


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda argv: 0, 0, ""),
        (lambda argv: 1, 1, ""),
        (raising(InputError("expected a\n  video")), 2, "error: expected a video\n"),
        (raising(CheckFailed("differs")), 1, "error: differs\n"),
        (raising(FileNotFoundError(2, "No such file or directory", "x y.json")), 2, "x y.json"),
        (raising(OSError(28, "No space left on device")), 2, "No space left on device"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, main, code, words):
    assert cli.run(main, []) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err
    assert len(output.err.strip().splitlines()) == (1 if words else 0)


@pytest.mark.parametrize("unexpected", [cli.EXIT_BAD_INPUT, cli.EXIT_CHECK_FAILED])
def test_an_unforeseen_error_is_one_line(capsys, unexpected, tmp_path):
    path = tmp_path / "input"
    path.write_bytes(b"")

    def main(argv):
        with progress.stage("a step"):
            doors.read_bytes(path)
            raise ZeroDivisionError("by\x1b[31m zero\nand more")

    assert cli.run(main, [], unexpected) == unexpected
    (line,) = capsys.readouterr().err.splitlines()
    assert all(words in line for words in ("ZeroDivisionError", "a step", str(path), "zero", cli.DEBUG))
    assert "\x1b" not in line


def test_the_debug_variable_shows_where(capsys, monkeypatch):
    monkeypatch.setenv(cli.DEBUG, "1")
    assert cli.run(raising(ZeroDivisionError()), []) == 2
    assert "Traceback" in capsys.readouterr().err


def test_wrong_flags_take_one_line(capsys):
    parser = cli.parser("doc")
    cli.add_text(parser, prompts=2)
    for arguments in (["--nonsense"], ["--max-new-tokens", "0"], ["--dtype", "float16"], ["--prompt"]):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(arguments)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "--help" in error


def test_default_prompts_describe_then_locate():
    for prompts, expected in ((1, ["描述这个视频."]), (2, ["描述这个视频.", "给出物体最后的位置框."])):
        parser = cli.parser("doc")
        cli.add_text(parser, prompts)
        assert parser.parse_args([]).prompt == expected


def test_workdir_is_made_and_a_file_in_its_place_refused(tmp_path):
    assert cli.existing_workdir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a directory"):
        cli.existing_workdir(tmp_path / "file")


def device_of(name: str) -> str:
    parser = cli.parser("doc")
    cli.add_text(parser, prompts=1)
    return cli.device(parser.parse_args(["--device", name]))


def test_devices():
    import torch

    assert device_of("cpu") == "cpu"
    assert device_of("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="--device nonsense") as caught:
        device_of("nonsense")
    assert "\n" not in str(caught.value)


def test_the_scripts_are_found():
    assert {"run_video_by_sec.py", "export.py", "test_onnx_video_by_sec.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_refuses_an_unknown_flag_in_one_line(script, run_script):
    done = run_script(script, "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "--help" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy_and_shows_the_docstring(script):
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(ROOT / script), *HEAVY], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nloaded:\n"), done.stdout[-200:]
    first_line = (ROOT / script).read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    assert first_line[:60] in " ".join(done.stdout.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_reading(tiny_dir, frames_dir, tmp_path, monkeypatch, capsys, number, code):
    """Also where an extension module turns the exception that the signal raises into one of its own."""
    import run_video_by_sec
    from qwen_vl_axera.frames import media

    def read_picture(path):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException:
            raise RuntimeError("something failed inside") from None

    monkeypatch.setattr(media, "read_picture", read_picture)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the test run may be one in the background
    workdir = tmp_path / "work"
    flags = ["--video", frames_dir, "--workdir", workdir]
    assert run_main(run_video_by_sec.main, capsys, tiny_dir, *flags)[::2] == (code, ENDINGS[code])
    assert list(workdir.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(tiny_dir, frames_dir, tmp_path):
    """`script | head`: the pipe closes before the script prints."""
    flags = ["--video", str(frames_dir), "--size", "56", "56", "--workdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_video_by_sec.py"), str(tiny_dir), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 0, error
    assert error == ""
    assert (tmp_path / "capture.json").is_file()
