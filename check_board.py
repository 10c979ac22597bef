"""Does the board say what the host said? Asks a running `axllm serve` about the very frames that were checked.

    python check_board.py URL [--check DIR] [--upload]     (the standard library suffices: it runs on the board, too)
    python check_board.py --print [--check DIR]            (what to type into `axllm run` instead)

Reads:  DIR (default: check/ beside this script), which package_model.py writes: the captured frames as PNG files
        and check.json with the questions, transformers' answers and, where they were made, the ONNX graph's.
Prints: each answer beside the host's with the first difference, the time to the first token, tokens per second.
        Exit code 1 when a caption or a box differs, 2 when the board does not answer or there is nothing to compare.

A server on this machine is given the directory's path, any other one the pictures themselves (--upload does so
always, for a tunnel).
"""

from __future__ import annotations  # the board's Python may be older than the project's

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path.append(sys.path.pop(0))  # a json.py beside this script must not stand in for Python's own

import argparse
import base64
import contextlib
import http.client
import ipaddress
import json
import os
import re
import socket
import stat
import threading
import time
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

RECORD = "check.json"
FORMAT = 1
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}  # what the runtime takes from a directory, all of it
MISPLACED = ("Query: ", "Document: ")  # a question that begins so is put before the frames
PORT = 8000  # of `axllm serve`
SPARE = 32  # tokens beyond the host's answer: enough to see that the board's goes on
UNKNOWN_LENGTH = 128  # tokens to ask for where the host has no answer
CONNECT_SECONDS = 10
ANSWER_SECONDS = 600  # for one answer, however slowly it trickles
LINE_BYTES, ANSWER_BYTES, RECORD_BYTES, PICTURE_BYTES = 1 << 18, 1 << 22, 1 << 24, 1 << 26
PNG = b"\x89PNG"
MOST_CONTINUES = 8  # of "100 Continue" before a response
NOT_STREAMED = {400, 415, 422, 501}  # a server that can't stream says one of these
NOT_SERVED = {404, 405, 501}


# What http.client raises about a response, and what a chunk of 10^60 bytes makes of it.
BROKEN = (OSError, http.client.HTTPException, ValueError, OverflowError, MemoryError)


class Problem(Exception):
    """What ends the run with exit code 2, in one line."""


def printable(text: str) -> str:
    """Text from elsewhere, made harmless for a terminal: one line, no control or direction characters."""
    harmless = (c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)
    return "".join(harmless)


