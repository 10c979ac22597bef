"""Every variable of export_video.sh, checked before its first step. Standard library only: it also runs before there is
an environment.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl_axera.compiler.pulsar2 import check_lengths
from qwen_vl_axera.contract import CHIP, CHIPS, KV_CACHE_LEN, PARALLEL, PREFILL_LEN, RECIPES
from qwen_vl_axera.errors import InputError


def count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if value < 1:
        raise ValueError("a whole number above 0")
    return value


def rate(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value > 0:
            return value
    raise ValueError("a number above 0")


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def size(text: str) -> tuple[int, int]:
    sides = text.split()
    if len(sides) != 2:
        raise ValueError('height and width, such as "308 308"')
    height, width = map(count, sides)
    try:
        from preprocess import check_size
    except ImportError:  # no numpy yet
        return height, width
    return check_size(height, width)


def chip(text: str) -> str:
    if text not in CHIPS:
        raise ValueError(f"a chip that `pulsar2 build` and `pulsar2 llm_build` both know: {', '.join(CHIPS)}")
    return text


def recipe(text: str) -> str:
    if text not in RECIPES:
        raise ValueError(" or ".join(RECIPES))
    return text


# name -> how its text is read, and what it is when it is not set
VARIABLES: dict[str, tuple[Callable[[str], Any], Any]] = {
    "SIZE": (size, None),
    "NUM_FRAMES": (count, None),
    "FPS": (rate, None),
    "NUM_SAMPLES": (count, None),
    "GENERATE": (switch, False),
    "PREFILL_LEN": (count, PREFILL_LEN),
    "KV_CACHE_LEN": (count, KV_CACHE_LEN),
    "PARALLEL": (count, PARALLEL),
    "CHIP": (chip, CHIP),
    "QUANTIZE": (recipe, RECIPES[0]),
}


@dataclass(frozen=True)
class Directories:
    """Where a run reads and writes."""

    checkpoint: Path
    workdir: Path
    out: Path


def read_variables(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The variables' values. An empty one counts as not set.

    Raises:
        InputError: one is malformed, or two contradict each other.
    """
    values = {}
    for name, (read, default) in VARIABLES.items():
        text = environment.get(name, "")
        try:
            values[name] = read(text) if text else default
        except ValueError as error:
            raise InputError(f"{name}={text}: expected {str(error).rpartition('expected ')[2]}") from None
    if values["NUM_FRAMES"] and values["FPS"]:
        raise InputError("NUM_FRAMES and FPS: set one of them")
    check_lengths(values["PREFILL_LEN"], values["KV_CACHE_LEN"], values["PARALLEL"])
    return values


def check_directories(place: Directories, videos: Sequence[Path]) -> None:
    """That what is read is there, and that nothing is written into it.

    Raises:
        InputError: it is not so.
    """
    checkpoint = place.checkpoint.resolve()
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{place.checkpoint}: expected a directory with a Qwen2.5-VL checkpoint, found none")
    for name, path in (("WORKDIR", place.workdir), ("OUT", place.out)):
        if path.exists() and not path.is_dir():
            raise InputError(f"{name}={path}: expected a directory, found a file")
        if path.resolve().is_relative_to(checkpoint):
            raise InputError(f"{name}={path} lies in the checkpoint {place.checkpoint}: give it a place of its own")
        for video in videos:
            if video.is_dir() and path.resolve().is_relative_to(video.resolve()):
                raise InputError(f"{name}={path} lies in the input {video}: give it a place of its own")
    for video in videos:
        if not video.exists():
            raise InputError(f"{video}: no such file or directory")


def make_directories(*paths: Path) -> None:
    """Makes the directories that are missing.

    Raises:
        InputError: one can't be made or written to.
    """
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
            writable = os.access(path, os.W_OK | os.X_OK)
        except OSError as error:
            raise InputError(f"{path} cannot be made ({error.strerror}): use another place") from None
        if not writable:
            raise InputError(f"{path} cannot be written: use another place")
