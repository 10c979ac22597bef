"""What is told of a compiler at work: on a terminal and elsewhere, whatever it prints."""

import io
import time

import pytest

from qwen_vl_axera.compiler.pulsar2 import build_command
from qwen_vl_axera.compiler.running import LONGEST
from qwen_vl_axera.compiler.stages import CLEAR, MOST, Stages
from qwen_vl_axera.compiler.tool import Command, execute
from tests.compiler.running import CONFIG, HERE

LINES = {
    "tiling op...   ━━━━━━━━━━━━━━ 52/52 0:00:00": "tiling op 52/52",
    "    build op serially...   ━━━━━ 26/26 0:00:01": "build op serially 26/26",
    "assign eu heuristic   ━━━━━━ 56/56 0:00:00": "assign eu heuristic 56/56",
    "Calibration Progress(Phase 1): 100%|█████| 32/32 [00:17<00:00,  1.79it/s]": "Calibration Progress(Phase 1) 32/32",
    "building llm decode layers ⠙ ━━━━━━━━  3/28 0:06:51": "building llm decode layers 3/28",
}
NO_STAGES = (
    "",
    "2026-01-01 | INFO | yasched: max_cycle = 12",
    "wrote 3/4 files at 12:00",
    "new_ddr_tensor = []",
    "a" * 9999,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def make_terminal(monkeypatch):
    """Makes stderr a terminal; within a test, since pytest puts its own there when one begins."""

    def make() -> Terminal:
        stream = Terminal()
        stream.buffer = io.BytesIO()
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("COLUMNS", "200")
        return stream

    return make


@pytest.mark.parametrize("line", LINES)
def test_the_compilers_bars_are_read(line, capsys):
    stages = Stages("pulsar2 build", 3600)
    stages.read(line)
    stages.tell()
    stages.read(line)
    stages.tell()
    assert capsys.readouterr().err == f"pulsar2 build: 0 min of about 60 (an inference), last seen: {LINES[line]}\n"


@pytest.mark.parametrize("line", NO_STAGES)
def test_other_lines_are_none(line, capsys):
    stages = Stages("pulsar2 build")
    stages.read(line)
    stages.tell()
    assert capsys.readouterr().err == ""


def test_stages_without_end_are_not_all_told(capsys):
    stages = Stages("pulsar2 build")
    for number in range(1000):
        stages.read(f"stage {number}... 1/2 0:00:00")
        stages.tell()
    assert len(capsys.readouterr().err.splitlines()) == MOST == len(stages.counts)


def test_on_a_narrow_terminal_the_line_does_not_wrap(make_terminal, monkeypatch):
    terminal = make_terminal()
    monkeypatch.setenv("COLUMNS", "20")
    Stages("pulsar2 build", 3600).tell()
    assert terminal.getvalue() == f"{CLEAR}pulsar2 build: 0 mi"


def test_on_a_terminal_one_line_makes_room_for_the_output(make_terminal):
    terminal = make_terminal()
    stages = Stages("pulsar2 build")
    stages.read(next(iter(LINES)))
    assert terminal.getvalue() == ""
    stages.tell()
    assert terminal.getvalue() == f"{CLEAR}pulsar2 build: 0 min, last seen: tiling op 52/52"
    stages.clear()
    stages.clear()
    assert terminal.getvalue().endswith(f"52/52{CLEAR}") and terminal.getvalue().count(CLEAR) == 2


def test_a_terminal_is_told_the_time_while_the_compiler_says_nothing(make_workdir, monkeypatch, make_terminal):
    workdir, terminal = make_workdir(), make_terminal()
    monkeypatch.setattr("qwen_vl_axera.compiler.tool.REDRAW", 0.2)
    monkeypatch.setenv("STAND_IN_SLEEP", "build:1")
    execute(build_command(HERE, workdir / "tiny_vision.onnx", CONFIG), seconds=7200)
    shown = terminal.getvalue()
    assert shown.count("pulsar2 build: 0 min of about 120 (an inference), last seen: build jobs 6/6") >= 3
    assert "still running" not in shown and shown.endswith(CLEAR)


@pytest.mark.parametrize("end", ["", "; exit 3"])
def test_output_without_end_takes_no_memory_and_no_time(tmp_path, capfdbinary, end):
    """200 MB of NUL bytes and never a line's end."""
    import resource

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    lines = []
    with open("/dev/null", "w") as nowhere, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", nowhere)
        command = Command("tool", ["sh", "-c", f"head -c 200000000 /dev/zero; echo; echo last{end}"], tmp_path)
        if end:
            with pytest.raises(Exception, match=r"failed with exit code 3; its last lines: .*last"):
                execute(command)
        else:
            execute(command, lines.append)
            assert [len(line) for line in lines] == [LONGEST, len("last")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert time.monotonic() - start < 60
