"""What a step's outputs depend on, as named parts: whether two runs differ, and in what."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_vl_axera.chain.code import PROJECT, entry_of, used_code
from qwen_vl_axera.chain.steps import Step
from qwen_vl_axera.compiler.container import PASSED_ON
from qwen_vl_axera.errors import InputError

CHECKPOINT_FILES = (".json", ".jinja", ".txt", ".safetensors")
WHOLE = 64 << 20  # bytes: files up to this size are hashed whole
END = 1 << 20  # bytes hashed at either end of larger ones
COMPILER = "qwen_vl_axera.compiler"


def step_parts(step: Step, compiler: str = "") -> dict[str, Any]:
    """Everything that a step's outputs depend on, each part under the name that a user would know it by.

    Args:
        step: with its command.
        compiler: what `pulsar2 version` says.

    Raises:
        InputError: an input or the checkpoint is missing.
    """
    parts: dict[str, Any] = {"compiler": compiler} if step.compiler else {}
    if step.compiler == "run":
        parts["command"] = [printable(word) for word in compiler_words(step.command)]
        parts |= {f"variable {name}": os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    else:
        parts |= code_parts(step.command)
    return parts | data_parts(step)


def compiler_words(command: Sequence[str]) -> list[str]:
    """The compiler's own command line, as the step would run it."""
    from qwen_vl_axera.compiler.__main__ import parse_command

    words = list(command)
    return parse_command(words[words.index(COMPILER) + 1 :]).argv