def say(text: str) -> None:
    """Prints a line. A reader that has gone (head, less) changes nothing: the exit code still says what was found."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# The frames and the host's answers


def read_check(directory: Path) -> dict:
    """`check.json`, with everything in it that is used looked at.

    Raises:
        Problem: it is missing or malformed, or the directory holds other pictures than it lists, or no pictures.
    """
    path = directory / RECORD
    try:
        record = json.loads(read_file(path, RECORD_BYTES).decode("utf-8"))
        if type(record["format"]) is not int or record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, expected {FORMAT}")
        names, questions = record["frames"], record["questions"]
        answers = [question[by] for question in questions for by in ("transformers", "onnx") if question[by]]
        _check_texts(record["checkpoint"], record["settings"], *names)
        _check_texts(*(question["prompt"] for question in questions), *(answer["text"] for answer in answers))
        if not names or any(Path(name).name != name or not name.endswith(".png") for name in names):
            raise ValueError("frames: expected at least one, each the name of a .png file")
        if not all(type(question["complete"]) is bool for question in questions):
            raise ValueError("complete: expected true or false")
        if not all(isinstance(answer["token_ids"], list) for answer in answers):
            raise ValueError("token_ids: expected a list")
    except FileNotFoundError:
        raise Problem(
            f"{path} is missing: run package_model.py after run_video_by_sec.py, or name OUT/check by --check"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{path}: not usable ({type(error).__name__}: {error}); run package_model.py again") from None
    found = sorted(entry.name for entry in directory.iterdir() if entry.suffix.lower() in PICTURES)
    if found != sorted(names):
        odd = sorted(set(found) ^ set(names))[0]
        raise Problem(
            f"{directory}: {len(found)} pictures, check.json lists {len(names)} (first other: {odd}): copy it again, "
            "and nothing else into it"
        )
    for name in names:
        if not read_file(directory / name, PICTURE_BYTES).startswith(PNG):
            raise Problem(f"{directory / name}: expected a PNG file; copy the directory again")
    return record


def read_file(path: Path, limit: int) -> bytes:
    """A whole regular file of bounded size. A pipe is not waited for, a device not read.

    Raises:
        FileNotFoundError: there is none.
        Problem: it is something else, or larger.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Problem(f"{path}: not readable ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Problem(f"{path}: expected a file, found something else")
        data = b""
        while len(data) <= limit and (piece := os.read(descriptor, limit + 1 - len(data))):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise Problem(f"{path}: more than {limit >> 20} MB, which no such file has")
    return data


def _check_texts(*values) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{str(value)[:40]!r} is no text")
        value.encode("utf-8")  # a lone surrogate could not be sent


def messages(prompt: str, record: dict, directory: Path, upload: bool) -> list:
    """One user message: the frames as one video, then the question.

    Args:
        prompt: the question.
        record: `check.json`.
        directory: where the frames are.
        upload: the pictures themselves, in order, instead of the directory's path.
    """
    if upload:
        pictures = [read_file(directory / name, PICTURE_BYTES) for name in sorted(record["frames"])]
        urls = ["data:image/png;base64," + base64.b64encode(picture).decode("ascii") for picture in pictures]
    else:
        urls = [f"video:{directory.resolve()}"]
    parts = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


# The board


class Board:
    """A server that speaks OpenAI's chat protocol, taken for hostile: its time, its bytes and its words are bounded.

    Redirects and proxies are not followed.

    Args:
        url: http://HOST[:PORT], /v1 behind it or not.

    Raises:
        Problem: it is no such address.
    """

    def __init__(self, url: str):
        wanted = f"URL {printable(url)}: expected http://HOST:PORT of a running `axllm serve`"
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self.host, self.port = parts.hostname, parts.port or PORT
        except ValueError:
            raise Problem(wanted) from None
        plain = re.fullmatch(r"[!-~]+", url) and not (parts.query or parts.fragment or parts.username)
        self.base = re.sub(r"(/v1)?(/chat/completions)?/*$", "", parts.path)
        if parts.scheme != "http" or not self.host or not plain:
            raise Problem(wanted)
        self.name = f"http://{self.host}:{self.port}{self.base}"

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, and so reads this machine's files."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def model(self, wanted: str) -> str:
        """The id of the served model: the wanted one, or the first.

        Raises:
            Problem: it lists none.
        """
        with self._request("GET", "/v1/models") as response:
            if response.status in NOT_SERVED:
                return wanted
            models = _parsed(response.body(), response.url).get("data")
        known = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        names = [model["id"] for model in known if isinstance(model.get("id"), str)]
        if wanted in names:
            return wanted
        if not names:
            raise Problem(f"{self.name}/v1/models: expected a list of models: is it `axllm serve`?")
        say(f"warning: the board serves {printable(names[0])}, the answers below are those of {printable(wanted)}")
        return names[0]

    def ask(self, request: dict) -> Answer:
        """Sends a chat request, as a stream where the server can.

        Raises:
            Problem: there is no answer.
        """
        with self._request("POST", "/v1/chat/completions", dict(request, stream=True)) as response:
            if response.status not in NOT_STREAMED:
                return response.answer()
        with self._request("POST", "/v1/chat/completions", dict(request, stream=False)) as response:
            return response.answer()

    def _request(self, method: str, path: str, body: dict | None = None) -> Response:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_SECONDS)
        connection.response_class = _Reply
        return Response(connection, f"{self.name}{path}", method, self.base + path, body)


class _Reply(http.client.HTTPResponse):
    """The standard library's, which waits for ever for what follows a "100 Continue"."""

    continues = 0

    def _read_status(self):
        version, status, reason = super()._read_status()
        self.continues += status == http.client.CONTINUE
        if self.continues > MOST_CONTINUES:
            raise http.client.HTTPException("nothing but interim responses")
        return version, status, reason


class Answer:
    """What the board said and how fast.

    Attributes:
        text: the words.
        first: seconds to the first piece; None when it came in one piece.
        pieces: tokens, or the pieces of the stream where the server does not count them.
        speed: of those a second, after the first; None when there are too few.
    """

    def __init__(self, text: str, first: float | None = None, pieces: int = 0, seconds: float = 0.0):
        self.text, self.first, self.pieces = text, first, pieces
        self.speed = (pieces - 1) / seconds if pieces > 1 and seconds > 0 else None


