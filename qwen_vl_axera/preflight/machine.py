"""Preflight: disk and memory. What the compiler needs of both is not documented; the numbers are inferences."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from qwen_vl_axera.memory import memory
from qwen_vl_axera.preflight.checks import Check

# Reported: builds below it are killed silently at a high --parallel.
MEMORY_REPORTED = 32 * 10**9  # bytes
# Inferences. The vision build holds the float32 graph and works on copies of it; an axmodel keeps weights in
# 8 bits, a quarter of the graph's; a language-model layer keeps them in 8 bits, half of the checkpoint's, and
# intermediate files take as much again.
GRAPH_COPIES = 4
LAYER_FILES = 2


def disk_checks(workdir: Path, out: Path, graph: int, language: int) -> Iterator[Check]:
    """Room for the vision build where the work directory is, and for the compiled files where OUT is.

    Args:
        workdir, out: directories; OUT need not exist yet.
        graph: bytes of the vision graph, weights included.
        language: bytes of the language model in 16 bits.
    """
    layers = language // 2 * LAYER_FILES
    likely = {workdir: GRAPH_COPIES * graph, out: layers + graph // 4}
    certain = {workdir: graph // 4, out: layers // LAYER_FILES + graph // 4}
    places = {workdir: "work directory", out: "OUT"}
    if _device(workdir) == _device(out):
        likely, certain = {workdir: sum(likely.values())}, {workdir: sum(certain.values())}
        places = {workdir: "work directory and OUT"}
    for path, place in places.items():
        free = shutil.disk_usage(_existing(path)).free
        detail = f"{_gb(free)} free for the {place}; the builds take about {_gb(likely[path])} there (an inference)"
        remedy = "free some, or set WORKDIR and OUT to another file system"
        if free < certain[path]:
            detail += f", and {_gb(certain[path])} for the compiled files alone"
            yield Check("disk", "failed", detail, remedy)
        else:
            enough = free >= likely[path]
            yield Check("disk", "ok" if enough else "warning", detail, "" if enough else remedy)


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def memory_checks(graph: int) -> Iterator[Check]:
    """Memory for the builds.

    Args:
        graph: bytes of the vision graph, weights included.
    """
    found = memory()
    detail = f"{_gb(found.available)} of {_gb(found.total)} available"
    if found.available < graph:
        remedy = "use a larger machine, or end other programs"
        yield Check("memory", "failed", f"{detail}; the graph alone takes {_gb(graph)}", remedy)
    elif found.total < MEMORY_REPORTED:
        detail += f"; llm_build was reported killed below {_gb(MEMORY_REPORTED)} at a high PARALLEL"
        yield Check("memory", "warning", detail, "set PARALLEL=4 or less, and do not build twice at a time")
    else:
        yield Check("memory", "ok", detail)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
