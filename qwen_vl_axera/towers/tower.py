"""What a vision tower brings to the conversion. Another model is another package that fulfils this."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from qwen_vl_axera.contract import GraphSpec

Shape = tuple[int, ...]


class Stored(Protocol):
    """Where a tower finds its weights: a checkpoint."""

    def read(self, name: str, shape: Shape) -> Any:
        """A tensor as float32, checked for its shape."""

    def dtype(self, name: str) -> str:
        """How it is stored: "BF16", "F16" or "F32"."""


class Tower(Protocol):
    """One vision tower; `config` is always what its own `read_config` returned."""

    model_type: str

    def read_config(self, path: Path, raw: dict[str, Any]) -> Any:
        """`vision_config` of config.json, validated: a shape that can't be converted is refused here."""

    def stored_tensors(self, config: Any) -> dict[str, Shape]:
        """Name -> shape of the tensors in a checkpoint, in the order of the forward pass."""

    def layout(self, config: Any, size: tuple[int, int]) -> Any:
        """What a size fixes: windows, orders, rotary angles."""

    def module(self, config: Any, layout: Any, spec: GraphSpec) -> Any:
        """The module to export; under `torch.device("meta")` its parameters take no memory."""

    def parameters(self, config: Any, spec_input: str) -> list[str]:
        """The module's parameters, in the order in which they lie in the data file."""

    def weights(self, stored: Stored, config: Any, spec_input: str) -> Iterator[tuple[str, Any]]:
        """Those parameters as float32 values, one at a time."""

    def witnesses(self, config: Any) -> list[str]:
        """Small parameters out of every block that are stored tensors as they are: equal only for one model."""

    def reference(self, stored: Stored, config: Any, device: str) -> Any:
        """transformers' own tower."""
