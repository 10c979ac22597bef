"""Runs one step of the chain, or skips it when its outputs are still those of the same inputs.

    python -m qwen_vl_axera.chain.steps --workdir DIR --mode run|resume|force --name NAME [--input PATH]...
        [--checkpoint CKPT]... [--output PATH]... [--env NAME]... [--summary FILE] [--lock-fd N] -- COMMAND ARGS...

Reads the inputs and, after a success, writes `DIR/.steps/NAME.json` (the stamp). Messages go to stderr.
Exit code: the command's; 1 when it ended well without making its outputs; 2 for bad input or a work
directory in use; 130 or 143 when interrupted. Standard library only.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_vl_axera import cli
from qwen_vl_axera.chain.fingerprints import (
    Step,
    data_parts,
    describe_if_there,
    differences,
    fingerprint,
    identity,
    printable,
    read_stamp,
    step_parts,
    why_redo,
)
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import write_json

MODES = ("run", "resume", "force")
STAMPS = ".steps"
INTERRUPT_GRACE = 1.0  # seconds


def run_step(
    step: Step, workdir: Path, mode: str = "run", summary: Path | None = None, lock_fd: int | None = None
) -> int:
    """Runs or skips a step.

    Args:
        step: what to run.
        workdir: holds the stamps; one run at a time may use it.
        mode: "resume" skips what is up to date; "run" and "force" do not, and "run" says what it replaces.
        summary: JSON file with each step's cost, one entry a step.
        lock_fd: open descriptor of `.steps/lock`, by which a caller stays locked between its steps.

    Returns:
        0 when skipped, else the command's exit code; 128 + N when signal N ended it or was passed on to it.

    Raises:
        InputError: an input is missing, the work directory is in use or not writable, no such command.
        CheckFailed: the command ended well without making its outputs, or an input changed meanwhile.
    """
    _check(step, workdir, mode, summary)
    with _locked(workdir, lock_fd) as lock:
        path = workdir / STAMPS / f"{step.name}.json"
        stamp, parts = read_stamp(path), step_parts(step)
        reason = why_redo(stamp, parts, step.outputs)
        if mode == "resume" and reason is None:
            _say(f"{step.name}: up to date")
            _summarise(summary, step, stamp, skipped=True)
            return 0
        existing = next((output for output in step.outputs if os.path.lexists(output)), None)
        if mode == "resume":
            _say(f"{step.name}: {reason}")
        elif mode == "run" and existing and reason:
            others = stamp is not None and stamp["parts"] != parts
            why = f"it was made from other inputs ({reason})" if others else reason
            _say(f"{step.name}: replacing {existing}: {why}")

        before = {output: identity(output) for output in step.outputs}
        path.unlink(missing_ok=True)  # a kill from here on leaves no stamp of something half done
        cost, code = _run(step, lock)
        _summarise(summary, step, cost, skipped=False)
        if code:
            return code

        made = {printable(output): describe_if_there(output) for output in step.outputs}
        for output in step.outputs:
            found = made[printable(output)]
            if found is None:
                raise CheckFailed(f"{step.name}: the command ended well but did not make {output}")
            known = stamp and stamp["parts"] == parts and stamp["outputs"].get(printable(output)) == found
            if before[output] == identity(output) and not known:
                raise CheckFailed(f"{step.name}: the command ended well but left {output} as it was before")
        data = data_parts(step)
        if changed := differences({key: parts[key] for key in data}, data):
            raise CheckFailed(f"{step.name}: {changed[0]} while the command ran: run the step again")
        try:
            write_json(path, {"fingerprint": fingerprint(parts), **cost, "outputs": made, "parts": parts})
        except OSError as error:
            raise InputError(f"{step.name}: done, but {path} cannot be written ({error.strerror})") from None
        return 0


def _check(step: Step, workdir: Path, mode: str, summary: Path | None) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", step.name):
        raise InputError(f"--name {step.name!r}: expected letters, digits, '.', '_' and '-', at most 64")
    if mode not in MODES:
        raise InputError(f"--mode {mode!r}: expected one of {', '.join(MODES)}")
    if not step.command:
        raise InputError(f"{step.name}: expected a command after --")
    if summary is not None and not summary.parent.is_dir():
        raise InputError(f"--summary {summary}: {summary.parent} is no directory")
    for source in step.inputs:
        for path in (workdir, *step.outputs):
            if source.resolve() in (path.resolve(), *path.resolve().parents):
                raise InputError(f"{step.name}: {path} lies inside the input {source}: use another place for it")
    if workdir.resolve() in [checkpoint.resolve() for checkpoint in step.checkpoints]:
        raise InputError(f"--workdir {workdir} is the checkpoint's own directory: use another one")


@contextlib.contextmanager
def _locked(workdir: Path, lock_fd: int | None) -> Iterator[int]:
    path = workdir / STAMPS / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.is_symlink():
            raise InputError(f"{path.parent} is a symbolic link: expected a directory")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(0, "not writable")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(path, flags, 0o644) if lock_fd is None else lock_fd
        if not os.path.samestat(os.fstat(lock), path.lstat()):
            raise InputError(f"--lock-fd {lock_fd} is not {path}")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}): use another --workdir") from None
    try:
        _lock(lock, path)
        os.ftruncate(lock, 0)
        for pid in (os.getpid(),) if lock_fd is None else (os.getppid(), os.getpid()):
            _add_holder(lock, pid)
        yield lock
    finally:
        if lock_fd is None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # not left to something that the command started and that stays
            os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _living_holder(path) or "unknown"
        workdir = path.parent.parent
        raise InputError(f"another run (process {holder}) is at work in {workdir}: wait for it or end it") from None


def _add_holder(lock: int, pid: int) -> None:
    os.pwrite(lock, f"{pid} ".encode(), os.fstat(lock).st_size)


def _living_holder(path: Path) -> int | None:
    for word in path.read_bytes().split():
        try:
            os.kill(int(word), 0)
        except PermissionError:
            return int(word)
        except (OSError, ValueError, OverflowError):
            continue
        return int(word)
    return None


def _run(step: Step, lock: int) -> tuple[dict[str, Any], int]:
    """Runs the command. Returns its cost and the exit code to pass on."""
    start = time.monotonic()
    with _PassSignals() as signals:
        try:
            # The child holds the lock too: should this process be killed, nobody writes beside the child.
            child = subprocess.Popen(list(step.command), pass_fds=(lock,))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{step.name}: cannot start {step.command[0]!r} ({reason})") from None
        _add_holder(lock, child.pid)
        signals.started(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    cost = {
        "seconds": round(time.monotonic() - start, 3),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "returncode": code,
    }
    if signals.caught:
        _say(f"{step.name}: interrupted by {signal.Signals(signals.caught).name}")
        return cost, 128 + signals.caught
    if code < 0:
        hint = ": was there enough memory?" if code == -signal.SIGKILL else ""
        _say(f"{step.name}: the command was ended by {signal.Signals(-code).name}{hint}")
    return cost, code if code >= 0 else 128 - code


class _PassSignals:
    """Passes SIGTERM and SIGINT on to the child, and keeps this process alive to see how it ends.

    Ctrl-C reaches the child from the terminal already, and a second SIGINT would interrupt its cleaning up:
    SIGINT is passed on only when the child has not ended a moment later.
    """

    def __init__(self):
        self.caught: int | None = None
        self._pid: int | None = None
        self._timers: list[threading.Timer] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_PassSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup and background jobs stay as they are
                    self._handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_) -> None:
        self._pid = None
        for timer in self._timers:
            timer.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def started(self, pid: int) -> None:
        self._pid = pid
        if self.caught:
            self._send(self.caught)

    def _catch(self, number: int, _frame) -> None:
        self.caught = number
        if number == signal.SIGINT:
            self._timers.append(threading.Timer(INTERRUPT_GRACE, self._send, [number]))
            self._timers[-1].daemon = True
            self._timers[-1].start()
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)


def _summarise(summary: Path | None, step: Step, cost: dict[str, Any], skipped: bool) -> None:
    """Adds a step's entry to the summary, in place of an earlier one of the same name."""
    if summary is None:
        return
    try:
        entries = [entry for entry in json.loads(summary.read_bytes()) if entry["name"] != step.name]
    except (OSError, ValueError, KeyError, TypeError):
        entries = []
    numbers = {key: cost[key] for key in ("seconds", "peak_bytes", "returncode")}
    command = [printable(argument) for argument in step.command]
    write_json(summary, [*entries, {"name": step.name, **numbers, "command": command, "skipped": skipped}])


