"""An external tool: where it is, its command lines, and running them with a useful end.

A tool is a command on this machine or in a Docker image. Paths are written as the tool will see them, and a
command is a list of arguments: no shell reads it, except when somebody pastes its quoted line into one.
"""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl_axera.compiler.container import NAMES, Mounts, docker_argv
from qwen_vl_axera.compiler.lock import BUILDS, one_build
from qwen_vl_axera.compiler.running import Shown, pieces, running
from qwen_vl_axera.compiler.stages import Stages
from qwen_vl_axera.errors import CheckFailed, InputError

VARIABLE, DEFAULT = "PULSAR2", "pulsar2"
DOCKER = "docker:"
LAST_LINES = 12  # of a failed tool's output
ASKING = 300  # seconds for a question such as -h: a container takes a while to start
ANSWER = 1 << 20  # bytes of an answer
QUIET = 300  # seconds of silence after which a user should know that the tool still runs
REDRAW = 5  # seconds after which the line that a terminal shows tells another time
NO_RUN = 125  # exit code of `docker run` where Docker itself failed
HELP = re.compile(r"(See|Run) 'docker (run )?--help'.*")  # how Docker's last words end, whatever the reason
CONFLICT = "is already in use by container"


@dataclass(frozen=True)
class Tool:
    """Where the compiler is.

    Attributes:
        kind: "command", "docker" or "missing".
        name: the command's path or the image; why there is none.
    """

    kind: str
    name: str

    def __bool__(self) -> bool:
        return self.kind != "missing"


@dataclass(frozen=True)
class Command:
    """A command line that is ready to run.

    Attributes:
        name: what it is, for messages.
        argv: program and arguments.
        cwd: where it runs.
        makes: directories that must exist before, since a container cannot make them for the caller.
        expects: directory and name of the files that must be there afterwards; names are glob patterns. What has
            such a name before is removed.
    """

    name: str
    argv: list[str]
    cwd: Path
    makes: list[Path] = field(default_factory=list)
    expects: list[tuple[Path, str]] = field(default_factory=list)

    def line(self) -> str:
        """The command for a shell, quoted; it begins with a `cd` where that matters."""
        parts = []
        if self.cwd.resolve() != Path.cwd():
            parts.append(shlex.join(["cd", "--", str(Path.cwd() / self.cwd)]))
        missing = [str(path.resolve()) for path in self.makes if not path.is_dir()]
        if missing and self.argv[0] == "docker":  # a mount needs its directory; the tool alone makes its own
            parts.append(shlex.join(["mkdir", "-p", "--", *missing]))
        return " && ".join([*parts, shlex.join(self.argv)])


def find_tool(spec: str | None) -> Tool:
    """Finds the compiler.

    Args:
        spec: a command's name or path, or `docker:IMAGE`; None or empty: `pulsar2` on PATH.

    Raises:
        InputError: what was asked for is not there.
    """
    if not spec:
        if shutil.which(DEFAULT):
            return Tool("command", DEFAULT)
        return Tool("missing", f"no {DEFAULT} on PATH, and {VARIABLE} is not set")
    if spec.startswith(DOCKER):
        image = spec.removeprefix(DOCKER)
        if not image or image.startswith("-") or any(mark.isspace() for mark in image):
            raise InputError(f"{VARIABLE}={spec}: expected docker:IMAGE, for example docker:pulsar2:7.0")
        if not shutil.which("docker"):
            raise InputError(f"{VARIABLE}={spec}: no docker on PATH")
        return Tool("docker", image)
    found = shutil.which(os.path.expanduser(spec))  # a Path would lose the "./"
    if not found:
        raise InputError(f"{VARIABLE}={spec}: no such command; expected a path, or docker:IMAGE")
    return Tool("command", str(Path.cwd() / found) if os.sep in spec else spec)


