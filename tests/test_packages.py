"""Imports between the packages of the library go one way: a package imports only those before it."""

import ast
from pathlib import Path

from tests.conftest import ROOT

LIBRARY = ROOT / "qwen_vl_axera"
PACKAGES = (
    *("towers", "frames", "checkpoint", "oracle", "graph", "compiler", "calibration", "language", "fidelity", "board"),
    *("preflight", "quantization", "compiled", "probe", "chain", "report"),
)


def imported(file: Path) -> set[str]:
    """The packages that a file's import statements name, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    found = {rest[0] for library, *rest in parts if library == LIBRARY.name and rest}
    return found & set(PACKAGES)


def test_every_package_has_its_place():
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(PACKAGES)


def test_a_package_imports_only_those_before_it():
    backwards = set()
    for place, package in enumerate(PACKAGES):
        for file in (LIBRARY / package).rglob("*.py"):
            if file.name != "__main__.py":  # a script
                backwards |= {(package, other) for other in imported(file) - set(PACKAGES[: place + 1])}
    assert backwards == set()
