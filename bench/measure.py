"""Seconds, memory, bytes on the disk and ratios: what every part of the benchmark measures with.

This process stays small on purpose: Linux counts a new program's peak from its parent's, so what is measured runs
in processes of its own and nothing here imports numpy or torch.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from qwen_vl_axera.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent
DEMO_VIDEO = ROOT / "assets" / "demo.mp4"
AHEAD = (">", 1.0)  # a target for ratios to others: above 1 in every round of every run
ENOUGH_RUNS = 2
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """A finished process, its children included.

    Attributes:
        seconds: from its start to its end.
        processor: seconds of processor time.
        peak: the largest resident memory of it or of a child, in bytes.
        read, written: bytes that it asked for and handed over; None where the system does not count them.
        read_disk, written_disk: what of that came from the disk and went there; the page cache gave the rest.
    """

    seconds: float
    processor: float
    peak: int
    code: int
    stdout: str
    stderr: str
    read: int | None = None
    written: int | None = None
    read_disk: int | None = None
    written_disk: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        part: "export", "steps", "graph", "chain" or "frames".
        label: key of `render.LABELS`; params fill it in.
        value: a ratio (unit "x"), or what `unit` says; None where nothing came out (`note` says why).
        range: lowest and highest of the rounds.
        target: "<=" or ">=", and the limit; AHEAD; None: stated without a target.
        seconds: what was divided by what, for context.
        costs: what `costs` says of the programs, for context.
        peak, peak_limit: bytes of resident memory.
        cited: taken from earlier measurements of other tools, not measured in this run.
        runs: value, range and rounds of each separate run; the row's own are over all of them.
    """

    part: str
    label: str
    params: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    unit: str = "x"
    range: tuple[float, float] | None = None
    rounds: int | None = None
    target: tuple[str, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    peak: int | None = None
    peak_limit: int | None = None
    note: str | None = None
    cited: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)

    def verdict(self) -> str | None:
        """Of the row's targets: met or missed; of AHEAD: ahead, equal or behind. None when it has none."""
        kept = self.peak_limit is None or (self.peak is not None and self.peak <= self.peak_limit)
        if self.target is None:
            return None if self.peak_limit is None else _met(kept)
        if not kept or self.value is None:
            return "missed"
        if tuple(self.target) == AHEAD:
            return self._comparison()
        comparison, limit = self.target
        return _met(self.value <= limit if comparison == "<=" else self.value >= limit)

    def _comparison(self) -> str:
        if len(self.runs) < ENOUGH_RUNS or self.range is None:
            return "equal"  # one run alone shows no difference
        low, high = self.range
        return "ahead" if low > AHEAD[1] else "behind" if high < AHEAD[1] else "equal"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict()}

    @staticmethod
    def from_json(entry: dict[str, Any]) -> "Row":
        return Row(**{name: value for name, value in entry.items() if name in Row.__dataclass_fields__})


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def together(rows: Sequence[Row]) -> Row:
    """One row of the same line out of separate runs: the median of their values, the range over all their rounds."""
    values = [row.value for row in rows if row.value is not None]
    spreads = [row.range for row in rows if row.range]
    return replace(
        rows[0],
        value=statistics.median(values) if values else None,
        range=(min(low for low, _ in spreads), max(high for _, high in spreads)) if spreads else None,
        rounds=sum(row.rounds or 0 for row in rows) or None,
        seconds=_medians([row.seconds for row in rows]),
        peak=max((row.peak for row in rows if row.peak is not None), default=None),
        note=next((row.note for row in rows if row.note), None),
        runs=[{"value": row.value, "range": row.range, "rounds": row.rounds} for row in rows if row.range],
    )


def _medians(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        name: statistics.median(entry[name] for entry in entries if name in entry)
        for name in dict.fromkeys(name for entry in entries for name in entry)
    }


def costs(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
    """What programs used, the median over their runs: seconds of processor time, and the bytes of `Run`."""
    names = ("processor", "read", "written", "read_disk", "written_disk")
    return {
        program: _medians(
            [{name: getattr(one, name) for name in names if getattr(one, name) is not None} for one in ran]
        )
        for program, ran in runs.items()
    }


def run(argv: Sequence[object], check: bool = True) -> Run:
    """Runs a program to its end.

    Args:
        argv: the program and its arguments; a `.py` path is run by this Python.
        check: raise when it fails.

    Raises:
        CheckFailed: it failed; the message carries the end of its stderr.
    """
    command = [str(argument) for argument in argv]
    if command[0].endswith(".py"):
        command = [sys.executable, str(ROOT / command[0]), *command[1:]]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL)
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # what it used can be read while it is not reaped
            seconds = time.monotonic() - start
            disk = _disk(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if check and code:
        raise CheckFailed(f"{' '.join(command[1:3])} ended with {code}: {texts[1].strip()[-500:]}")
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024  # Linux counts in KiB
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, code, *texts, **disk)


def _disk(pid: int) -> dict[str, int]:
    """The bytes of `Run`, as Linux counts them for a process and the children that it has waited for."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:  # another system, or a container that hides it
        return {}
    counted = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    names = {"read": "rchar", "written": "wchar", "read_disk": "read_bytes", "written_disk": "write_bytes"}
    return {name: counted[kernel] for name, kernel in names.items()}


def worker(module: str, *arguments: object) -> dict[str, Any]:
    """Runs one of the benchmark's own measuring programs and returns what it prints: JSON on its last line."""
    return json.loads(run([f"bench/{module}.py", *arguments]).stdout.splitlines()[-1])


def alternate(tasks: Mapping[str, Callable[[], Result]], rounds: int, settle: float = 0.0) -> dict[str, list[Result]]:
    """Runs tasks in turn, A B, B A, A B ..., so that a machine that drifts treats all alike.

    What earlier tasks left to be written is on the disk before the next one starts. A virtual machine gives memory
    that was freed back to its host a little later, and gets it back slowly: no task shall find it just before that.
    """
    results: dict[str, list[Result]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name in list(tasks) if number % 2 == 0 else reversed(list(tasks)):
            os.sync()
            time.sleep(settle)
            results[name].append(tasks[name]())
    return results


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """Median and range of the ratios round by round: the fields of a `Row`."""
    ratios = [top / bottom for top, bottom in zip(numerators, denominators, strict=True)]
    return {"value": statistics.median(ratios), "range": (min(ratios), max(ratios)), "rounds": len(ratios)}


def conditions() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, memory, load before the run, versions."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    packages = (
        "torch",
        "torchvision",
        "transformers",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "numpy",
        "pillow",
        "av",
    )
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