class Paths:
    """Paths as a tool will see them: relative to where it runs, or inside the container.

    Args:
        tool: from `find_tool`.
        workdir: where it runs and may write; None: here, and a container does not see this directory.
    """

    def __init__(self, tool: Tool, workdir: Path | None = None):
        self.tool, self.workdir = tool, Path(workdir or "")
        self.mounts = Mounts(workdir) if tool.kind == "docker" else None

    def directory(self, path: Path, writable: bool = False) -> str:
        return self.mounts.directory(path, writable) if self.mounts else self._relative(path)

    def graph(self, path: Path) -> str:
        return self.mounts.graph(path) if self.mounts else self._relative(path)

    def file(self, path: Path) -> str:
        return self.mounts.file(path) if self.mounts else self._relative(path)

    def _relative(self, path: Path) -> str:
        here = Path.cwd()
        absolute, workdir = here / path, Path(os.path.normpath(here / self.workdir))
        if absolute.is_relative_to(workdir):
            shown = str(absolute.relative_to(workdir))
        else:
            shown = str(path if workdir == here else absolute)
        return f"./{shown}" if shown.startswith("-") else shown

    def command(self, argv: list[str], makes: list[Path] = (), expects: list[tuple[Path, str]] = ()) -> Command:
        """The command in full. `argv` begins with the tool's usual name."""
        name = " ".join(argv[:2])
        if self.mounts:
            argv = docker_argv(self.tool.name, self.mounts, argv, makes)
        elif self.tool:
            argv = [self.tool.name, *argv[1:]]
        return Command(name, argv, self.workdir, list(makes), list(expects))


def execute(command: Command, watch: Callable[[str], None] = lambda line: None, seconds: float | None = None) -> None:
    """Runs a command, its output streaming through, and tells how far it is; builds wait for each other.

    The files that it is expected to write are there afterwards if it has ended well, and only then.

    Args:
        command: what to run.
        watch: receives each line that the tool has ended, of a very long one the end.
        seconds: that it may take, where that is known.

    Raises:
        CheckFailed: it fails, is killed, or leaves out a file; the message ends with its last lines.
        InputError: a build runs already in a container, or an earlier build's files cannot be replaced.
    """
    for directory in command.makes:
        directory.mkdir(parents=True, exist_ok=True)
    with one_build(command.name) as inherited:
        if command.name in BUILDS and command.argv[0] == "docker":
            refuse_second_container()
        for directory in command.makes:
            check_writable(directory)
        _remove(_outputs(command))
        try:
            _run(command, watch, seconds, inherited)
        except BaseException:
            with suppress(InputError):  # the failure is what the user must read
                _remove(_outputs(command))  # half written, perhaps
            raise


def _run(command: Command, watch: Callable[[str], None], seconds: float | None, inherited: list[int]) -> None:
    lines: deque[str] = deque(maxlen=LAST_LINES)  # of both: on which of them the tool complains is not documented
    sys.stdout.flush()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with running(command.argv, cwd=command.cwd, env=environment, pass_fds=inherited) as process:
        shown = {process.stdout: Shown(sys.stdout), process.stderr: Shown(sys.stderr)}
        stages = Stages(command.name, seconds)
        try:
            for stream, piece in pieces(process, REDRAW if stages.terminal else QUIET):
                if stream is None:
                    stages.silence()
                else:
                    stages.clear()
                    for line in shown[stream].show(piece):
                        lines.append(line)
                        stages.read(line)
                        watch(line)
                if not any(one.begun for one in shown.values()):
                    stages.tell()
        finally:
            stages.clear()
    lines.extend(line for stream in shown.values() for line in stream.end())
    if process.returncode:
        if found := next((line for line in lines if CONFLICT in line), None):
            name = command.argv[command.argv.index("--name") + 1] if "--name" in command.argv else found
            raise CheckFailed(f"{command.name}: {_still_there(name)}")
        raise CheckFailed(f"{command.name} {_reason(process.returncode)}; its last lines: {said(lines) or '(none)'}")
    missing = [name for directory, name in command.expects if not any(map(_written, directory.glob(name)))]
    if missing:
        names = sorted({path.name for directory, _ in command.expects for path in directory.glob("*")})
        raise CheckFailed(
            f"{command.name} reported success, but {len(missing)} of {len(command.expects)} files were not "
            f"written: {_some(missing)} (killed for lack of memory?); found there: {_some(names) or 'nothing'}"
        )