def code_parts(command: Sequence[str]) -> dict[str, Any]:
    """A command of our own: its arguments, the code behind it, and the packages that it uses."""
    words = [printable(argument) for argument in command]
    if re.fullmatch(r"python(\d+(\.\d+)?)?", Path(words[0]).name):
        words[0] = "python"  # another environment with the same packages is the same step
    parts: dict[str, Any] = {"command": words, "package python": platform.python_version()}
    entry = entry_of(list(command))
    files, packages = used_code(entry) if entry else ({}, set())
    for file, digest in files.items():
        parts[printable(file.relative_to(PROJECT) if file.is_relative_to(PROJECT) else file)] = digest
    for name in packages:
        try:
            parts[f"package {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            parts[f"package {name}"] = None
    return parts


def data_parts(step: Step) -> dict[str, Any]:
    """The parts that are data: inputs and the checkpoint."""
    parts = {}
    checkpoints = [step.checkpoint] if step.checkpoint else []
    for kind, paths in (("input", step.reads), ("checkpoint", checkpoints)):
        for path in paths:
            description = describe_if_there(path, checkpoint=kind == "checkpoint")
            if description is None:
                raise InputError(f"{step.name}: {kind} {path} is missing")
            parts[f"{kind} {printable(path)}"] = description
    return parts


def fingerprint(parts: dict[str, Any]) -> str:
    """SHA-256 of a step's parts as hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def printable(text: object) -> str:
    """Text that JSON can hold: bytes of a file name that are no UTF-8 become backslash sequences."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def describe(path: Path, checkpoint: bool = False) -> dict[str, Any]:
    """What a file or a directory holds, found out cheaply enough to be asked before every step.

    Files up to 64 MB are hashed whole. Hashing larger ones would take minutes: their size, both ends and the
    modification time stand for them (the time, because a change in the middle alters neither size nor ends).
    Of safetensors files the header is hashed in place of the ends.

    Args:
        path: symbolic links are followed.
        checkpoint: of a directory, only the configuration, tokenizer and weight files directly in it.

    Raises:
        InputError: a pipe or a device.
        OSError: it is missing or not readable.
    """
    if path.is_dir():
        return {"files": {printable(file.relative_to(path)): _file(file) for file in _walk(path, checkpoint)}}
    return _file(path)


def describe_if_there(path: Path, checkpoint: bool = False) -> dict[str, Any] | None:
    return describe(path, checkpoint) if path.exists() else None


def identity(path: Path) -> list[tuple[int, int, int]] | None:
    """Differs after any write to a file or to a file of a directory, even of the same content."""
    if not path.exists():
        return None
    found = [file.stat() for file in _walk(path) if file.exists()]
    return [(status.st_dev, status.st_ino, status.st_ctime_ns) for status in found]


def _walk(path: Path, checkpoint: bool = False) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return

    def fail(error: OSError):
        raise error  # os.walk would pass over a directory that it cannot read

    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        folders[:] = [] if checkpoint or real in seen else sorted(folders)
        if real not in seen:  # a link may lead back up
            seen.add(real)
            for name in sorted(names):
                if not checkpoint or name.endswith(CHECKPOINT_FILES):
                    yield Path(folder) / name


def _file(path: Path) -> dict[str, Any]:
    if path.is_symlink() and not path.exists():
        return {"link": printable(path.readlink())}
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: expected a file or a directory, found a pipe or a device")
        if status.st_size <= WHOLE:
            return {"size": status.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if path.suffix == ".safetensors":
            part, head = "sha256_header", file.read(8)
            data = head + file.read(min(int.from_bytes(head, "little"), WHOLE))
        else:
            part, data = "sha256_ends", file.read(END)
            file.seek(-END, os.SEEK_END)
            data += file.read(END)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, part: hashlib.sha256(data).hexdigest()}


def read_stamp(path: Path) -> dict[str, Any] | None:
    """A stamp, or None when there is no sound one."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            stamp = json.load(file)
        sound = isinstance(stamp["fingerprint"], str) and all(
            isinstance(stamp[key], dict) for key in ("parts", "outputs")
        )
        costs = [stamp[key] for key in ("seconds", "peak_bytes", "returncode")]
        return stamp if sound and all(type(cost) in (int, float) and cost >= 0 for cost in costs) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def why_redo(stamp: dict[str, Any] | None, parts: dict[str, Any], outputs: Sequence[Path]) -> str | None:
    """Why a step has to run, in one line; None when it is up to date.

    Args:
        stamp: of the last run that ended well.
        parts: as the step is asked for now.
        outputs: its declared outputs.
    """
    if stamp is None:
        return "no record of a run that ended well"
    if stamp["fingerprint"] != fingerprint(parts):
        try:
            changes = differences(stamp["parts"], parts)
        except (AttributeError, TypeError):  # whatever stands in it
            changes = []
        changes = changes or ["the record of the last run is damaged"]
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    for output in outputs:
        found = describe_if_there(output)
        if found is None:
            return f"output {output} missing"
        if stamp["outputs"].get(printable(output)) != found:
            return f"output {output} is not the one that the last run made"
    return None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Says what differs between two runs' parts: data first, then the command, then code and packages."""

    def rank(key: str) -> tuple[int, str]:
        kinds = ("input ", "checkpoint ", "compiler", "command")
        return next((number for number, kind in enumerate(kinds) if key.startswith(kind)), len(kinds)), key

    return [_difference(key, old.get(key), new.get(key)) for key in sorted(_differing(old, new), key=rank)]


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    nothing = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, nothing) != new.get(key, nothing))


def _difference(key: str, old: Any, new: Any) -> str:
    if key == "command" and isinstance(old, list) and isinstance(new, list):
        start = _shared(old, new)
        end = _shared(old[start:][::-1], new[start:][::-1])
        was, now = old[start : len(old) - end], new[start : len(new) - end]
        values = not any(stretch[0].startswith("--") for stretch in (was, now) if stretch)
        flag = next((argument for argument in reversed(new[:start]) if argument.startswith("--") and values), "command")
        return f"{flag} changed from {shlex.join(was) or 'nothing'} to {shlex.join(now) or 'nothing'}"
    if isinstance(old, dict) and isinstance(new, dict) and "files" in old and "files" in new:
        names = _differing(old["files"], new["files"])
        return f"{key} changed ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
    if key.startswith("package ") or key == "compiler":
        return f"{key} changed from {old} to {new}"
    return f"{key} {'added' if old is None else 'removed' if new is None else 'changed'}"


def _shared(one: list[str], other: list[str]) -> int:
    """How many items two lists have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
