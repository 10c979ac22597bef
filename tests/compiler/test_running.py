"""A tool's process: what it writes is bounded and harmless, and it ends, whatever it does."""

import io
import os
import signal
import time

import pytest

from qwen_vl_axera.compiler import running
from qwen_vl_axera.compiler.tool import Command, ask, execute
from qwen_vl_axera.errors import CheckFailed


def shell(script: str, tmp_path) -> Command:
    return Command("tool", ["/bin/bash", "-c", script], tmp_path)


class Screen(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), "utf-8")

    @property
    def shown(self) -> str:
        return self.buffer.getvalue().decode()


def test_what_steers_a_terminal_is_not_shown():
    screen = Screen()
    stream = running.Shown(screen)
    lines = stream.show(b"\x1b[32mgreen\x1b[0m \x1b]0;title\x07\xc2\x9b\xe2\x80")
    lines += stream.show(b"\xae 50%\r100%\r\nend\xff")
    lines += stream.end()
    title = "green \\u001b]0;title\\u0007\\u009b\\u202e 50%"
    assert lines == [title, "100%", "", "end\ufffd"]
    assert screen.shown == f"{title}\r100%\r\nend\ufffd\n"


def test_a_line_without_end_is_passed_on_in_bounded_memory():
    screen = Screen()
    stream = running.Shown(screen)
    for _ in range(200):
        assert stream.show(b"x" * running.PIECE) == []
    assert len(stream.begun) == running.LONGEST
    assert len(screen.shown) == 200 * running.PIECE
    assert [len(line) for line in stream.show(b"x\n")] == [running.LONGEST]


def test_a_tool_that_will_not_end_is_made_to(tmp_path, monkeypatch):
    """Asked once; then killed."""
    monkeypatch.setattr(running, "GRACE", 0.3)
    started = time.monotonic()

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(shell("trap '' TERM INT; echo ready; while :; do sleep 0.1; done", tmp_path), interrupt)
    assert time.monotonic() - started < 5


def test_what_a_tool_leaves_running_does_not_hold_us(tmp_path, monkeypatch):
    """A daemon that has inherited its streams, silent or not."""
    monkeypatch.setattr(running, "LINGER", 0.3)
    for left in ("sleep 20", "while :; do echo on; sleep 0.05; done"):
        started = time.monotonic()
        execute(shell(f"({left}) & echo $! > pid; exit 0", tmp_path))
        assert time.monotonic() - started < 5
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_question_is_answered_briefly_and_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen_vl_axera.compiler.tool.ANSWER", 1000)
    monkeypatch.setattr("qwen_vl_axera.compiler.tool.ASKING", 0.4)
    monkeypatch.setattr(running, "TICK", 0.1)
    answer = ask(shell("echo 7.0; echo no >&2; exit 3", tmp_path))
    assert (answer.stdout, answer.stderr, answer.returncode) == ("7.0\n", "no\n", 3)
    with pytest.raises(CheckFailed, match="answers with more than"):
        ask(shell("yes", tmp_path))
    with pytest.raises(CheckFailed, match="does not answer within"):
        ask(shell("sleep 20", tmp_path))
    with pytest.raises(CheckFailed, match="does not start"):
        ask(Command("tool", ["/no/such/tool"], tmp_path))
