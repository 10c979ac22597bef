"""check_board.py against a stand-in for the runtime, against hostile servers, and alone on the board."""

import ast
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import check_board
from tests.board.stand_in import StandIn
from tests.conftest import ROOT

CAPTION, BOX = "描述这个视频.", "给出物体最后的位置框."
ANSWERS = {CAPTION: "一个红色圆形向左移动。", BOX: "[1,6,4,9]"}
FRAMES = [b"\x89PNG first", b"\x89PNG second", b"\x89PNG third"]


def question(prompt: str, text: str | None, complete: bool = True, onnx: str | None = None) -> dict:
    known, graph = (said and {"text": said, "token_ids": list(range(len(said)))} for said in (text, onnx))
    return {"prompt": prompt, "complete": complete, "transformers": known, "onnx": graph}


@pytest.fixture
def directory(tmp_path) -> Path:
    directory = tmp_path / "包 裹" / "check"
    directory.mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        (directory / f"{number:04d}.png").write_bytes(frame)
    write(directory)
    return directory


def write(directory: Path, **changes) -> None:
    record = {
        "format": 1,
        "checkpoint": "tiny",
        "settings": "video56x56",
        "frames": [f"{number:04d}.png" for number in range(len(FRAMES))],
        "questions": [question(prompt, text, onnx=text) for prompt, text in ANSWERS.items()],
    }
    (directory / "check.json").write_text(json.dumps(record | changes), encoding="utf-8")


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        code = check_board.main([str(argument) for argument in argv])
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    return code, output.out, output.err


def usual(frames: list[bytes], prompt: str) -> str:
    assert frames == FRAMES
    return ANSWERS[prompt]


@pytest.mark.parametrize("upload", [[], ["--upload"]], ids=["path", "pictures"])
def test_equal_answers(directory, capsys, upload):
    with StandIn(usual) as board:
        code, out, err = run(capsys, board.url, "--check", directory, *upload)
    assert (code, err) == (0, ""), out
    assert out.count("  equal\n") == 2 and out.rstrip().endswith("2 of 2 answers are transformers' own")
    for words in (*ANSWERS, *ANSWERS.values(), "transformers", "ONNX", "board", "first token after", "tokens/s"):
        assert words in out
    (part, *_), count = board.requests[0]["messages"][0]["content"], len(board.requests)
    assert count == 2
    assert part["video_url"]["url"].startswith("data:image/png;base64," if upload else f"video:{directory}")


@pytest.mark.parametrize(
    ("prompt", "said", "note"),
    [
        (CAPTION, "一个红色圆形向右移动。", "first difference at character 8: 右 instead of 左"),
        (CAPTION, "一个红色圆形", "first difference at character 7: the end instead of 向"),
        (CAPTION, "", "first difference at character 1: the end instead of 一"),
        (BOX, "[1,6,4,7]", "first difference at character 8: 7 instead of 9; the box is off by at most 2"),
        (BOX, "[1,6,4,9] ", None),
        (BOX, "[1,6,4,9].", "first difference at character 10: . instead of the end"),
    ],
)
def test_the_first_difference_is_shown(directory, capsys, prompt, said, note):
    with StandIn(lambda frames, asked: said if asked == prompt else ANSWERS[asked]) as board:
        code, out, err = run(capsys, board.url, "--check", directory)
    assert (code, err) == (1 if note else 0, "")
    assert (note or "2 of 2 answers") in out


def test_a_difference_that_the_graph_has_too(directory, capsys):
    """Then the compiler is not to blame."""
    write(directory, questions=[question(CAPTION, ANSWERS[CAPTION], onnx="一个蓝色圆形向左移动。")])
    with StandIn(lambda frames, prompt: "一个蓝色圆形向左移动。") as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 1 and "蓝 instead of 红; it is what the ONNX graph says" in out