class Response:
    """One request and its response, to be used as a context: the connection ends with it, or when time is up."""

    def __init__(self, connection, url: str, method: str, path: str, body: dict | None):
        self.url, self.late, self.read = url, False, 0
        self._connection, self._start = connection, time.monotonic()
        self._timer = threading.Timer(ANSWER_SECONDS, self._end)
        self._timer.daemon = True
        try:
            connection.connect()
            self._socket = connection.sock
            self._socket.settimeout(ANSWER_SECONDS)
            self._timer.start()
            data = None if body is None else json.dumps(body).encode("ascii")
            connection.request(method, path, data, {"Content-Type": "application/json", "Connection": "close"})
            self._response = connection.getresponse()
        except BROKEN as error:
            self.__exit__()
            raise self._problem(error) from None
        self.status = self._response.status

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._timer.cancel()
        self._connection.close()

    def _end(self) -> None:
        # A timeout of the socket starts anew with every byte; this one does not.
        self.late = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _problem(self, error) -> Problem:
        if self.late or isinstance(error, socket.timeout):
            return Problem(f"{self.url}: no whole answer within {ANSWER_SECONDS} s")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Problem(f"{self.url}: {printable(reason)}: is `axllm serve` running there?")

    def _line(self) -> bytes:
        try:
            line = self._response.readline(LINE_BYTES + 1)
        except BROKEN as error:
            raise self._problem(error) from None
        if self.late:
            raise self._problem(None)
        self.read += len(line)
        if len(line) > LINE_BYTES or self.read > ANSWER_BYTES:
            raise Problem(f"{self.url}: more than an answer can be; stopped reading")
        return line

    def body(self) -> bytes:
        """Everything, of a response that is no stream.

        Raises:
            Problem: it is an error, a redirect, or too long.
        """
        lines = list(iter(self._line, b""))
        body = b"".join(lines)
        if self.status != 200:
            where = " to elsewhere, not followed" if 300 <= self.status < 400 else ""
            raise Problem(f"{self.url}: HTTP {self.status}{where}: {printable(body[:200].decode('utf-8', 'replace'))}")
        return body

    def answer(self) -> Answer:
        """The assistant's words.

        Raises:
            Problem: there are none, or the server reports an error.
        """
        if self.status == 200 and "json" not in self._response.getheader("Content-Type", ""):
            return self._stream()
        message = _choice(_parsed(self.body(), self.url), self.url).get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise Problem(f"{self.url}: the response holds no message")
        return Answer(message["content"])

    def _stream(self) -> Answer:
        pieces, first, last, counted, ended = [], None, 0.0, None, False
        for line in iter(self._line, b""):
            if not line.startswith(b"data:"):
                continue  # comments, empty lines, other fields
            data = line[len(b"data:") :].strip()
            ended = data == b"[DONE]"
            if ended:
                break
            event = _parsed(data, self.url)
            usage = event.get("usage")
            count = usage.get("completion_tokens") if isinstance(usage, dict) else None
            if type(count) is int and 0 < count <= ANSWER_BYTES:
                counted = count
            if event.get("choices") == []:  # the last event of some servers: usage alone
                continue
            delta = _choice(event, self.url).get("delta")
            content = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(content, str) and content:
                last = time.monotonic() - self._start
                first = last if first is None else first
                pieces.append(content)
        if first is None and not ended:
            raise Problem(f"{self.url}: the stream broke off before the first word")
        return Answer("".join(pieces), first, counted or len(pieces), last - (first or 0.0))


def _parsed(data: bytes, url: str) -> dict:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        shown = printable(data[:80].decode("utf-8", "replace"))
        raise Problem(f"{url}: the board's response is no JSON object: {shown}")
    return value


def _choice(event: dict, url: str) -> dict:
    choices = event.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    error = event.get("error")
    message = error.get("message", error) if isinstance(error, dict) else error
    raise Problem(f"{url}: {printable(str(message or 'a response without choices')[:200])}")


# The comparison


def first_difference(expected: str, actual: str) -> int | None:
    """The first character in which two answers differ, counted from 0; None when they are equal."""
    for number in range(max(len(expected), len(actual))):
        if expected[number : number + 1] != actual[number : number + 1]:
            return number
    return None


def expected_text(question: dict) -> str | None:
    """What the board should say; None where the host has no answer, or one that was cut before its first character.

    An answer that was cut may end within a character of several bytes.
    """
    if not question["transformers"]:
        return None
    text = question["transformers"]["text"]
    return text if question["complete"] else text.strip().rstrip("\ufffd") or None


