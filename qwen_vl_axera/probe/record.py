"""`probe.json`: what the compiler did with a few blocks of the tower, form after form and recipe after recipe."""

from pathlib import Path
from typing import Any, Literal

from qwen_vl_axera.compiled.record import Build, CompiledModel
from qwen_vl_axera.contract import PROBE, WINDOW_MODES
from qwen_vl_axera.files import read_record
from qwen_vl_axera.record import Amount, Count, Sha256, Text, record

Form = Literal[*WINDOW_MODES]
Recipe = Literal["given", "by names", "fallback"]


@record
class Attempt:
    """One form of the window attention under one recipe.

    Attributes:
        form: of the window attention.
        recipe: "given", the same with its operator types written as names, or the one to fall back to.
        config_file: the recipe for the whole graph, as it was named.
        nodes: of the probe.
        seconds: of the build.
        compared: with ONNX Runtime; None where it was not built or not simulated.
        build: what it left; None where it was not built.
        error: what went wrong, with the compiler's last lines.
    """

    form: Form
    recipe: Recipe
    config_file: Text
    nodes: Count
    seconds: Amount
    compared: CompiledModel | None
    build: Build | None
    error: str | None

    @property
    def works(self) -> bool:
        """Whether it was built as one subgraph and every step keeps the limits."""
        return self.compared is not None and self.compared.holds and self.build is not None and self.build.sound

    @property
    def cycles(self) -> int | None:
        """As the compiler counts them, or its trace."""
        profile = self.build and self.build.profile
        return (self.build and self.build.cycles) or (profile and profile.span) or None


@record
class Whole:
    """The whole graph, and the seconds that its build may take (an inference)."""

    nodes: Count
    seconds: Amount


@record
class Probe:
    """The verdict, and what a report about it needs.

    Attributes:
        passed: a form works, under a recipe that took effect as far as that is known.
        form: to build the whole in; None: none works.
        config_file: the configuration to build the whole with, as it was named; the one given where none works.
        reason: why that is another one than the one given.
        accepted: a precision that is not the one asked for was no reason to stop.
        left_out: what the recipe names and the probe does not hold.
        made_from: clip, archive, weights and configurations -> SHA-256.
    """

    passed: bool
    form: Form | None
    config_file: Text
    reason: str | None
    accepted: bool
    attempts: list[Attempt]
    whole: Whole | None
    left_out: list[str]
    spec: dict[str, Any]
    chip: Text
    config: dict[str, Any]
    versions: dict[str, str]
    made_from: dict[str, Sha256]

    @property
    def chosen(self) -> Attempt | None:
        """The attempt that the whole is to be built as; its `build` tells the rules of this compiler."""
        found = (one for one in self.attempts if (one.form, one.config_file) == (self.form, self.config_file))
        return next(found, None)

    @property
    def holds(self) -> bool:
        """Whether it passed, and its figures say so, too."""
        chosen = self.chosen
        return self.passed and chosen is not None and chosen.works

    @property
    def gemms_by(self) -> Literal["operator types", "names"] | None:
        """What reached linear layers in a mixed recipe; None: not asked for, or not known."""
        reached = {one.recipe for one in self.attempts if one.works and one.build.precision == "ok"}
        if not any("Gemm" in entry.get("op_types", []) for entry in self.config["quant"].get("layer_configs", [])):
            return None
        return "operator types" if "given" in reached else "names" if "by names" in reached else None


def read_probe(workdir: Path) -> Probe:
    """Reads `probe.json`.

    Raises:
        InputError: it is missing or not one.
    """
    return read_record(Path(workdir) / PROBE, Probe, "probe_build.py")
