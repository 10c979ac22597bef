"""Qwen3-VL's vision tower (2B, 4B, 8B): full attention, learned positions, and features of inner blocks (DeepStack)."""

from typing import TYPE_CHECKING

from qwen_vl_axera.towers.tower import Board, Tower

if TYPE_CHECKING:  # the parts, imported when they are asked for: torch and transformers take seconds
    from qwen_vl_axera.towers.qwen3_vl import config, layout, module, reference, weights  # noqa: F401

QWEN3_VL = Tower(
    model_type="qwen3_vl",
    name="Qwen3-VL",
    patch_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    layout_tensors=("rotary_pos_emb", "cu_seqlens"),
    board=Board(vlm_type="Qwen3VL", tokenizer_type="Qwen3VL", layers="qwen3_vl_text"),
    qkv_bias=False,
    qk_norm=True,
    text=False,
)
