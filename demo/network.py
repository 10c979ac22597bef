"""Qwen2.5-VL once more, for training the demo model quickly on a processor: one fixed clip size, batched.

Parameters carry the hub's names, so `state_dict()` is the checkpoint. transformers runs windows one
after the other and whole masks through the language model; here windows of one size are one product and
the masks are the caller's. That both compute the same is a test (tests/demo/test_network.py).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from demo.clips import NUM_FRAMES, SIZE

PATCH, MERGE, SLOTS, WINDOW = 14, 2, 2, 112
STEPS = NUM_FRAMES // SLOTS  # 4 temporal steps
GRID = SIZE // PATCH  # 12 patches per side
MERGED = GRID // MERGE  # 6 merged tokens per side
PATCHES, TOKENS = GRID**2, MERGED**2  # 144 and 36 per step
WINDOW_TOKENS = WINDOW // PATCH // MERGE  # 4 per side
IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-6
VISION_THETA = 10000.0

VISION = {"depth": 4, "hidden": 128, "mlp": 256, "heads": 4, "full": (3,)}
TEXT = {
    "layers": 4,
    "hidden": 128,
    "mlp": 384,
    "heads": 4,
    "kv_heads": 2,
    "theta": 30.0,
    "section": (4, 6, 6),
}


def window_order() -> tuple[list[int], list[int]]:
    """Merged tokens window by window, and each window's number of tokens: [16, 8, 8, 4], sorted."""
    order, sizes = [], []
    for top in range(0, MERGED, WINDOW_TOKENS):
        for left in range(0, MERGED, WINDOW_TOKENS):
            rows = range(top, min(top + WINDOW_TOKENS, MERGED))
            columns = range(left, min(left + WINDOW_TOKENS, MERGED))
            order += [row * MERGED + column for row in rows for column in columns]
            sizes.append(len(rows) * len(columns))
    return order, sizes


def patch_grid() -> torch.Tensor:
    """Row and column of every patch in merge-block order: int64 (144, 2)."""
    grid = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1)
    blocks = grid.view(MERGED, MERGE, MERGED, MERGE, 2).transpose(1, 2)
    return blocks.reshape(PATCHES, 2)


def patches(frames: torch.Tensor) -> torch.Tensor:
    """Normalised patches in merge-block order, as transformers' image processor lays them out.

    Args:
        frames: uint8 (B, 8, 168, 168, 3).

    Returns:
        float32 (B, 4 · 144, 1176); a patch's values in the order channel, temporal slot, row, column.
    """
    mean, std = (torch.tensor(values) * 255 for values in (IMAGE_MEAN, IMAGE_STD))
    x = (frames.float() - mean) / std
    x = x.view(len(x), STEPS, SLOTS, MERGED, MERGE, PATCH, MERGED, MERGE, PATCH, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # B, T, rows, columns, quad row, quad column, C, slot, y, x
    return x.reshape(len(x), STEPS * PATCHES, -1)


class RMSNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, EPS)


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, inner: int, bias: bool):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias)
        self.up_proj = nn.Linear(hidden, inner, bias)
        self.down_proj = nn.Linear(inner, hidden, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (..., length, head size)."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Plain products: the fused kernel's backward is slower at these sizes."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


class VisionAttention(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, runs) -> torch.Tensor:
        count, length, hidden = x.shape
        q, k, v = self.qkv(x).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        parts = []
        for start, windows, size in runs:
            cut = [t[:, :, start : start + windows * size].unflatten(2, (windows, size)) for t in (q, k, v)]
            parts.append(attend(*cut).flatten(2, 3))
        return self.proj(torch.cat(parts, 2).transpose(1, 2).reshape(count, length, hidden))


class VisionBlock(nn.Module):
    def __init__(self, hidden: int, inner: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(hidden), RMSNorm(hidden)
        self.attn = VisionAttention(hidden, heads)
        self.mlp = GatedMLP(hidden, inner, bias=True)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, runs) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, runs)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.proj = nn.Conv3d(3, hidden, (SLOTS, PATCH, PATCH), (SLOTS, PATCH, PATCH), bias=False)


