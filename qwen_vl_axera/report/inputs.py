"""What `report.html` reads: the JSON files of a work directory, checked before anything is made of them."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import within
from qwen_vl_axera.files import read_json

T = TypeVar("T")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of the report: its value, or why there is none and the command that makes it."""

    value: T | None
    problem: str = ""
    command: str = ""


class Figures(BaseModel):
    """One step of one graph; older reports have no relative error."""

    max_abs: float
    mean_abs: float
    max_abs_relative: float | None = None
    cosine: float
    min_token_cosine: float

    def keeps(self, thresholds: dict[str, float]) -> bool:
        known = self.model_dump(exclude_none=True)
        return within(known, {name: limit for name, limit in thresholds.items() if name in known})


class GraphFidelity(BaseModel):
    file: str
    passed: bool
    thresholds: dict[Literal["max_abs", "mean_abs", "max_abs_relative", "cosine", "min_token_cosine"], float] = {}
    steps: list[Figures]

    @property
    def holds(self) -> bool:
        return bool(self.steps) and all(step.keeps(self.thresholds) for step in self.steps)


class Answer(BaseModel):
    prompt: str
    reference: str
    onnx: str
    tokens: int
    equal: bool


class Fidelity(BaseModel):
    """`fidelity.json`. `passed` is believed only when it says no: the figures are judged anew."""

    passed: bool
    graphs: list[GraphFidelity]
    text: list[Answer] = []

    @property
    def holds(self) -> bool:
        graphs = bool(self.graphs) and all(graph.passed and graph.holds for graph in self.graphs)
        return self.passed and graphs and all(answer.equal for answer in self.text)


class Check(BaseModel):
    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str = ""
    remedy: str | None = None


class Preflight(BaseModel):
    """`preflight.json`."""

    passed: bool
    checks: list[Check]


def _as_text(command: Any) -> Any:
    return shlex.join(map(str, command)) if isinstance(command, list) else command


class StepCost(BaseModel):
    """An entry of `steps.json`; peak memory in bytes."""

    name: str
    seconds: Amount | None = None
    peak_memory: Annotated[Amount | None, Field(validation_alias=AliasChoices("peak_memory", "peak_bytes"))] = None
    returncode: int = 0
    command: Annotated[str, BeforeValidator(_as_text)] = ""
    skipped: bool = False


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Sample(BaseModel):
    """A calibration sample: its file beside the manifest, and the file or files that its frames came from."""

    file: str
    source: Annotated[list[str], BeforeValidator(_as_list)] = []
    frames: list[int] = []


class Manifest(BaseModel):
    """`calib/manifest.json`; size is height and width in pixels."""

    format: Literal["numpy", "image"]
    size: tuple[int, int]
    nearly_identical: int = 0
    samples: list[Sample]


def read_part(path: Path, kind: Any, command: str, name: str = "") -> Part:
    """Reads a JSON file of the work directory.

    Args:
        path: the file.
        kind: the type that its content must have.
        command: what makes it, for the reader of the report.
        name: what the report calls the file (default: its name).

    Returns:
        Its content, or a part that says what is wrong: the report is written all the same.
    """
    name = name or path.name
    if not path.is_file():
        return Part(None, f"{name} is not there yet.", command)
    try:
        return Part(TypeAdapter(kind).validate_python(read_json(path)))
    except InputError as error:
        return Part(None, str(error), command)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its top"
        return Part(None, f"{name} is not what was expected at {where}: {first['msg']}.", command)


def read_text(path: Path, command: str) -> Part[str]:
    """Reads a text file of the work directory."""
    if not path.is_file():
        return Part(None, f"{path.name} is not there yet.", command)
    return Part(path.read_bytes().decode("utf-8", "replace"))


def shell_line(*words: Any) -> str:
    """A command to be copied into a shell."""
    return shlex.join(map(str, words))
