"""Qwen2.5-VL's vision tower: its shape, its layout, the module that is exported, its weights, the original."""

from typing import TYPE_CHECKING

from qwen_vl_axera.towers.tower import Board, Tower

if TYPE_CHECKING:  # the parts, imported when they are asked for: torch and transformers take seconds
    from qwen_vl_axera.towers.qwen2_5_vl import config, layout, module, reference, weights  # noqa: F401

QWEN2_5_VL = Tower(
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    # The defaults of preprocess.py, too, which a board runs without this package.
    patch_size=14,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    layout_tensors=("rotary_pos_emb", "cu_seqlens", "cu_window_seqlens", "window_index"),
    # "Qwen3VL" selects the chat template; the runtime's "Qwen2_5VL" fails.
    board=Board(vlm_type="Qwen2_5VL", tokenizer_type="Qwen3VL", layers="qwen2_5_vl"),
)