def test_a_server_that_does_not_stream(directory, capsys):
    with StandIn(usual, streams=False) as board:
        code, out, _ = run(capsys, board.url + "/v1", "--check", directory)
    assert code == 0 and out.count("in one piece") == 2
    assert [request["stream"] for request in board.requests] == [False, False]


def test_tokens_are_counted_by_the_server_where_it_does(directory, capsys):
    with StandIn(usual, usage=True) as board:
        _, out, _ = run(capsys, board.url, "--check", directory)
    assert out.count("(7 in all)") == 2


def test_speed_is_of_the_tokens_after_the_first():
    assert check_board.Answer("x", 1.0, 11, 2.0).speed == 5.0
    assert check_board.Answer("x", 1.0, 1, 0.0).speed is None


def test_an_answer_that_the_host_cut(directory, capsys):
    """The host's last token may end within a character; the board goes on beyond it."""
    write(directory, questions=[question(CAPTION, "一个红色\ufffd", complete=False)])
    with StandIn(lambda frames, prompt: "一个红色圆形向左移动。") as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 0 and "equal as far as the host went" in out
    assert board.requests[0]["max_tokens"] > 5
    with StandIn(lambda frames, prompt: "一个蓝色圆形向左移动。") as board:
        assert run(capsys, board.url, "--check", directory)[0] == 1


@pytest.mark.parametrize("cut", ["", "\ufffd", "\ufffd\ufffd", " ", "\n\ufffd"])
@pytest.mark.parametrize("said", ["", "anything", "\ufffd"])
def test_an_answer_cut_before_its_first_character_is_none(directory, capsys, cut, said):
    """Every reply begins as nothing does: that is no equality."""
    write(directory, questions=[question(CAPTION, cut, complete=False)])
    with StandIn(lambda frames, prompt: said) as board:
        code, out, err = run(capsys, board.url, "--check", directory)
    assert code == 2 and "nothing was compared" in err and "equal" not in out
    both = [question(CAPTION, cut, complete=False), question(BOX, ANSWERS[BOX])]
    write(directory, questions=both)
    with StandIn(lambda frames, prompt: said if prompt == CAPTION else ANSWERS[BOX]) as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 0 and "1 of 1 answers are transformers' own" in out
    assert run(capsys, "--print", "--check", directory)[0] == 0


def test_nothing_to_compare_with_is_no_pass(directory, capsys):
    write(directory, questions=[question(CAPTION, None)])
    with StandIn(usual) as board:
        code, out, err = run(capsys, board.url, "--check", directory)
    assert code == 2 and ANSWERS[CAPTION] in out and "nothing was compared" in err and "--generate" in err
    write(directory, questions=[])
    with StandIn(usual) as board:
        assert run(capsys, board.url, "--check", directory)[0] == 2


def test_another_model_is_warned_of(directory, capsys):
    with StandIn(usual, model="other") as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 0 and "warning: the board serves other" in out


def test_a_question_that_the_runtime_misplaces_is_warned_of(directory, capsys):
    write(directory, questions=[question("Query: what?", "it")])
    with StandIn(lambda frames, prompt: "it") as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 0 and "before the frames" in out


def test_by_hand(directory, capsys):
    code, out, err = run(capsys, "--print", "--check", directory)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"In {directory.parent}:" and lines[1].strip() == "axllm run video56x56"
    assert f"prompt >> {CAPTION}" in lines and lines.count("media >>  video:check") == 2
    assert f"  expected: {ANSWERS[BOX]}" in lines and lines.count("prompt >> /reset") == 2


@pytest.mark.parametrize("argv", [[], ["http://127.0.0.1:1", "--print"]])
def test_a_url_or_print(directory, capsys, argv):
    code, _, err = run(capsys, *argv, "--check", directory)
    assert code == 2 and len(err.splitlines()) == 1 and "--print" in err


