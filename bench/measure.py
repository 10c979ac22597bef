"""Seconds, peak memory and ratios: what every part of the benchmark measures with.

This process stays small on purpose: Linux counts a new program's peak from its parent's, so what is measured runs
in processes of its own and nothing here imports numpy or torch.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qwen_vl_axera.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent
DEMO_VIDEO = ROOT / "assets" / "demo.mp4"
COPY_PIECE = 8 << 20  # bytes
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """A finished process: seconds, the largest resident memory of it or a child of its in bytes, its output."""

    seconds: float
    peak: int
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        part: "export", "steps", "graph", "chain" or "frames".
        label: key of `render.LABELS`; params fill it in.
        value: a ratio (unit "x"), or what `unit` says; None where nothing came out (`note` says why).
        range: lowest and highest of the rounds.
        target: "<=" or ">=" or "<", and the limit; None: stated without a target.
        seconds: what was divided by what, for context.
        peak, peak_limit: bytes of resident memory.
        cited: taken from earlier measurements of other tools, not measured in this run.
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
    peak: int | None = None
    peak_limit: int | None = None
    note: str | None = None
    cited: bool = False

    def met(self) -> bool | None:
        """Whether every target of the row is met; None when it has none."""
        verdicts = []
        if self.target:
            comparison, limit = self.target
            verdicts.append(self.value is not None and COMPARISONS[comparison](self.value, limit))
        if self.peak_limit:
            verdicts.append(self.peak is not None and self.peak <= self.peak_limit)
        return all(verdicts) if verdicts else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met()}

    @staticmethod
    def from_json(entry: dict[str, Any]) -> "Row":
        return Row(**{name: value for name, value in entry.items() if name != "met"})


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
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
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if check and code:
        raise CheckFailed(f"{' '.join(command[1:3])} ended with {code}: {texts[1].strip()[-500:]}")
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024  # Linux counts in KiB
    return Run(seconds, peak, code, *texts)


def worker(module: str, *arguments: object) -> dict[str, Any]:
    """Runs one of the benchmark's own measuring programs and returns what it prints: JSON on its last line."""
    return json.loads(run([f"bench/{module}.py", *arguments]).stdout.splitlines()[-1])


def copy_seconds(source: Path, target: Path) -> float:
    """The floor: reads a file, writes it beside and waits until it is on the disk. The copy is removed."""
    start = time.monotonic()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, COPY_PIECE)
        writer.flush()
        os.fsync(writer.fileno())
    seconds = time.monotonic() - start
    target.unlink()
    return seconds


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
        "decord",
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
