"""What a vision tower brings to the conversion: a few numbers, and a package of five parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from qwen_vl_axera.contract import GraphSpec

Shape = tuple[int, ...]
MERGE_SIZE = 2  # patches per side of a token, in every model of the family


class Stored(Protocol):
    """Where a tower finds its weights: a checkpoint."""

    def read(self, name: str, shape: Shape) -> Any:
        """A tensor as float32, checked for its shape."""

    def dtype(self, name: str) -> str:
        """How it is stored: "BF16", "F16" or "F32"."""


@dataclass(frozen=True)
class Board:
    """What the board's runtime and `pulsar2 llm_build` call a model.

    Attributes:
        vlm_type, tokenizer_type: in the runtime's config.json.
        layers: what the names of the language model's compiled layers begin with.
    """

    vlm_type: str
    tokenizer_type: str
    layers: str


@dataclass(frozen=True)
class Tower:
    """One vision tower. Its parts are modules of the package `towers.MODEL_TYPE`; `config` is what `read_config` gave.

    Attributes:
        model_type: as config.json has it; also the name of the package.
        name: for people.
        patch_size: pixels per side.
        mean, std: of the three channels, for values of 0..1.
        layout_tensors: what step 1 saves of a step's layout, NAME.pth each.
        board: names on the board.
        qkv_bias, qk_norm: whether the language model's q, k and v have biases, and q and k norms.
        text: whether its language model is known to the text comparison.
    """

    model_type: str
    name: str
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout_tensors: tuple[str, ...]
    board: Board
    qkv_bias: bool = True
    qk_norm: bool = False
    text: bool = True

    @property
    def factor(self) -> int:
        """Pixels per side of a token: image sides are multiples of it."""
        return self.patch_size * MERGE_SIZE

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for a size in pixels."""
        return size[0] // self.factor, size[1] // self.factor

    def read_config(self, path: Path, raw: dict[str, Any]) -> Any:
        """`vision_config` of config.json, validated: a shape that can't be converted is refused here."""
        return self._part("config").read_config(path, raw)

    def stored_tensors(self, config: Any) -> dict[str, Shape]:
        """Name -> shape of the tensors in a checkpoint, in the order of the forward pass."""
        return self._part("config").stored_tensors(config)

    def layout(self, config: Any, size: tuple[int, int], stored: Stored | None = None) -> Any:
        """What a size fixes: windows, orders, rotary angles; positions that are stored only where `stored` is given."""
        return self._part("layout").build_layout(config, size, stored)

    def module(self, config: Any, layout: Any, spec: GraphSpec) -> Any:
        """The module to export; under `torch.device("meta")` its parameters take no memory."""
        return self._part("module").VisionTower(config, layout, spec)

    def parameters(self, config: Any, spec_input: str) -> list[str]:
        """The module's parameters, in the order in which they lie in the data file."""
        return list(self._part("weights").weight_table(config, spec_input))

    def weights(self, stored: Stored, config: Any, spec_input: str) -> Iterator[tuple[str, Any]]:
        """Those parameters as float32 values, one at a time."""
        return self._part("weights").vision_weights(stored, config, spec_input)

    def witnesses(self, config: Any) -> list[str]:
        """Small parameters out of every block that are stored tensors as they are: equal only for one model."""
        return self._part("weights").witnesses(config)

    def reference(self, stored: Stored, config: Any, device: str = "cpu") -> Any:
        """transformers' own tower."""
        return self._part("reference").ReferenceTower(stored, config, device)

    def _part(self, name: str) -> Any:
        return import_module(f"{__package__}.{self.model_type}.{name}")
