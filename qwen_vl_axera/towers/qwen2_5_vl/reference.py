"""transformers' own vision tower, the oracle: loaded without the language model, run step by step.

transformers moved these internals in every release from 4.49 to 5.23; what differs is handled here and
nowhere else.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from preprocess import flat_patches
from qwen_vl_axera import progress
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig, stored_tensors
from qwen_vl_axera.towers.tower import Stored

# A clip is also run several steps at a time; this many patches take 0.4 GB besides the weights.
PATCHES_AT_ONCE = 4096
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# cos and sin of the same angle, float32, from two places.
ANGLE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class StepLayout:
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

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class ReferenceTower:
    """transformers' `Qwen2_5_VisionTransformerPretrainedModel`, computing in float32.

    Args:
        stored: where its weights are; they are read one tensor at a time.
        config: its shape.
        device: "cpu", "cuda", ...
    """

    def __init__(self, stored: Stored, config: VisionConfig, device: str = "cpu"):
        self.config, self.device = config, device
        self.tower = load_tower(stored, config, blocks_as_stored=True).to(device)
        widen_while_running(self.tower.blocks)

    @torch.no_grad()
    def run(self, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The merged tokens of a clip, or of one step.

        Args:
            patches: uint8 (T, S, 392, 3).
            grid: rows and columns of patches, S = rows·columns.

        Returns:
            float32 (T·S/4, out_hidden), step by step in reading order.
        """
        hidden_states = torch.from_numpy(flat_patches(patches)).to(self.device)
        with without_tf32():
            output = self.tower(hidden_states, grid_thw=self.grid_thw(len(patches), grid))
        tokens = output if isinstance(output, Tensor) else output.pooler_output  # transformers 4, 5
        return tokens.float().cpu().numpy()

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

    def run_together(self, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Runs a clip several temporal steps at a time: as many as keep memory bounded, but at least two.

        Args:
            patches: uint8 (T, S, 392, 3).
            grid: rows and columns of patches.

        Returns:
            float32 (T·S/4, out_hidden).
        """
        wanted = max(2, PATCHES_AT_ONCE // (grid[0] * grid[1]))
        groups = np.array_split(patches, max(1, len(patches) // wanted))
        outputs: list[np.ndarray] = []
        with progress.stage("several steps at once", len(patches), unit="step") as stage:
            for group in groups:
                outputs.append(self.run(group, grid))
                stage.advance(len(group))
        return np.concatenate(outputs)

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
        if (cos[:, : rotary.shape[1]] - rotary.cos()).abs().max() > ANGLE_TOLERANCE:
            raise CheckFailed("transformers' blocks received other rotary angles than its own rule gives")
        cu_seqlens = torch.tensor([0, grid[0] * grid[1]]) if whole is None else whole
        return StepLayout(
            rotary.float().cpu(),
            cu_seqlens.to("cpu", torch.int32),
            (cu_window_seqlens if windows is None else windows).to("cpu", torch.int32),
            window_index.to("cpu", torch.int64),
        )


def load_tower(stored: Stored, config: VisionConfig, blocks_as_stored: bool = False) -> nn.Module:
    """Builds the tower without initialising it and fills in the weights one tensor at a time.

    Args:
        stored: where they are.
        config: the tower's shape.
        blocks_as_stored: the blocks' weights stay bfloat16 or float16 where they are stored so, which takes half the
            memory; else, and all others: float32.
    """
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    fields = dataclasses.asdict(config)
    del fields["rms_norm_eps"]  # a constant in transformers, too
    fields["fullatt_block_indexes"] = list(fields["fullatt_block_indexes"])
    with torch.device("meta"):
        tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**fields))
    # Its rotary frequencies are no weights but are made by the constructor: take them from a tower with a
    # real, if small, body.
    small = fields | {"depth": 0, "fullatt_block_indexes": [], "intermediate_size": 4, "out_hidden_size": 4}
    tower.rotary_pos_emb = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**small)).rotary_pos_emb

    shapes = stored_tensors(config)
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


@contextmanager
def without_tf32() -> Iterator[None]:
    """Forbids CUDA to multiply float32 with 10 bits of mantissa, as it does in convolutions when nobody objects."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def widen_while_running(blocks: nn.ModuleList) -> None:
    """Lets blocks with 16-bit weights compute in float32, to the bit: a block is widened while it runs, and no longer.

    All blocks share one set of float32 buffers, so they must be of one shape and run one after the other.
    """
    wide: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}  # of the block that runs

    def widen(block: nn.Module, args: tuple) -> None:
        for name, parameter in block.named_parameters():
            if parameter.dtype != torch.float32:
                stored[name] = parameter.data
                if name not in wide:
                    wide[name] = torch.empty_like(parameter, dtype=torch.float32)
                parameter.data = wide[name].copy_(parameter.data)

    def restore(block: nn.Module, args: tuple, output: Any) -> None:
        for name, parameter in block.named_parameters():
            if name in stored:
                parameter.data = stored.pop(name)

    for block in blocks:
        block.register_forward_pre_hook(widen)
        block.register_forward_hook(restore, always_call=True)


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
