"""transformers' own vision tower, the oracle: the machinery is that of `towers.qwen2_5_vl.reference`."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.towers.qwen2_5_vl import reference
from qwen_vl_axera.towers.qwen2_5_vl.reference import ANGLE_TOLERANCE, rotary_angles
from qwen_vl_axera.towers.qwen3_vl import QWEN3_VL
from qwen_vl_axera.towers.qwen3_vl.config import VisionConfig, stored_tensors


@dataclasses.dataclass(frozen=True)
class StepLayout(reference.Saved):
    """What transformers derives from one step's grid.

    Attributes:
        rotary_pos_emb: float32 (S, head_dim/2).
        cu_seqlens: int32 (2,).
    """

    rotary_pos_emb: Tensor
    cu_seqlens: Tensor


class ReferenceTower(reference.ReferenceTower):
    """transformers' `Qwen3VLVisionModel`: tokens, and behind each one its features of the inner blocks."""

    numbers = QWEN3_VL
    stored_tensors = staticmethod(stored_tensors)

    @staticmethod
    def build(config: VisionConfig, **changes: Any) -> nn.Module:
        import transformers

        try:
            from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
            from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
        except ModuleNotFoundError:
            found = f"transformers {transformers.__version__}"
            raise InputError(f"{found} has no Qwen3-VL: install 4.57 or newer") from None

        fields = dataclasses.asdict(config)
        del fields["layer_norm_eps"], fields["assumed"]  # the first is a constant in transformers, too
        fields["deepstack_visual_indexes"] = list(fields["deepstack_visual_indexes"])
        return Qwen3VLVisionModel(Qwen3VLVisionConfig(**fields | changes))

    small = {"depth": 0, "deepstack_visual_indexes": [], "intermediate_size": 4, "out_hidden_size": 4}  # noqa: RUF012

    def exact_parts(self) -> list[nn.Module]:
        return [*super().exact_parts(), self.tower.pos_embed, *self.tower.deepstack_merger_list]

    def answer(self, output: Any) -> Tensor:
        """The outputs' channels one after the other: (N, out_hidden · outputs)."""
        tokens, features = (
            output if isinstance(output, tuple) else (output.pooler_output, output.deepstack_features)
        )  # transformers 4, 5
        return torch.cat([tokens, *features], -1)

    def places(self, grid: tuple[int, int]) -> np.ndarray:
        return np.arange(grid[0] * grid[1] // self.config.merge_unit)

    def _layout(self, seen: list[dict[str, Any]], grid: tuple[int, int]) -> StepLayout:
        rotary = rotary_angles(self.tower, self.grid_thw(1, grid))
        cos = seen[0]["position_embeddings"][0].float()
        if not (cos[:, : rotary.shape[1]] - rotary.cos()).abs().max() <= ANGLE_TOLERANCE:  # NaN is no match
            raise CheckFailed("transformers' blocks received other rotary angles than its own rule gives")
        return StepLayout(rotary.float().cpu(), seen[0]["cu_seqlens"].to("cpu", torch.int32))
