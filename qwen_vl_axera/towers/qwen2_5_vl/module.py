"""The vision tower as one temporal step sees it: static shapes, no masks, written to be exported.

It follows `Qwen2_5_VisionTransformerPretrainedModel` of transformers with these differences, all exact:

- linear layers work on two-dimensional (patches, channels) tensors: each becomes one Gemm with its bias;
- windows of equal size are adjacent (`layout.Layout.groups`): each size is one batched attention;
- q, k and v are separate layers: no activation is cut into three, and each gets its own quantisation range;
- 1/sqrt(head_dim) lies in Wq and bq, the bias of v in the bias of the output projection (the rows of a
  softmax sum to 1), the sign of rotate_half in the sine, (x - mean) / std in the patch embedding.
  `weights.py` does the folding.

The norms keep their weight: Pulsar2's smooth quantisation needs a place for its scales, and the pattern
stays the one that the vendor's own exports have.

Letters in shapes: S patches, h heads, d channels of a head, C channels, n windows of w patches.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.towers.qwen2_5_vl import QWEN2_5_VL
from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig
from qwen_vl_axera.towers.qwen2_5_vl.layout import Layout, WindowGroup

# Attention scores of one MatMul at most, in bytes of float32. Above it heads are taken in turns: at
# 1288x1288 all 16 heads at once would need 4.6 GB.
MAX_SCORES = 256 << 20
# Added to scores between windows in dense mode. exp(-1000) is 0 in float32 for any real score, and
# quantisation ranges stay finite.
MASKED = -1000.0


class RMSNorm(nn.Module):
    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (S, C)
        variance = x.pow(2.0).mean(-1, keepdim=True)  # (S, 1)
        return x / torch.sqrt(variance + self.eps) * self.weight


class PatchEmbed(nn.Module):
    """The Conv3d of the original, whose kernel is its stride, as a Linear over one patch's values."""

    def __init__(self, config: VisionConfig, bias: bool):
        super().__init__()
        self.proj = nn.Linear(config.patch_pixels * config.in_channels, config.hidden_size, bias=bias)

    def forward(self, patches: Tensor) -> Tensor:  # (S, 1176) -> (S, C)
        return self.proj(patches)