def differs(question: dict, answer: Answer) -> str | None:
    """What is the first thing in which the board's answer is not transformers'; None when nothing is."""
    expected, actual = expected_text(question) or "", answer.text.strip()
    if not question["complete"]:
        actual = actual[: len(expected)]
    at = first_difference(expected, actual)
    if at is None:
        return None
    one, other = (printable(text[at : at + 1]) or "the end" for text in (expected, actual))
    note = f"first difference at character {at + 1}: {other} instead of {one}"
    if question["onnx"] and actual == question["onnx"]["text"]:
        note += "; it is what the ONNX graph says"
    boxes = [[int(n) for n in re.findall(r"\d{1,6}", text)] for text in (expected, actual)]
    if "[" in expected and len(boxes[0]) == len(boxes[1]) == 4:
        note += f"; the box is off by at most {max(abs(boxes[0][n] - boxes[1][n]) for n in range(4))}"
    return note


def check(board: Board, record: dict, directory: Path, upload: bool) -> int:
    """Asks every question and prints the comparison. Returns the exit code."""
    model = board.model(record["checkpoint"])
    if not record["questions"]:
        raise Problem(f"{directory / RECORD} holds no questions; run package_model.py again")
    different = compared = 0
    for question in record["questions"]:
        known = question["transformers"]
        request = {"model": model, "messages": messages(question["prompt"], record, directory, upload)}
        request["max_tokens"] = len(known["token_ids"]) + SPARE if known else UNKNOWN_LENGTH
        answer = board.ask(request)
        say(printable(question["prompt"]))
        if question["prompt"].startswith(MISPLACED):
            say("  warning: the runtime puts a question that begins so before the frames")
        for name, said in (("transformers", known), ("ONNX", question["onnx"])):
            if said:
                say(f"  {name:<12}  {printable(said['text'])}")
        say(f"  {'board':<12}  {printable(answer.text.strip())}")
        comparable = expected_text(question) is not None
        note = differs(question, answer) if comparable else "nothing to compare with"
        equal = "equal" if question["complete"] else "equal as far as the host went"
        say(f"  {note or equal}")
        say(f"  {_speed(answer)}")
        compared += comparable
        different += bool(comparable and note)
    if not compared:
        raise Problem("nothing was compared: run test_onnx_video_by_sec.py --generate, then package_model.py again")
    say(f"{compared - different} of {compared} answers are transformers' own")
    return 1 if different else 0


def _speed(answer: Answer) -> str:
    if answer.first is None:
        return "in one piece: time to the first token unknown"
    speed = "" if answer.speed is None else f", then {answer.speed:.2f} tokens/s"
    return f"first token after {answer.first:.2f} s{speed} ({answer.pieces} in all)"


def print_lines(record: dict, directory: Path) -> None:
    """What to type by hand, in the directory that holds everything, and what should come."""
    say(f"In {printable(str(directory.resolve().parent))}:")
    say(f"  axllm run {printable(record['settings'])}")
    if re.search(r"\s", directory.name):
        say("  (its media line is cut at spaces: give the frames' directory a name without)")
    for question in record["questions"]:
        say(f"prompt >> {printable(question['prompt'])}")
        say(f"media >>  video:{printable(directory.name)}")
        if expected := expected_text(question):
            say(f"  expected: {printable(expected)}")
        say("prompt >> /reset")
    say("prompt >> /exit")


# The command


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", nargs="?", help=f"of `axllm serve`: http://HOST:PORT (its port: {PORT})")
    here = Path(__file__).resolve().parent / "check"
    parser.add_argument("--check", metavar="DIR", type=Path, default=here, help="default: check/ beside this script")
    parser.add_argument("--upload", action="store_true", help="send the pictures instead of the directory's path")
    parser.add_argument("--print", action="store_true", dest="by_hand", help="only what to type into `axllm run`")
    return parser


def main(argv: list | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.url is None) != args.by_hand:
        parser.error("expected the URL of `axllm serve`, or --print")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a board's terminal may know ASCII alone
    try:
        record = read_check(args.check)
        code = 0
        if args.by_hand:
            print_lines(record, args.check)
        else:
            board = Board(args.url)
            code = check(board, record, args.check, args.upload or not board.is_here)
        return code
    except (Problem, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"error: unexpected {type(error).__name__}: {printable(str(error)[:200])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
