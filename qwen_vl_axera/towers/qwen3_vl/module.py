"""The vision tower as one temporal step sees it: static shapes, no masks, written to be exported.

It follows `Qwen3VLVisionModel` of transformers with the exact rewrites of `towers.qwen2_5_vl.module`, whose patch
embedding, rotary angles and attention it uses. New are LayerNorm, an MLP with GELU's tanh form, learned positions
(a constant of the graph), and the features of inner blocks, merged like the last one's and given as further outputs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.towers.qwen2_5_vl.layout import WindowGroup
from qwen_vl_axera.towers.qwen2_5_vl.module import Attention, FoldedAttention, GroupAttention, PatchEmbed, Rotary
from qwen_vl_axera.towers.qwen3_vl import QWEN3_VL
from qwen_vl_axera.towers.qwen3_vl.config import VisionConfig
from qwen_vl_axera.towers.qwen3_vl.layout import Layout


class MLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (S, C)
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: VisionConfig, group: WindowGroup, form: type[GroupAttention]):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = Attention(config, (group,), form)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:  # (S, C)
        x = x + self.attn(self.norm1(x), rotary, None)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """The four patches of each token into one; `wide` normalises the four together, as the mergers of DeepStack do."""

    def __init__(self, config: VisionConfig, wide: bool):
        super().__init__()
        self.wide, self.merged = wide, config.hidden_size * config.merge_unit
        self.norm = nn.LayerNorm(self.merged if wide else config.hidden_size, config.layer_norm_eps)
        self.linear_fc1 = nn.Linear(self.merged, self.merged)
        self.linear_fc2 = nn.Linear(self.merged, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (S, C) -> (S/4, out_hidden)
        x = self.norm(x.reshape(-1, self.merged)) if self.wide else self.norm(x).reshape(-1, self.merged)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class VisionTower(nn.Module):
    """One temporal step of Qwen3-VL's vision tower at a fixed size.

    Args:
        config: the tower's shape.
        layout: what the size fixes: rotary angles and learned positions.
        spec: what the graph is made for. Without windows the modes "grouped" and "dense" are one (attention with
            four axes), "folded" and "unrolled" the other (three axes).

    Raises:
        InputError: the operator set has no LayerNormalization, or the layout no positions.
    """

    def __init__(self, config: VisionConfig, layout: Layout, spec: GraphSpec):
        super().__init__()
        if spec.opset < 17:
            raise InputError(f"opset {spec.opset} has no LayerNormalization: give --opset 17 or above")
        self.config, self.layout, self.uint8 = config, layout, spec.uint8
        self.normalize = spec.uint8 and spec.input == "normalized"
        if self.normalize:
            mean, std = np.array(QWEN3_VL.mean), np.array(QWEN3_VL.std)
            scale, shift = (np.tile(v, config.patch_pixels).astype(np.float32) for v in (1 / (255 * std), -mean / std))
            self.register_buffer("pixel_scale", torch.from_numpy(scale), persistent=False)  # (1536,)
            self.register_buffer("pixel_shift", torch.from_numpy(shift), persistent=False)
        self.register_buffer("positions", torch.from_numpy(layout.positions), persistent=False)  # (S, C)
        self.taps = list(config.deepstack_visual_indexes)
        if spec.probe:  # the first block, and the first that a feature is taken from
            raise InputError("a probe of two blocks is not made of this tower yet: build the whole graph")
        form = FoldedAttention if spec.window_mode in ("folded", "unrolled") else GroupAttention
        everything = WindowGroup(1, layout.num_patches)
        self.patch_embed = PatchEmbed(config, bias=True)
        self.rotary = Rotary(layout)
        self.blocks = nn.ModuleList(Block(config, everything, form) for _ in range(config.depth))
        self.deepstack_merger_list = nn.ModuleList(Merger(config, wide=True) for _ in self.taps)
        self.merger = Merger(config, wide=False)

    def example(self) -> Tensor:
        """An input without memory, for tracing."""
        size = tuple(side * self.config.patch_size for side in self.layout.grid)
        dtype = torch.uint8 if self.uint8 else torch.float32
        return torch.empty(self.config.input_shape(size, self.uint8), dtype=dtype, device="meta")

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """float32 (1, 3, S, 512), or uint8 (1, S, 512, 3), -> float32 (S/4, out_hidden) for each of `output_names`."""
        if not self.uint8:
            # The compiled model turns its NHWC input by [0, 3, 1, 2]; this turns it back: the two cancel.
            hidden_states = hidden_states.permute(0, 2, 3, 1)  # (1, S, 512, 3)
        x = hidden_states.reshape(self.layout.num_patches, -1)  # (S, 1536)
        if self.uint8:
            x = x.float()
        if self.normalize:
            x = x * self.pixel_scale + self.pixel_shift
        x = self.patch_embed(x) + self.positions
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x, self.rotary)
            if number in self.taps:
                features.append(self.deepstack_merger_list[len(features)](x))
        return self.merger(x), *features
