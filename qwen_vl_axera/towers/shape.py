"""What follows from any tower's shape: patches, tokens, the graph's inputs and outputs."""

from collections.abc import Mapping
from pathlib import Path

from qwen_vl_axera.contract import OUTPUT_NAME
from qwen_vl_axera.errors import InputError


class VisionShape:
    """Mixed into a tower's configuration, which has the fields of `vision_config` that are named here."""

    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int

    def check(self, path: Path, activation: object, known: str, fixed: Mapping[str, int], model: str) -> None:
        """What every tower's `vision_config` has to keep.

        Args:
            path: of config.json, for messages.
            activation: its `hidden_act`.
            known: the one that the exported module has.
            fixed: field -> the value of every released model.
            model: its name, for messages.

        Raises:
            InputError: another activation or value, or heads that rotary angles of two axes do not fit.
        """
        if activation != known:
            raise InputError(f"{path}: vision_config.hidden_act is {activation!r}, only {known!r} is known")
        for name, expected in fixed.items():
            found = getattr(self, name)
            if found != expected:
                raise InputError(f"{path}: vision_config.{name} is {found}, every released {model} has {expected}")
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise InputError(
                f"{path}: vision hidden_size {self.hidden_size} over {self.num_heads} heads is no whole multiple of 4 "
                "channels a head, which rotary angles of two axes need"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def factor(self) -> int:
        """Pixels per merged token and axis: image sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def merge_unit(self) -> int:
        """Patches per merged token."""
        return self.spatial_merge_size**2

    @property
    def patch_pixels(self) -> int:
        """Pixels of one patch over its temporal slots: 392 = 2·14·14."""
        return self.temporal_patch_size * self.patch_size**2

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the graph, in its order; all of them have `output_shape`."""
        return (OUTPUT_NAME,)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for a size (height, width) in pixels.

        Raises:
            InputError: a side is no positive multiple of `factor`.
        """
        if any(side < self.factor or side % self.factor for side in size):
            nearest = " ".join(str(max(1, round(side / self.factor)) * self.factor) for side in size)
            raise InputError(f"size {size[0]} {size[1]}: expected multiples of {self.factor}; the nearest is {nearest}")
        return size[0] // self.patch_size, size[1] // self.patch_size

    def input_shape(self, size: tuple[int, int], uint8: bool = False) -> tuple[int, ...]:
        """Of the graph's input: (1, 3, S, 392), or (1, S, 392, 3) as uint8."""
        rows, columns = self.grid(size)
        patches = rows * columns, self.patch_pixels
        return (1, *patches, self.in_channels) if uint8 else (1, self.in_channels, *patches)

    def output_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of each of the graph's outputs: (S/4, out_hidden)."""
        rows, columns = self.grid(size)
        return rows * columns // self.merge_unit, self.out_hidden_size
