"""Runs one step, or skips it when its outputs are still those of the same inputs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from qwen_vl_axera.chain.fingerprints import (
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
from qwen_vl_axera.chain.record import StepCost, add_step
from qwen_vl_axera.chain.steps import Step
from qwen_vl_axera.contract import STAMPS
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import write_json

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_step(step: Step, workdir: Path, summary: Path, mode: str = "run", compiler: str = "") -> int:
    """Runs or skips a step. Whoever calls it holds the work directory's lock.

    Args:
        step: what to run.
        workdir: holds the stamps.
        summary: JSON file with each step's cost, one entry a step.
        mode: "resume" skips what is up to date; "run" and "force" do not, and "run" says what it replaces.
        compiler: what `pulsar2 version` says.

    Returns:
        0 when skipped, else the command's exit code; 128 + N when signal N ended it or was passed on to it.

    Raises:
        InputError: an input is missing, the stamps can't be written, no such command.
        CheckFailed: the command ended well without making its outputs, or an input changed meanwhile.
    """
    path = workdir / STAMPS / f"{step.name}.json"
    stamp, parts = read_stamp(path), step_parts(step, compiler)
    reason = why_redo(stamp, parts, step.writes)
    if mode == "resume" and reason is None:
        _say(f"{step.name}: up to date")
        summarise(summary, step, stamp, skipped=True)
        return 0
    replaced = (output for output in step.writes if output not in step.keeps)
    existing = next(filter(os.path.lexists, replaced), None)
    if mode == "resume":
        _say(f"{step.name}: {reason}")
    elif mode == "run" and existing and reason:
        others = stamp is not None and stamp["parts"] != parts
        _say(f"{step.name}: replacing {existing}: {'it was made from other inputs (' * others}{reason}{')' * others}")

    before = {output: identity(output) for output in step.writes}
    path.unlink(missing_ok=True)  # a kill from here on leaves no stamp of something half done
    cost = run_command(step)
    summarise(summary, step, cost, skipped=False)
    if cost["returncode"]:
        return cost["returncode"]

    made = {printable(output): describe_if_there(output) for output in step.writes}
    for output in step.writes:
        found = made[printable(output)]
        if found is None:
            raise CheckFailed(f"{step.name}: the command ended well but did not make {output}")
        known = stamp and stamp["parts"] == parts and stamp["outputs"].get(printable(output)) == found
        left = before[output] == identity(output) and output not in step.keeps
        if left and not known and step.compiler != "run":
            raise CheckFailed(f"{step.name}: the command ended well but left {output} as it was before")
    data = data_parts(step)
    if changed := differences({key: parts[key] for key in data}, data):
        raise CheckFailed(f"{step.name}: {changed[0]} while the command ran: run the step again")
    try:
        write_json(path, {"fingerprint": fingerprint(parts), **cost, "outputs": made, "parts": parts})
    except OSError as error:
        raise InputError(f"{step.name}: done, but {path} cannot be written ({error.strerror})") from None
    return 0


def run_command(step: Step, stdout: IO | None = None) -> dict[str, Any]:
    """Runs a step's command. Returns what it cost: seconds, peak_bytes, and the exit code to pass on."""
    start, child = time.monotonic(), None
    with passing_on_signals(lambda: child and child.send_signal(signal.SIGTERM)) as caught:
        try:
            # The lock's descriptor is inherited: should this process be killed, nobody writes beside the command.
            # Ctrl-C reaches the whole group: the command is told by SIGTERM alone, or it would be interrupted twice.
            child = subprocess.Popen(list(step.command), close_fds=False, stdout=stdout, preexec_fn=_ignore_interrupts)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{step.name}: cannot start {step.command[0]!r} ({reason})") from None
        if caught:  # it came before there was a child
            child.terminate()
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    if caught:
        _say(f"{step.name or Path(step.command[1]).name}: interrupted by {signal.Signals(caught[0]).name}")
        code = -(signal.SIGINT if caught[0] == signal.SIGINT else signal.SIGTERM)
    elif code < 0:
        hint = ": was there enough memory?" if code == -signal.SIGKILL else ""
        _say(f"{step.name}: the command was ended by {signal.Signals(-code).name}{hint}")
    return {
        "seconds": round(time.monotonic() - start, 3),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "returncode": code if code >= 0 else 128 - code,
    }


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def passing_on_signals(send: Callable[[], Any]) -> Iterator[list[int]]:
    """Within it, the first signal goes to the child, which cleans up, and this process lives to see how it ends.

    Yields:
        The signals that came so far.
    """
    caught: list[int] = []

    def catch(number: int, _frame: Any) -> None:
        caught.append(number)
        if len(caught) == 1:
            with suppress(ProcessLookupError):
                send()

    before = {number: signal.signal(number, catch) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summarise(summary: Path, step: Step, cost: dict[str, Any], skipped: bool) -> None:
    """A step's line in `steps.json`."""
    command = [printable(argument) for argument in step.command]
    numbers = {key: cost[key] for key in ("seconds", "peak_bytes", "returncode")}
    add_step(summary, StepCost(name=step.name, command=command, skipped=skipped, **numbers))


def _say(text: str) -> None:
    line = "".join(letter if letter.isprintable() else "?" for letter in printable(text))
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
