"""Every variable of export_video.sh, checked before its first step. Standard library only: it also runs before there is
an environment.
"""

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen_vl_axera.chain.steps import HOST_STEPS, Place, declared
from qwen_vl_axera.compiler.pulsar2 import check_lengths
from qwen_vl_axera.contract import (
    ANSWER,
    CHIP,
    CHIPS,
    CHUNK,
    INPUTS,
    KV_CACHE_LEN,
    LEFT_TO_DO,
    OPSETS,
    PARALLEL,
    POST_WEIGHT_TYPES,
    PREFILL_LEN,
    RECIPES,
    REPORT,
    STAMPS,
    STEPS,
    WEIGHT_TYPES,
    WINDOW_MODES,
)
from qwen_vl_axera.doors import check_file, check_output, check_place, printable
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


def misread(size: tuple[int, int]) -> str | None:
    """Why the board can't have a model of this size; None when it can."""
    try:
        from qwen_vl_axera.board.sizes import misreading
    except ImportError:  # no numpy yet
        return None
    return misreading(size)


def chip(text: str) -> str:
    if text not in CHIPS:
        raise ValueError(f"a chip that `pulsar2 build` and `pulsar2 llm_build` both know: {', '.join(CHIPS)}")
    return text


def one_of(choices: Sequence[Any]) -> Callable[[str], str]:
    known = [str(choice) for choice in choices]

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{', '.join(known[:-1])} or {known[-1]}")
        return text

    return read


def counts(text: str) -> list[int] | str:
    return text if text == CHUNKED else [count(part) for part in text.replace(",", " ").split()]


def words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"words as a shell reads them ({error})") from None


SAME_SIZE = "the video's model is of this size and takes pictures, too: leave IMAGE_SIZE out, or set another"
CHUNKED = "chunked"  # a LAST_KV_CACHE_LEN: as many chunks as the cache holds

# name -> how its text is read, and what it is when it is not set
VARIABLES: dict[str, tuple[Callable[[str], Any], Any]] = {
    "SIZE": (size, None),
    "IMAGE_SIZE": (size, None),
    "NUM_FRAMES": (count, None),
    "FPS": (rate, None),
    "NUM_SAMPLES": (count, None),
    "GENERATE": (switch, False),
    "PREFILL_LEN": (count, PREFILL_LEN),
    "KV_CACHE_LEN": (count, KV_CACHE_LEN),
    "PARALLEL": (count, PARALLEL),
    "CHIP": (chip, CHIP),
    "LAST_KV_CACHE_LEN": (counts, []),
    "WEIGHT_TYPE": (one_of(WEIGHT_TYPES), None),
    "POST_WEIGHT_TYPE": (one_of(POST_WEIGHT_TYPES), None),
    "LLM_BUILD2": (switch, False),
    "QUANTIZE": (one_of(RECIPES), RECIPES[0]),
    "WINDOW_MODE": (one_of(WINDOW_MODES), None),
    "INPUT": (one_of(INPUTS), None),
    "OPSET": (one_of(OPSETS), None),
    "PROBE": (switch, True),
    "BUILD_FLAGS": (words, []),
    "LLM_BUILD_FLAGS": (words, []),
}


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
    for name in ("SIZE", "IMAGE_SIZE"):
        if problem := values[name] and misread(values[name]):
            raise InputError(f"{name}: {problem}")
    if values["IMAGE_SIZE"] and values["IMAGE_SIZE"] == values["SIZE"]:
        raise InputError(f"IMAGE_SIZE={environment['IMAGE_SIZE']}: {SAME_SIZE}")
    if values["NUM_FRAMES"] and values["FPS"]:
        raise InputError("NUM_FRAMES and FPS: set one of them")
    if values["QUANTIZE"] == "mixed" and environment.get("CONFIG"):
        raise InputError("CONFIG and QUANTIZE=mixed: set one of them")
    if values["LAST_KV_CACHE_LEN"] == CHUNKED:
        if not environment.get("PREFILL_LEN"):
            values["PREFILL_LEN"] = CHUNK
        end = values["KV_CACHE_LEN"] + 1 - ANSWER
        values["LAST_KV_CACHE_LEN"] = list(range(CHUNK, end + 1, CHUNK))
        if not values["LAST_KV_CACHE_LEN"]:
            raise InputError(f"LAST_KV_CACHE_LEN=chunked: a KV_CACHE_LEN of {CHUNK + ANSWER - 1} is the least")
    lengths = values["PREFILL_LEN"], values["KV_CACHE_LEN"], values["PARALLEL"], values["LAST_KV_CACHE_LEN"]
    check_lengths(*lengths, values["LLM_BUILD2"])
    return values


def length_flags(values: Mapping[str, Any]) -> list[str]:
    """How long a prompt and a conversation may be, as preflight.py and `compiler llm_build` take it."""
    flags = ["--prefill-len", str(values["PREFILL_LEN"]), "--kv-cache-len", str(values["KV_CACHE_LEN"])]
    if values["LAST_KV_CACHE_LEN"]:
        flags += ["--last-kv-cache-len", *map(str, values["LAST_KV_CACHE_LEN"])]
    return flags


def extra_flags(values: Mapping[str, Any], name: str) -> list[str]:
    """The words of BUILD_FLAGS or LLM_BUILD_FLAGS as `qwen_vl_axera.compiler` takes them."""
    return [f"--extra={word}" for word in values[name]]


def check_directories(place: Place) -> None:
    """That what is read is there, and that nothing is written into it.

    Raises:
        InputError: it is not so.
    """
    if not (place.checkpoint / "config.json").is_file():
        raise InputError(f"{place.checkpoint}: expected a directory with a Qwen2.5-VL checkpoint, found none")
    for name, path in (("WORKDIR", place.workdir), ("WORKDIR", place.here), ("OUT", place.out)):
        if printable(path) != str(path):
            raise InputError(f"{name}={path}: expected a name without control characters, in UTF-8")
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(f"{name}={path}: expected a directory, found something else")
        try:
            check_place(path, place.checkpoint)
        except InputError as error:
            raise InputError(f"{name}={error}") from None
        for video in place.videos:
            if video.is_dir() and path.resolve().is_relative_to(video.resolve()):
                raise InputError(f"{name}={path} lies in the input {video}: give it a place of its own")
    for video in place.videos:
        if not video.exists():
            raise InputError(f"{video}: no such file or directory")


def check_config(path: Path) -> None:
    """That the build configuration is a file.

    Raises:
        InputError: it is none.
    """
    try:
        check_file(path)
    except InputError as error:
        raise InputError(f"CONFIG={error}") from None


def check_outputs(place: Place) -> None:
    """That nothing but regular files will be replaced, asked before hours of work.

    Raises:
        InputError: something else has the name of an output.
    """
    files = place.work(STEPS, REPORT, LEFT_TO_DO, f"{STAMPS}/lock")
    for name in HOST_STEPS:
        files += [path for path in declared(name, place).writes if path.parent.is_dir()]
    for path in filter(os.path.lexists, files):
        check_output(path)


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
