"""Arrows between the rooms of the library point one way: a room imports only those before it."""

import ast
from pathlib import Path

from tests.conftest import ROOT

LIBRARY = ROOT / "qwen_vl_axera"
ROOMS = (
    *("towers", "frames", "checkpoint", "oracle", "graph", "compiler", "calibration", "language", "fidelity", "board"),
    *("preflight", "quantization", "compiled", "probe", "chain", "report"),
)


def imported(file: Path) -> set[str]:
    """The rooms that a file's import statements name, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {room for library, *rest in parts if library == LIBRARY.name for room in rest[:1] if room in ROOMS}


def test_every_room_has_its_place():
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(ROOMS)


def test_a_room_imports_only_those_before_it():
    backwards = set()
    for place, room in enumerate(ROOMS):
        for file in (LIBRARY / room).rglob("*.py"):
            if file.name != "__main__.py":  # a script
                backwards |= {(room, other) for other in imported(file) - set(ROOMS[: place + 1])}
    assert backwards == set()
