"""transformers' own vision tower, the oracle: loaded without the language model, run step by step.

transformers moved these internals in every release from 4.49 to 5.23; what differs is handled here and
nowhere else.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from preprocess import flat_patches
from qwen_vl_axera import progress
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.towers.precision import InFloat64, widened, without_tf32
from qwen_vl_axera.towers.qwen2_5_vl import QWEN2_5_VL
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig, stored_tensors
from qwen_vl_axera.towers.tower import Stored, Tower

# Relative, four units in the last place of a float32: what the patch embedding changes by then is what the float32
# sum over a patch's 1176 pixel values is rounded by (measured: 0.9 to 1.4 times that).
MOVED_BY = 4 * float(np.finfo(np.float32).eps)
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# cos and sin of the same angle, float32, from two places.
ANGLE_TOLERANCE = 1e-6


class Saved:
    """A layout whose fields are tensors, each saved under its name."""

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class StepLayout(Saved):
    """What transformers derives from one step's grid.

    Attributes:
        rotary_pos_emb: float32 (S, head_dim/2), in window order.
        cu_seqlens: int32 (2,).
        cu_window_seqlens: int32 (W+1,).
        window_index: int64 (S/4,).
    """

    rotary_pos_emb: Tensor
    cu_seqlens: Tensor
    cu_window_seqlens: Tensor
    window_index: Tensor


class ReferenceTower:
    """transformers' `Qwen2_5_VisionTransformerPretrainedModel`, computing in float32, or exactly.

    Args:
        stored: where its weights are; they are read one tensor at a time.
        config: its shape.
        device: "cpu", "cuda", ...
    """

    numbers: Tower = QWEN2_5_VL
    stored_tensors = staticmethod(stored_tensors)
    # What a tower needs that is built for its rotary frequencies alone.
    small = {"depth": 0, "fullatt_block_indexes": [], "intermediate_size": 4, "out_hidden_size": 4}  # noqa: RUF012

    def __init__(self, stored: Stored, config: VisionConfig, device: str = "cpu"):
        self.config, self.device = config, device
        self.tower = load_tower(stored, config, blocks_as_stored=True, kind=type(self)).to(device)
        with InFloat64():
            self.exact_rotary = rotary_frequencies(config, type(self)).to(device)

    @staticmethod
    def build(config: VisionConfig, **changes: Any) -> nn.Module:
        """transformers' tower with its constructor's weights; `changes` are fields of its configuration."""
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        fields = dataclasses.asdict(config)
        del fields["rms_norm_eps"]  # a constant in transformers, too
        fields["fullatt_block_indexes"] = list(fields["fullatt_block_indexes"])
        return Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**fields | changes))

    def run(self, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The merged tokens of a clip, or of one step.

        Args:
            patches: uint8 (T, S, 392, 3).
            grid: rows and columns of patches, S = rows·columns.

        Returns:
            float32 (T·S/4, out_hidden), step by step in reading order.
        """
        return self._run(flat_patches(patches, self.numbers.mean, self.numbers.std), grid)

    def run_moved(self, patches: np.ndarray, grid: tuple[int, int], seed: int) -> np.ndarray:
        """`run` with pixels moved by float32 rounding: the same answer up to what rounding makes of it.

        Equal pixels at the same place in a patch move alike, as equal patches round alike.
        """
        places, channels = patches.shape[2:]
        noise = np.random.default_rng(seed).uniform(-MOVED_BY, MOVED_BY, (places, channels, 256))
        moved = np.arange(256) * (1 + noise)
        values = moved[np.arange(places)[:, None], np.arange(channels), patches]
        return self._run(real_patches(values, self.numbers).astype(np.float32), grid)

    def run_exact(self, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """`run` in float64 throughout: what transformers' code means, without the roundings of float32."""
        rotary = self.tower.rotary_pos_emb
        self.tower.rotary_pos_emb = self.exact_rotary
        try:
            with InFloat64(), widened(self.exact_parts(), torch.float64):
                return self._forward(real_patches(patches, self.numbers), grid)
        finally:
            self.tower.rotary_pos_emb = rotary

    def _run(self, hidden_states: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        with without_tf32(), widened(self.tower.blocks, torch.float32):
            return self._forward(hidden_states, grid)

    @torch.no_grad()
    def _forward(self, hidden_states: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        steps = len(hidden_states) // (grid[0] * grid[1])
        output = self.tower(torch.from_numpy(hidden_states).to(self.device), grid_thw=self.grid_thw(steps, grid))
        return self.answer(output).cpu().numpy()

    def exact_parts(self) -> list[nn.Module]:
        """The modules with weights, as `widened` takes them."""
        return [self.tower.patch_embed, *self.tower.blocks, self.tower.merger]

    def answer(self, output: Any) -> Tensor:
        """The tokens in what transformers' tower returns."""
        return output if isinstance(output, Tensor) else output.pooler_output  # transformers 4, 5

    def places(self, grid: tuple[int, int]) -> np.ndarray:
        """int (S/4,): where each token of the reading order stands among those of the blocks."""
        window_index, _ = window_layout(self.tower, self.config, self.grid_thw(1, grid))
        return torch.argsort(window_index.cpu()).numpy()

    def stages(
        self, patches: np.ndarray, grid: tuple[int, int], exact: bool, tokens: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What one step's tokens are after the patch embedding and after each block.

        Args:
            patches: uint8 (1, S, 392, 3).
            grid: rows and columns of patches.
            exact: in float64, else in float32.
            tokens: int (N,), the tokens wanted, in reading order.

        Returns:
            Name of the stage, as in the exported module -> (N, 4, hidden), a token's four patches.
        """
        places = self.places(grid)
        place = places[tokens]
        seen: dict[str, np.ndarray] = {}

        def keep(name: str, rows: np.ndarray):
            def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
                quads = output.reshape(len(places), self.config.merge_unit, -1)
                seen[name] = quads[torch.from_numpy(rows).to(output.device)].cpu().numpy()

            return hook

        hooks = [self.tower.patch_embed.register_forward_hook(keep("patch_embed", np.asarray(tokens)))]
        for number, block in enumerate(self.tower.blocks):
            hooks.append(block.register_forward_hook(keep(f"blocks.{number}", place)))
        try:
            (self.run_exact if exact else self.run)(patches, grid)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def run_steps(self, patches: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, StepLayout]:
        """Runs a clip one temporal step at a time.

        Args:
            patches: uint8 (T, S, 392, 3).
            grid: rows and columns of patches.

        Returns:
            float32 (T·S/4, out_hidden) as `run` gives it for the whole clip, and the layout of a step.

        Raises:
            CheckFailed: the steps did not all get the same layout.
        """
        outputs: list[np.ndarray] = []
        layout: StepLayout | None = None
        with progress.stage("vision tower (transformers)", len(patches), unit="step") as stage:
            for step in patches:
                seen: list[dict[str, Any]] = []
                hooks = [
                    block.register_forward_pre_hook(_record(seen), with_kwargs=True) for block in self.tower.blocks
                ]
                outputs.append(self.run(step[None], grid))
                for hook in hooks:
                    hook.remove()
                current = self._layout(seen, grid)
                if layout is not None:
                    _require_equal(layout, current)
                layout = current
                stage.advance()
        return np.concatenate(outputs), layout

    def grid_thw(self, steps: int, grid: tuple[int, int]) -> Tensor:
        return torch.tensor([[steps, *grid]], device=self.device)

    def _layout(self, seen: list[dict[str, Any]], grid: tuple[int, int]) -> StepLayout:
        """The step's layout: segment bounds as the blocks received them, the rest from transformers' rules."""
        full = set(self.config.fullatt_block_indexes)
        whole = next((seen[number]["cu_seqlens"] for number in sorted(full)), None)
        windows = next((call["cu_seqlens"] for number, call in enumerate(seen) if number not in full), None)
        window_index, cu_window_seqlens = window_layout(self.tower, self.config, self.grid_thw(1, grid))
        angles = rotary_angles(self.tower, self.grid_thw(1, grid))
        quads = angles.reshape(len(window_index), self.config.merge_unit, -1)
        rotary = quads[window_index].reshape(angles.shape)

        cos = seen[0]["position_embeddings"][0].float()
        if not (cos[:, : rotary.shape[1]] - rotary.cos()).abs().max() <= ANGLE_TOLERANCE:  # NaN is no match
            raise CheckFailed("transformers' blocks received other rotary angles than its own rule gives")
        cu_seqlens = torch.tensor([0, grid[0] * grid[1]]) if whole is None else whole
        return StepLayout(
            rotary.float().cpu(),
            cu_seqlens.to("cpu", torch.int32),
            (cu_window_seqlens if windows is None else windows).to("cpu", torch.int32),
            window_index.to("cpu", torch.int64),
        )


def load_tower(
    stored: Stored, config: Any, blocks_as_stored: bool = False, kind: type[ReferenceTower] = ReferenceTower
) -> nn.Module:
    """Builds the tower without initialising it and fills in the weights one tensor at a time.

    Args:
        stored: where they are.
        config: the tower's shape.
        blocks_as_stored: the blocks' weights stay bfloat16 or float16 where they are stored so, which takes half the
            memory; else, and all others: float32.
        kind: which tower.
    """
    with torch.device("meta"):
        tower = kind.build(config)
    tower.rotary_pos_emb = rotary_frequencies(config, kind)

    shapes = kind.stored_tensors(config)
    size = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    with progress.stage("load vision weights", size) as stage:
        for name, shape in shapes.items():
            values = torch.from_numpy(stored.read(name, shape))
            stage.advance(values.nbytes)
            if blocks_as_stored and name.startswith("visual.blocks."):
                values = values.to(STORED_DTYPES[stored.dtype(name)])  # exact: that is where they come from
            tower.load_state_dict({name.removeprefix("visual."): values}, strict=False, assign=True)
    left = [name for name, parameter in tower.named_parameters() if parameter.is_meta]
    if left:
        raise CheckFailed(f"transformers' tower has parameters that no checkpoint tensor fills: {left[:3]}")
    return tower.requires_grad_(False).eval()


def rotary_frequencies(config: Any, kind: type[ReferenceTower] = ReferenceTower) -> nn.Module:
    """The tower's `rotary_pos_emb`: its frequencies are no weights but made by the constructor (a small one here)."""
    return kind.build(config, **kind.small).rotary_pos_emb


def real_patches(patches: np.ndarray, numbers: Tower = QWEN2_5_VL) -> np.ndarray:
    """float64 (T·S, 1176): pixels as `preprocess.flat_patches` gives them, but not rounded to float32.

    Args:
        patches: values of 0..255 (T, S, 392, 3).
    """
    values = (patches / 255 - np.array(numbers.mean)) / np.array(numbers.std)
    return np.ascontiguousarray(values.transpose(0, 1, 3, 2)).reshape(-1, values.shape[2] * values.shape[3])


def window_layout(tower: nn.Module, config: VisionConfig, grid_thw: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' window_index (S/4,) and cu_window_seqlens (W+1,) for a grid."""
    if hasattr(tower, "get_window_index"):  # transformers 4
        window_index, bounds = tower.get_window_index(grid_thw)
        # Where the merged side is a multiple of the window a whole empty window was padded on.
        return window_index, torch.unique_consecutive(torch.as_tensor(bounds))
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(
        grid_thw,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )


def rotary_angles(tower: nn.Module, grid_thw: Tensor) -> Tensor:
    """transformers' rotary angles, float32 (S, head_dim/2), in merge-block order."""
    if hasattr(tower, "rot_pos_emb"):  # transformers 4
        return tower.rot_pos_emb(grid_thw)
    from transformers.vision_utils import get_vision_position_ids

    positions = get_vision_position_ids(grid_thw, tower.spatial_merge_size)  # (S, 2)
    return (positions[..., None].float() * tower.rotary_pos_emb.inv_freq.float()).flatten(1)


def _record(seen: list[dict[str, Any]]):
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    return hook


def _require_equal(first: StepLayout, other: StepLayout) -> None:
    for name, value in first.tensors().items():
        if not torch.equal(value, other.tensors()[name]):
            raise CheckFailed(f"{name} differs between temporal steps: one static graph could not serve them all")
