"""A small checkpoint with everything made from it, copies of it to damage, and what must hold whatever was damaged."""

import importlib
import os
import re
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_vl_axera import cli

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
SIZE = ["--size", "56", "84"]
SECONDS = 20  # that a refusal may take; they are to take one

CAPTURE = ["run_video_by_sec", "ckpt", "--video", "frames", *SIZE, "--workdir", "work"]
EXPORT = ["export", "ckpt", "video", "--workdir", "work"]
CHECK = ["test_onnx_video_by_sec", "ckpt", "--workdir", "work"]
CALIB = ["get_calib", "--inputs", "frames", "--num-samples", "2", "--workdir", "work"]
CALIB_AGAIN = ["get_calib", "--num-samples", "2", "--workdir", "work"]
PREFLIGHT = ["preflight", "ckpt", "--workdir", "work"]
EMBED = ["extract_embedding", "ckpt", "embedded"]
PACKAGE = ["package_model", "ckpt", "out", "--workdir", "work"]
VERIFY = ["package_model", "--check", "out"]
REPORT = ["make_report", "ckpt", "--workdir", "work"]
PICTURES = ["preprocess", "frames/000.png", "--output", "pixels.npy"]

BAD, FAILED = {2}, {1}
UNFORESEEN = re.compile(r"error: (unexpected \w+|not enough memory)")
Damage = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        damage: makes it, in a copy of the world that is the current directory.
        command: the script and its arguments.
        codes: exit codes that are right.
        word: what the output must name.
        costs: files, by the beginning of their paths, that a refusal may remove.
    """

    damage: Damage
    command: list[str]
    codes: set[int]
    word: str = ""
    costs: tuple[str, ...] = ()


def build(base: Path, checkpoint: Path, frames: Path) -> Path:
    shutil.copytree(checkpoint, base / "ckpt")
    shutil.copytree(frames, base / "frames")
    before = Path.cwd()
    os.chdir(base)
    try:
        for command, code in (
            (CAPTURE, 0),
            (EXPORT, 0),
            (CHECK, 0),
            (CALIB, 0),
            (PREFLIGHT, 0),
            (REPORT, 0),
            (PACKAGE, 0),
        ):
            assert call(command) == code, command
    finally:
        os.chdir(before)
    return base


def call(command: list[str]) -> int:
    script, *arguments = command
    module = importlib.import_module(script)
    if script in ("preprocess", "check_board"):  # they run on the board, without the library
        try:
            return module.main(arguments)
        except SystemExit as end:
            return end.code
    try:
        return cli.run(module.main, arguments)
    except SystemExit as end:  # argparse
        return end.code


def contents(directory: Path) -> dict[str, object]:
    """What lies in a directory: files by content, other things by kind, links by where they lead."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[os.fspath(path)] = path.read_bytes() if path.stat().st_size < 1 << 26 else path.stat().st_size
            else:
                found[os.fspath(path)] = os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
    return found


# What a script that ends well may replace.
OWN = {
    "run_video_by_sec": ("work",),
    "export": ("work",),
    "test_onnx_video_by_sec": ("work/fidelity",),
    "get_calib": ("work/calib",),
    "preflight": ("work/preflight.json",),
    "extract_embedding": ("embedded",),
    "package_model": ("out",),
    "make_report": ("work/report.html",),
    "preprocess": ("pixels.npy",),
    "check_board": (),
    "preview_quantization": ("work/quantization",),
    "probe_build": ("work/probe", "work/ckpt_vision_probe"),
    "qwen_vl_axera.quantization.advice": (),
    "qwen_vl_axera.compiler.__main__": ("work/build-output",),
    "qwen_vl_axera.chain.__main__": ("work/.steps", "work/steps.json"),
}


def check(case: Case, world: Path, capsys) -> None:
    """Runs a case and looks at everything that is promised."""
    case.damage()
    before = contents(world)
    capsys.readouterr()
    start = time.monotonic()

    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        code = call(case.command)
    finally:
        signal.alarm(0)

    seconds, said = time.monotonic() - start, capsys.readouterr()
    assert code in case.codes, (code, said)
    assert seconds < SECONDS
    text = said.out + said.err
    assert "Traceback" not in text and not UNFORESEEN.search(text), text
    assert not [letter for letter in text if ord(letter) < 32 and letter not in "\n\t"], ascii(text)
    lines = [line for line in said.err.splitlines() if not line.startswith(("note: ", "warning: "))]
    if code == 2:
        assert len(lines) == 1 and "error: " in lines[0], said.err
    assert case.word in text, text
    after = contents(world)
    own = OWN[case.command[0]] if code != 2 else ("work/preflight.json", "work/axmodel", *case.costs)
    lost = [path for path, data in before.items() if after.get(path) != data and not _own(path, world, own)]
    assert not lost, lost
    assert not [path for path in after if path not in before and ".tmp" in path], "a temporary file was left"
    assert not Path("exploited").exists()


def _too_long(number: int, frame: object) -> None:
    raise BaseExceptionGroup("hang", [TimeoutError(f"more than {SECONDS} s")])


def _own(path: str, world: Path, own: tuple[str, ...]) -> bool:
    return os.path.relpath(path, world).startswith(own)


def write(path: str, data: bytes | str) -> Damage:
    def damage():
        remove(path)()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)

    return damage


def remove(path: str) -> Damage:
    def damage():
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    return damage


def nothing() -> None:
    """The arguments are hostile enough."""


def directory(path: str) -> None:
    Path(path).mkdir()
    (Path(path) / "precious").write_text("mine")


def listening(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(Path(path).parent)  # a socket's name is at most 107 bytes
        server.bind(Path(path).name)
        os.chdir(here)


# What may stand where a regular file is expected.
NO_FILES: dict[str, Callable[[str], object]] = {
    "directory": directory,
    "pipe": os.mkfifo,
    "socket": listening,
    "link to nothing": lambda path: os.symlink("gone", path),
    "link to itself": lambda path: os.symlink(Path(path).name, path),
    "link to a device": lambda path: os.symlink("/dev/zero", path),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), os.symlink(f"{Path(path).name}.pipe", path)),
}


def replaced(path: str, kind: str) -> Damage:
    """Puts something else in a file's place."""

    def damage():
        remove(path)()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        NO_FILES[kind](path)

    return damage