def _say(text: str) -> None:
    line = "".join(letter if letter.isprintable() else "?" for letter in printable(text))
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    flags = []
    while given and given[0] != "--":
        flag = given.pop(0)
        # Every flag takes one value; joined to its flag, a path may begin with a dash.
        joined = flag.startswith("--") and "=" not in flag and flag != "--help" and given
        flags.append(f"{flag}={given.pop(0)}" if joined else flag)

    arguments = cli.parser(__doc__)
    cli.add_workdir(arguments)
    arguments.add_argument("--mode", choices=MODES, default="run", help="resume: skip what is up to date")
    arguments.add_argument("--name", required=True, help="the step's name")
    for flag, what in (("input", "file or directory read"), ("checkpoint", "checkpoint read"), ("output", "made")):
        arguments.add_argument(f"--{flag}", metavar="PATH", type=Path, action="append", default=[], help=what)
    arguments.add_argument("--env", metavar="NAME", action="append", default=[], help="variable that matters")
    arguments.add_argument("--summary", metavar="FILE", type=Path, help="JSON file for each step's cost")
    arguments.add_argument("--lock-fd", metavar="N", type=int, help="descriptor of DIR/.steps/lock to lock")
    args = arguments.parse_args(flags)
    step = Step(args.name, given[1:], args.input, args.checkpoint, args.output, args.env)
    return run_step(step, args.workdir, args.mode, args.summary, args.lock_fd)


if __name__ == "__main__":
    sys.exit(cli.run(main))