class Merger(nn.Module):
    def __init__(self, hidden: int, out: int):
        super().__init__()
        wide = hidden * MERGE**2
        self.ln_q = RMSNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.ln_q(x).flatten(-2).unflatten(-1, (-1, self.mlp[0].in_features)))


class VisionTower(nn.Module):
    """`order` may be replaced to see what a wrong window order does."""

    def __init__(self):
        super().__init__()
        hidden = VISION["hidden"]
        self.patch_embed = PatchEmbed(hidden)
        self.blocks = nn.ModuleList(VisionBlock(hidden, VISION["mlp"], VISION["heads"]) for _ in range(VISION["depth"]))
        self.merger = Merger(hidden, TEXT["hidden"])
        self.order = torch.tensor(window_order()[0])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of patches (B, 576, 1176).

        Returns:
            merged tokens (B, 144, 128) in reading order, and what enters the full-attention block,
            (B · 4, 144, 128) in window order, for the auxiliary head.
        """
        batch = len(x)
        x = F.linear(x.view(batch * STEPS, PATCHES, -1), self.patch_embed.proj.weight.flatten(1))
        x = x.float()  # under autocast the sums over the blocks stay in float32
        index = (self.order[:, None] * MERGE**2 + torch.arange(MERGE**2)).flatten()
        cos, sin = self._rotary(index)
        sizes = [tokens * MERGE**2 for tokens in window_order()[1]]
        runs, start = [], 0
        for size in sorted(set(sizes), reverse=True):
            runs.append((start, sizes.count(size), size))
            start += sizes.count(size) * size
        x = x[:, index]
        inside = x
        for number, block in enumerate(self.blocks):
            full = number in VISION["full"]
            inside = x if full else inside
            x = block(x, cos, sin, [(0, 1, PATCHES)] if full else runs)
        merged = self.merger(x.unflatten(1, (TOKENS, MERGE**2)).flatten(2).unflatten(2, (MERGE**2, -1)))
        merged = merged.reshape(batch * STEPS, TOKENS, -1)[:, self.order.argsort()]
        return merged.reshape(batch, STEPS * TOKENS, -1), inside

    def _rotary(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = VISION["hidden"] // VISION["heads"] // 2
        frequencies = VISION_THETA ** (-torch.arange(0, half, 2) / half)
        angles = (patch_grid()[index][..., None] * frequencies).flatten(1)
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


class TextAttention(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, self.heads, self.kv_heads = TEXT["hidden"], TEXT["heads"], TEXT["kv_heads"]
        size = hidden // self.heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, self.kv_heads * size)
        self.v_proj = nn.Linear(hidden, self.kv_heads * size)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, -1).transpose(1, 2)
        k, v = (layer(x).view(batch, length, self.kv_heads, -1).transpose(1, 2) for layer in (self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, hidden))


class TextLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(TEXT["hidden"]), RMSNorm(TEXT["hidden"])
        self.self_attn = TextAttention()
        self.mlp = GatedMLP(TEXT["hidden"], TEXT["mlp"], bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    def __init__(self, vocab_size: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, TEXT["hidden"])
        self.layers = nn.ModuleList(TextLayer() for _ in range(TEXT["layers"]))
        self.norm = RMSNorm(TEXT["hidden"])

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states of embeddings x (B, L, 128); position_ids (3, B, L), additive mask (..., L, L)."""
        half = TEXT["hidden"] // TEXT["heads"] // 2
        frequencies = TEXT["theta"] ** (-torch.arange(half) / half)
        axes = torch.repeat_interleave(torch.arange(3), torch.tensor(TEXT["section"]))  # of each frequency
        angles = position_ids[axes].permute(1, 2, 0) * frequencies  # (B, L, half)
        cos, sin = (torch.cat([f(angles), f(angles)], -1)[:, None] for f in (torch.cos, torch.sin))
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)


class DemoNetwork(nn.Module):
    """The whole model; the output layer shares the embedding's weights."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.visual = VisionTower()
        self.model = LanguageModel(vocab_size)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)

    def initialise(self, seed: int, gain: float = 0.9) -> None:
        """Weights from a normal distribution of deviation gain / √inputs; biases zero, norms one."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, gain / math.sqrt(parameter[0].numel()), generator=generator)
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
