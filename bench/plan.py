"""What one run of the benchmark measures, and the checkpoints it measures with."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import run

Size = tuple[int, int]

# Four layers of the language model's and tower's shape in small: a second or two per script.
QUICK_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 48,
    "fullatt_block_indexes": [1, 3],
}
QUICK_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
GIGABYTE = 10**9


@dataclass(frozen=True)
class Plan:
    """The measurements of one run.

    Attributes:
        workdir: where everything goes; checkpoints in it are used again.
        shape: of the model (one of make_checkpoint.SHAPES), or "small".
        sizes: of the cost per step.
        peer_sizes: those of them at which dense and transformers' exporter are compared, if they can do them.
        fidelity_sizes: of the comparison with transformers.
        budget: seconds for the rounds of one comparison of graphs.
        rounds: of everything that is not under the budget.
        runs: how often the parts that compare with others are measured, minutes apart and each in new processes.
        settle: seconds of rest before each run that is compared with copying a file.
        quick: the reduced form: no transformers exporter, no transformers processors, no second shape.
    """

    workdir: Path
    shape: str
    sizes: Sequence[Size]
    peer_sizes: Sequence[Size]
    fidelity_sizes: Sequence[Size]
    budget: float
    rounds: int
    runs: int
    settle: float
    quick: bool

    @property
    def checkpoint(self) -> Path:
        """The tower, the embeddings and one layer of the language model."""
        return self._made("", "--lm-layers", 1)

    @property
    def outliers_checkpoint(self) -> Path:
        return self._made("-outliers", "--vision-only", "--outliers")

    @property
    def largest_checkpoint(self) -> Path:
        """The widest tower there is: 72B's."""
        return self._made("", "--vision-only", shape="72B")

    @property
    def small_checkpoint(self) -> Path:
        """For what depends on the layout alone."""
        return self._made("", shape="small")

    def directory(self, name: str) -> Path:
        path = self.workdir / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _made(self, suffix: str, *flags: object, shape: str | None = None) -> Path:
        shape = shape or self.shape
        path = self.workdir / f"Random-{shape}{suffix}"
        if not (path / "model.safetensors.index.json").is_file():  # it is written last
            shutil.rmtree(path, ignore_errors=True)
            if shape == "small":
                _make_small(path, "--outliers" in flags)
            else:
                run(["bench/make_checkpoint.py", path, "--shape", shape, *flags])
        return path


def quick_plan(workdir: Path) -> Plan:
    """A small shape and small sizes, once each: shows that every part works, says nothing about cost."""
    return Plan(
        workdir,
        "small",
        [(56, 56), (112, 112), (140, 252)],
        [(112, 112)],
        [(140, 252)],
        0.5,
        rounds=1,
        runs=1,
        settle=0,
        quick=True,
    )


def full_plan(workdir: Path, shape: str, sizes: Sequence[Size]) -> Plan:
    """The true shape."""
    fidelity = [(308, 308), (140, 252), (448, 448), (896, 896)]
    peers = [size for size in sizes if max(size) <= 896]  # dense at 1288x1288 takes minutes a step
    return Plan(workdir, shape, sizes, peers, fidelity, 40.0, rounds=5, runs=2, settle=4, quick=False)


def name_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _make_small(path: Path, outliers: bool) -> None:
    from bench.make_checkpoint import TOKENS, flat_config, make_checkpoint

    make_checkpoint(path, flat_config(QUICK_TEXT, QUICK_VISION, TOKENS), outliers=outliers)