class Rotary(nn.Module):
    """Rotary position angles of one step; head halves on an axis of their own."""

    def __init__(self, layout: Layout):
        super().__init__()
        cos, sin = layout.cos_sin  # (S, d/2)
        self.register_buffer("cos", torch.from_numpy(cos[:, None, None, :]), persistent=False)
        # rotate_half gives (-second, first): the minus is in the sine, no Neg is needed.
        signed = np.stack([-sin, sin], axis=1)[:, None]
        self.register_buffer("sin", torch.from_numpy(signed), persistent=False)  # (S, 1, 2, d/2)
        self.register_buffer("swap_halves", torch.from_numpy(np.array([1, 0])), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (S, h, 2, d/2)
        return x * self.cos + x.index_select(2, self.swap_halves) * self.sin


class QKV(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


class GroupAttention(nn.Module):
    """Attention within each of n windows of w patches; full attention is one window of all patches."""

    head_axis = 1

    def __init__(self, group: WindowGroup, config: VisionConfig):
        super().__init__()
        self.group = group
        self.heads, self.head_dim = config.num_heads, config.head_dim
        scores_of_head = 4 * group.count * group.size**2
        self.heads_at_once = max(1, min(self.heads, MAX_SCORES // scores_of_head))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        n, w = self.group.count, self.group.size
        split = n, w, self.heads, self.head_dim
        q = q.reshape(split).permute(0, 2, 1, 3)  # (n, h, w, d)
        k = k.reshape(split).permute(0, 2, 3, 1)  # (n, h, d, w)
        v = v.reshape(split).permute(0, 2, 1, 3)  # (n, h, w, d)
        return self.product(q, k, v, mask).permute(0, 2, 1, 3).reshape(n * w, self.heads * self.head_dim)

    def product(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """All heads at once, or in turns."""
        return self.attend(q, k, v, mask) if self.heads_at_once == self.heads else self.in_turns(q, k, v, mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = torch.matmul(q, k)  # (n, h, w, w)
        if mask is not None:
            scores = scores + mask
        return torch.matmul(torch.softmax(scores, -1), v)

    def in_turns(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        full, rest = divmod(self.heads, self.heads_at_once)
        sizes = [self.heads_at_once] * full + [rest] * (rest > 0)
        axis = self.head_axis
        q, k, v = (x.split(sizes, axis) for x in (q, k, v))
        return torch.cat([self.attend(q[i], k[i], v[i], mask) for i in range(len(sizes))], axis)


class FoldedAttention(GroupAttention):
    """The same with windows and heads on one batch axis: MatMul and Softmax see three axes, known to compile."""

    head_axis = 0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        n, w, h, d = self.group.count, self.group.size, self.heads, self.head_dim
        if n == 1:
            q = q.reshape(w, h, d).permute(1, 0, 2)  # (h, w, d)
            k = k.reshape(w, h, d).permute(1, 2, 0)  # (h, d, w)
            v = v.reshape(w, h, d).permute(1, 0, 2)  # (h, w, d)
            return self.product(q, k, v, mask).permute(1, 0, 2).reshape(w, h * d)
        q = q.reshape(n, w, h, d).permute(0, 2, 1, 3).reshape(n * h, w, d)
        k = k.reshape(n, w, h, d).permute(0, 2, 3, 1).reshape(n * h, d, w)
        v = v.reshape(n, w, h, d).permute(0, 2, 1, 3).reshape(n * h, w, d)
        y = self.attend(q, k, v, mask).reshape(n, h, w, d)
        return y.permute(0, 2, 1, 3).reshape(n * w, h * d)


class Attention(nn.Module):
    def __init__(self, config: VisionConfig, groups: tuple[WindowGroup, ...], form: type[GroupAttention]):
        super().__init__()
        self.halves = -1, config.num_heads, 2, config.head_dim // 2
        self.rows = [group.patches for group in groups]
        self.qkv = QKV(config.hidden_size)
        self.windows = nn.ModuleList(form(group, config) for group in groups)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        halves = sum(self.rows), *self.halves[1:]
        q, k, v = self.qkv(x)
        q = rotary(q.reshape(halves))  # (S, h, 2, d/2)
        k = rotary(k.reshape(halves))
        if len(self.windows) == 1:
            return self.proj(self.windows[0](q, k, v, mask))
        q, k, v = (x.split(self.rows, 0) for x in (q, k, v))
        return self.proj(torch.cat([window(q[i], k[i], v[i]) for i, window in enumerate(self.windows)], 0))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (S, C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: VisionConfig, groups: tuple[WindowGroup, ...], form: type[GroupAttention]):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, groups, form)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:  # (S, C)
        x = x + self.attn(self.norm1(x), rotary, mask)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """The four patches of each quad into one token of the language model."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.merged = config.hidden_size * config.merge_unit
        self.ln_q = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, config.out_hidden_size)
        )

    def forward(self, x: Tensor, order: Tensor) -> Tensor:  # (S, C) -> (S/4, out_hidden), rows as `order` says
        quads = self.ln_q(x).reshape(-1, self.merged)
        # Reordered here and not at the end: a graph that ends on moved data lost its 16 bits on a real card.
        return self.mlp(quads.index_select(0, order))


class VisionTower(nn.Module):
    """One temporal step of Qwen2.5-VL's vision tower at a fixed size.

    Args:
        config: the tower's shape.
        layout: what the size fixes: order of patches, windows, rotary angles.
        spec: what the graph is made for. Its window modes: "grouped" (a batch of windows and heads, four axes),
            "folded" (windows and heads on one axis), "unrolled" (a product for each window), all exact and without
            masks, and "dense" (one masked product over all patches).
    """

    def __init__(self, config: VisionConfig, layout: Layout, spec: GraphSpec):
        super().__init__()
        self.config, self.layout, self.uint8 = config, layout, spec.uint8
        self.normalize = spec.uint8 and spec.input == "normalized"
        if self.normalize:
            scale = np.tile(1 / (255 * np.array(QWEN2_5_VL.std)), config.patch_pixels).astype(np.float32)
            shift = np.tile(-np.array(QWEN2_5_VL.mean) / np.array(QWEN2_5_VL.std), config.patch_pixels).astype(
                np.float32
            )
            self.register_buffer("pixel_scale", torch.from_numpy(scale), persistent=False)  # (1176,)
            self.register_buffer("pixel_shift", torch.from_numpy(shift), persistent=False)
        self.register_buffer("window_order", torch.from_numpy(layout.order), persistent=False)
        self.register_buffer("reading_order", torch.from_numpy(layout.reverse), persistent=False)
        if spec.window_mode == "dense":
            same = layout.window_ids[:, None] == layout.window_ids[None, :]
            mask = np.where(same, 0.0, MASKED).astype(np.float32)[None, None]
            self.register_buffer("window_mask", torch.from_numpy(mask), persistent=False)  # (1, 1, S, S)
        else:
            self.window_mask = None

        everything = (WindowGroup(1, layout.num_patches),)
        windows = {
            "grouped": layout.groups,
            "folded": layout.groups,
            "unrolled": tuple(WindowGroup(1, group.size) for group in layout.groups for _ in range(group.count)),
            "dense": everything,
        }[spec.window_mode]
        kinds = {number in config.fullatt_block_indexes: number for number in reversed(range(config.depth))}
        # A probe has the first of each kind, and those asked for.
        self.numbers = sorted({*kinds.values(), *spec.blocks}) if spec.probe else range(config.depth)
        form = FoldedAttention if spec.window_mode in ("folded", "unrolled") else GroupAttention
        self.patch_embed = PatchEmbed(config, bias=spec.input == "pixels")
        self.rotary = Rotary(layout)
        self.blocks = nn.ModuleList(
            Block(config, everything if number in config.fullatt_block_indexes else windows, form)
            for number in range(config.depth)
        )
        self.merger = Merger(config)

    def example(self) -> Tensor:
        """An input without memory, for tracing."""
        size = tuple(side * self.config.patch_size for side in self.layout.grid)
        dtype = torch.uint8 if self.uint8 else torch.float32
        return torch.empty(self.config.input_shape(size, self.uint8), dtype=dtype, device="meta")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 (1, 3, S, 392), or uint8 (1, S, 392, 3), -> float32 (S/4, out_hidden) in reading order."""
        patches, tokens = self.layout.num_patches, self.layout.num_tokens
        if not self.uint8:
            # The compiled model turns its NHWC input by [0, 3, 1, 2]; this turns it back: the two cancel.
            hidden_states = hidden_states.permute(0, 2, 3, 1)  # (1, S, 392, 3)
        # Reordering the pixels moves fewer bytes than reordering the embedded patches would.
        quads = hidden_states.reshape(tokens, -1).index_select(0, self.window_order)  # (S/4, 4·1176)
        x = quads.reshape(patches, -1)  # (S, 1176)
        if self.uint8:
            x = x.float()
        if self.normalize:
            x = x * self.pixel_scale + self.pixel_shift
        x = self.patch_embed(x)
        for number in self.numbers:
            mask = None if number in self.config.fullatt_block_indexes else self.window_mask
            x = self.blocks[number](x, self.rotary, mask)
        return self.merger(x, self.reading_order)