@pytest.mark.parametrize(
    "url",
    ["", "https://127.0.0.1", "ftp://x", "http://", "http://a b", "http://u@h", "http://[::1", "http://h:99999",
     "http://h/?q", "http://h/#f", "http://ä", "file:///etc/passwd", "h\r\nX: y"],
)  # fmt: skip
def test_urls_that_are_none(directory, capsys, url):
    code, _, err = run(capsys, url, "--check", directory)
    assert code == 2 and len(err.splitlines()) == 1 and "http://HOST:PORT" in err


def test_addresses():
    assert check_board.Board("board").name == "http://board:8000"
    assert check_board.Board("192.168.1.5:80/v1/chat/completions").name == "http://192.168.1.5:80"
    here = {url: check_board.Board(url).is_here for url in ("localhost:1", "http://127.0.0.2", "[::1]:80", "10.0.0.1")}
    assert list(here.values()) == [True, True, True, False]


def test_nobody_there(directory, capsys):
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        code, _, err = run(capsys, f"http://127.0.0.1:{unused.getsockname()[1]}", "--check", directory)
    assert code == 2 and "is `axllm serve` running there?" in err


# A directory that is none


def unusable(directory, capsys, word: str) -> None:
    code, out, err = run(capsys, "http://127.0.0.1:1", "--check", directory)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert word in err, err


def test_a_missing_record(tmp_path, capsys):
    unusable(tmp_path, capsys, "package_model.py")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"frames": []},
        {"frames": ["../0000.png"]},
        {"frames": [1]},
        {"frames": None},
        {"checkpoint": "\ud800"},
        {"settings": 3},
        {"questions": 3},
        {"questions": [{}]},
        {"questions": [question(CAPTION, "x") | {"complete": "yes"}]},
        {"questions": [question(CAPTION, "x") | {"transformers": {"text": 3, "token_ids": []}}]},
        {"questions": [question(CAPTION, "x") | {"transformers": {"text": "x", "token_ids": 3}}]},
    ],
)
def test_a_malformed_record(directory, capsys, changes):
    write(directory, **changes)
    unusable(directory, capsys, "not usable")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"3"])
def test_a_record_that_is_no_json(directory, capsys, content):
    (directory / "check.json").write_bytes(content)
    unusable(directory, capsys, "not usable")


def test_a_picture_too_many_or_too_few(directory, capsys):
    """The runtime takes every picture in the directory for a frame."""
    (directory / "thumb.JPG").write_bytes(b"x")
    unusable(directory, capsys, "thumb.JPG")
    (directory / "thumb.JPG").unlink()
    (directory / "0001.png").unlink()
    unusable(directory, capsys, "0001.png")


# Hostile servers


@contextlib.contextmanager
def raw_server(*responses: bytes, drip: bytes = b""):
    """Sends each connection the next of some responses (the last one again), whatever was asked, then drips."""
    stop, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def serve():
        for number in range(100):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                while connection.recv(1 << 16):  # all of it, or closing would reset the connection
                    pass
            connection.settimeout(5)
            with connection, contextlib.suppress(OSError):
                connection.sendall(responses[min(number, len(responses) - 1)])
                while drip and not stop.wait(0.02):
                    connection.sendall(drip)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.close()


