"""Which code a step runs: the project files that a script or module imports, directly or not, and their packages.

Read from the import statements themselves, those inside functions included: nothing is imported to find out.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
# Where a package is not distributed under the name that it is imported by.
DISTRIBUTIONS = {"PIL": "pillow", "google": "protobuf", "qwen_vl_utils": "qwen-vl-utils"}


def used_code(entry: Path, project: Path = PROJECT) -> tuple[dict[Path, str], set[str]]:
    """What a program consists of.

    Args:
        entry: a Python file of the project.
        project: its root, from which imports are looked up.

    Returns:
        File -> SHA-256 of what it does: comments, docstrings and layout do not count; and the names of the
        distributions that it imports from outside, the standard library left out.
    """
    files: dict[Path, str] = {}
    outside: set[str] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        tree = ast.parse(file.read_bytes())
        for name in _imported(tree):
            found = list(_project_files(name, project))
            waiting += found
            top = name.split(".")[0]
            if not found and top not in sys.stdlib_module_names and not (project / top).is_dir():
                outside.add(DISTRIBUTIONS.get(top, top))
        files[file] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
    return files, outside


def entry_of(command: list[str], project: Path = PROJECT) -> Path | None:
    """The Python file that a command runs: a script, or a module of the project; None for anything else."""
    match command[1:4]:
        case ["-P", "-m", module]:
            path = project.joinpath(*module.split("."))
            return next((file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file()), None)
        case [script, *_] if script.endswith(".py") and Path(script).is_file():
            return Path(script).resolve()
    return None


def _imported(tree: ast.Module) -> Iterator[str]:
    """The modules that import statements may mean: of `from a import b`, a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _project_files(module: str, project: Path) -> Iterator[Path]:
    """A module's file and those of the packages around it; nothing for a module from elsewhere."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        path = project.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                yield file


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return tree
