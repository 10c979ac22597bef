"""What all scripts share: exit codes, one line per error, a quick --help, Ctrl-C."""

import importlib
import json
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
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "av", "torchvision", "qwen_vl_utils", "matplotlib")
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "bench", ROOT / "demo")
    for path in folder.glob("*.py")
    if "def build_parser" in path.read_text(encoding="utf-8") and "__main__" in path.read_text(encoding="utf-8")
)
ENDINGS = {
    130: "\ninterrupted; nothing half-written was left behind\n",
    143: "ended by SIGTERM; nothing half-written was left behind\n",
}
# All in one process, each as Python starts it: its own folder in front of the search path, nothing of ours loaded yet.
HELP = """
import contextlib, io, json, os, runpy, sys
root, scripts, heavy = json.loads(sys.argv[1])
texts, path = {}, [entry for entry in sys.path if os.path.realpath(entry or ".") != root]
for script in scripts:
    sys.argv = [os.path.join(root, script), "--help"]
    sys.path[:] = [os.path.dirname(sys.argv[0]), *path]
    for name in list(sys.modules):
        if name.split(".")[0] in ("qwen_vl_axera", "preprocess", "bench", "demo"):
            del sys.modules[name]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, (script, end.code)
    texts[script] = out.getvalue()
    assert not (loaded := [name for name in heavy if name in sys.modules]), (script, loaded)
print(json.dumps(texts))
"""


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda argv: 0, 0, ""),
        (lambda argv: 1, 1, ""),
        (raising(InputError("expected a\n  video")), 2, "error: expected a video\n"),
        (raising(CheckFailed("differs")), 1, "error: differs\n"),
        (raising(OSError(28, "No space left on device", "data")), 2, "error: No space left on device: data\n"),
        (raising(KeyboardInterrupt()), 130, "\ninterrupted; nothing half-written was left behind\n"),
    ],
)
def test_exit_codes(capsys, main, code, message):
    assert cli.run(main, []) == code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", message)


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
def test_every_script_refuses_an_unknown_flag_in_one_line(script, capsys):
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    code, out, error = run_main(main, capsys, "--nonsense")
    assert (code, out) == (2, "")
    assert error.count("\n") == 1 and "--help" in error


def test_help_loads_nothing_heavy_and_shows_the_docstring(tmp_path):
    wanted = json.dumps([str(ROOT), SCRIPTS, HEAVY])
    env = os.environ | {"COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", HELP, wanted], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for script, shown in json.loads(done.stdout).items():
        first_line = (ROOT / script).read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
        assert first_line[:60] in " ".join(shown.split()), script


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


@pytest.mark.parametrize("command", [["export.py"], ["-m", "qwen_vl_axera.chain"]], ids=["script", "module"])
def test_an_interruption_of_the_imports(command, tmp_path):
    """Our command line may be interrupted before our own code runs; a shell sees 130 of it."""
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}"}
    command = [sys.executable, *command, "--help"]
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # as a shell in the foreground starts it
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, preexec_fn=reset)
    assert done.returncode == -signal.SIGINT, done
    assert done.stderr == ""


def test_an_import_into_another_program_changes_no_handler():
    code = "import signal, qwen_vl_axera.cli; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, preexec_fn=reset)


def test_a_reader_that_leaves_is_no_error(frames_dir, tmp_path):
    """`script | head`: the pipe closes before the script prints."""
    flags = ["--inputs", frames_dir, "--size", "56", "56", "--num-samples", "2", "--workdir", tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, ROOT / "get_calib.py", *flags], **pipes, text=True)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 0, error
    assert "Traceback" not in error and "pipe" not in error
    assert (tmp_path / "calib" / "manifest.json").is_file()


class Panic(BaseException):
    """As the tokenizers library raises: no Exception, and no signal either."""


def test_a_panic_is_one_line(capsys):
    def main(argv):
        raise Panic("Onig: retry-limit-in-match over")

    assert cli.run(main) == 2
    assert capsys.readouterr().err.startswith("error: unexpected Panic: Onig: retry-limit-in-match over")


def test_onnx_runtime_reports_to_nobody(tmp_path):
    """Unless told not to, 1.32 keeps an identifier below TMPDIR and the cache, and sends what it notes."""
    from onnx import helper

    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    load = f"__import__('onnxruntime').InferenceSession({str(tmp_path / 'm.onnx')!r})"
    code = f"from qwen_vl_axera import cli\nraise SystemExit(cli.run(lambda argv: {load} and 0))"
    environment = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list(home.iterdir())


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_nobodys_file(frames_dir, tmp_path, closed):
    """Else the next file to be opened would be standard error, and get what other libraries say."""
    script = [sys.executable, str(ROOT / "get_calib.py"), "--inputs", str(frames_dir), "--size", "56", "84"]
    script += ["--num-samples", "2", "--workdir", str(tmp_path)]
    done = subprocess.run(script, preexec_fn=lambda: os.close(closed), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calib" / "hidden_states.tar").is_file()


ENDING = """
import os, signal, sys, time
from qwen_vl_axera import cli
def main(argv):
    try:
        os.kill(os.getpid(), {first})
        time.sleep(9)
    finally:
        os.kill(os.getpid(), {second})
        print("cleaned up")
sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_the_ending(first, second):
    code = ENDING.format(first=int(first), second=int(second))
    done = run_code(code)
    assert done.returncode == (130 if first == signal.SIGINT else 143) and done.stdout == "cleaned up\n"
    assert done.stderr == ENDINGS[done.returncode]


LATE = """
import atexit, os, signal, sys
from qwen_vl_axera import cli
class Closing:
    def __del__(self):
        os.kill(os.getpid(), {number})
def destructor(argv):
    Closing()
    for _ in range(10**9):
        pass
def after(argv):
    atexit.register(os.kill, os.getpid(), {number})
    return 0
sys.exit(cli.run({main}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("main", ["destructor", "after"])
def test_a_signal_where_nothing_can_be_raised(number, main):
    """In a destructor Python prints and drops what is raised; behind the run nobody catches it."""
    done = run_code(LATE.format(number=int(number), main=main))
    code = 0 if main == "after" else 130 if number == signal.SIGINT else 143
    assert (done.returncode, done.stderr) == (code, ENDINGS.get(code, "")), done


def run_code(code: str) -> subprocess.CompletedProcess:
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=reset
    )


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_zero_is_off(monkeypatch, capsys, value, shown):
    monkeypatch.setenv(cli.DEBUG, value)
    cli.run(lambda argv: 1 / 0)
    assert ("Traceback" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("code", [0, 1])
def test_a_reader_that_leaves_changes_no_exit_code(code):
    script = f"import sys\nfrom qwen_vl_axera import cli\nsys.exit(cli.run(lambda argv: print('x' * 99999) or {code}))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", code)