def ok(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nConnection: close\r\n\r\n%s" % (kind, body)


MODELS = ok(b'{"data": [{"id": "tiny"}]}')
STREAM = b"text/event-stream"


@pytest.mark.parametrize(
    ("responses", "word"),
    [
        ([b"nonsense\r\n\r\n"], "nonsense"),
        ([b""], "axllm serve"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"], "not followed"),
        ([b"HTTP/1.1 500 Broken\r\nContent-Length: 4\r\n\r\n\x1b[2J"], "HTTP 500"),
        ([ok(b"<html>")], "no JSON object"),
        ([ok(b"[]")], "no JSON object"),
        ([ok(b"[" * 100_000)], "no JSON object"),
        ([ok(b'{"data": 3}')], "a list of models"),
        ([ok(b'{"data": [{"id": 3}]}')], "a list of models"),
        ([ok(b"x" * (1 << 20))], "more than an answer can be"),
        ([ok(b"x\n" * (1 << 22))], "more than an answer can be"),
        ([MODELS, b"HTTP/1.1 307 Over there\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"], "307"),
        ([MODELS, ok(b"{}")], "without choices"),
        ([MODELS, ok(b'{"choices": [3]}')], "without choices"),
        ([MODELS, ok(b'{"choices": [{"message": {"content": 3}}]}')], "no message"),
        ([MODELS, ok(b'{"error": {"message": "no \x1b[31mmodel\\u202e"}}')], "no JSON object"),
        ([MODELS, ok(b'{"error": {"message": "no \\u001b[31mmodel\\u202e"}}')], r"no \x1b[31mmodel\u202e"),
        ([MODELS, ok(b"data: {\n\n", STREAM)], "no JSON object"),
        ([MODELS, ok(b'data: {"error": "model_error"}\n\n', STREAM)], "model_error"),
        ([MODELS, ok(b": nothing\n\n", STREAM)], "broke off"),
        ([MODELS, ok(b"data: " + b"x" * (1 << 20), STREAM)], "more than an answer can be"),
        ([MODELS, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], "chat/completions"),
        ([MODELS, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 60 + b"\r\nx"], "chat/completions"),
        ([MODELS, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{}"], ""),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 20], "nothing but interim responses"),
    ],
)
def test_hostile_responses(directory, capsys, responses, word):
    with raw_server(*responses) as url:
        code, out, err = run(capsys, url, "--check", directory)
    assert code == 2 and len(err.splitlines()) == 1, out + err
    assert word in err, err
    assert all(character.isprintable() for character in err.rstrip("\n"))


@pytest.mark.parametrize(
    ("responses", "drip"),
    [
        ([b"HTTP/1.1 200 OK\r\nX: "], b"y"),  # a header that never ends
        ([b""], b"HTTP/1.1 100 Continue\r\n\r\n"),
        ([ok(b'{"data": [')], b" "),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"], b"X: y\r\n"),  # trailers without end
        ([b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"], b""),
    ],
)
def test_a_server_that_takes_its_time(directory, capsys, monkeypatch, responses, drip):
    monkeypatch.setattr(check_board, "ANSWER_SECONDS", 0.4)
    started = time.monotonic()
    with raw_server(*responses, drip=drip) as url:
        code, _, err = run(capsys, url, "--check", directory)
    assert code == 2 and len(err.splitlines()) == 1
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("count", [-5, 0, 10**300, True, "3"])
def test_a_count_of_tokens_that_can_not_be(directory, capsys, count):
    usage = f'data: {{"choices": [], "usage": {{"completion_tokens": {json.dumps(count)}}}}}\n\ndata: [DONE]\n\n'
    words = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    with raw_server(MODELS, ok(words * 2 + usage.encode(), STREAM)) as url:
        code, out, err = run(capsys, url, "--check", directory)
    assert code == 1 and "(2 in all)" in out, out + err


def test_control_characters_are_not_printed(directory, capsys):
    with StandIn(lambda frames, prompt: "\x1b]0;title\x07\r\u202eevil\n\x9b31m\u2028") as board:
        code, out, _ = run(capsys, board.url, "--check", directory)
    assert code == 1
    assert all(character.isprintable() or character == "\n" for character in out)
    assert r"\x1b]0;title\x07\r\u202eevil\n\x9b31m" in out


# Alone on the board


def test_the_syntax_is_known_to_python_3_8():
    ast.parse((ROOT / "check_board.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_standard_library_suffices(directory):
    """Copied beside check/ as package_model.py does, without site packages and with an ASCII terminal."""
    shutil.copy(ROOT / "check_board.py", directory.parent)
    script = str(directory.parent / "check_board.py")
    with StandIn(usual) as board:
        command = [sys.executable, "-I", "-S", script, board.url]
        done = subprocess.run(command, cwd="/", capture_output=True, env={"LC_ALL": "POSIX", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert b"2 of 2 answers" in done.stdout