def refuse_second_container() -> None:
    """That no container of ours builds on this machine: it outlives a client that is killed.

    Raises:
        InputError: one does.
    """
    answer = ask(Command("docker ps", ["docker", "ps", "--filter", f"name={NAMES}", "--format", "{{.Names}}"], Path()))
    if found := re.search(rf"^{NAMES}[0-9a-f]+$", answer.stdout, re.MULTILINE):
        raise InputError(f"{_still_there(found[0])} (two builds at once give bad models)")


def check_writable(directory: Path) -> None:
    """That no directory in it is root's alone: what a killed container leaves, and nobody else can remove.

    Raises:
        InputError: one is; with the command that hands it over.
    """
    for folder, _, _ in os.walk(directory):
        if os.stat(folder).st_uid == 0 and not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            owner = f"{os.geteuid()}:{os.getegid()}"
            command = shlex.join(["sudo", "chown", "-R", owner, "--", str(directory)])
            raise InputError(
                f"{folder} belongs to root (left by a container that was killed?); hand it over: {command}"
            )


def ask(command: Command) -> subprocess.CompletedProcess:
    """Runs a command that only answers a question, quietly.

    Raises:
        CheckFailed: it does not start, or does not answer in time; Docker cannot run it.
    """
    start = time.monotonic()
    try:
        with running(command.argv, cwd=command.cwd) as process:
            heard = {process.stdout: b"", process.stderr: b""}
            for stream, piece in pieces(process, ASKING):
                if stream is not None:
                    heard[stream] += piece
                if max(map(len, heard.values())) > ANSWER:
                    raise CheckFailed(f"{command.name} answers with more than {ANSWER >> 10} kB")
                if time.monotonic() - start >= ASKING:
                    raise CheckFailed(f"{command.name} does not answer within {ASKING} s")
    except OSError as error:
        raise CheckFailed(f"{command.argv[0]} does not start: {error.strerror}") from None
    stdout, stderr = (words.decode("utf-8", "replace") for words in heard.values())
    if command.argv[0] == "docker" and process.returncode == NO_RUN:
        raise CheckFailed(f"{command.name}: Docker fails: {said(stderr.splitlines()[-LAST_LINES:])}")
    return subprocess.CompletedProcess(command.argv, process.returncode, stdout, stderr)


def said(lines: Iterable[str]) -> str:
    """A tool's last lines as one, without Docker's hint at its help."""
    return " | ".join(text for line in lines if (text := line.strip()) and not HELP.fullmatch(text))


def option(flag: str, value: object) -> list[str]:
    """A flag and its value; joined where the value would be taken for a flag itself."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def _outputs(command: Command) -> list[Path]:
    return [path for directory, name in command.expects for path in directory.glob(name)]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be replaced ({error.strerror}): remove it") from None


def _written(path: Path) -> bool:
    """Whether it is a regular file that is not empty."""
    state = path.stat()
    return stat.S_ISREG(state.st_mode) and state.st_size > 0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + " ..." * (len(names) > 4)


def _still_there(name: str) -> str:
    return f"the container {name} of an earlier run still works or lies there: end it with `docker rm -f {name}`"


def _reason(code: int) -> str:
    # Docker and shells report a signal as 128 + its number.
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number not in set(signal.Signals):
        return f"failed with exit code {code}"
    hint = ""
    if number == signal.SIGKILL:
        hint = " (out of memory? builds below 32 GB are killed at a high PARALLEL: lower it)"
    return f"was ended by {signal.Signals(number).name}{hint}"
