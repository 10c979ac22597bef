"""Qwen2.5-VL's vision tower: its shape, its layout, the module that is exported, its weights, the original."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_vl_axera.contract import GraphSpec

if TYPE_CHECKING:  # each part is imported when it is asked for: torch and transformers take seconds
    from qwen_vl_axera.towers.qwen2_5_vl.config import VisionConfig
    from qwen_vl_axera.towers.qwen2_5_vl.layout import Layout
    from qwen_vl_axera.towers.qwen2_5_vl.module import VisionTower
    from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
    from qwen_vl_axera.towers.tower import Stored


class Qwen25VLTower:
    """See `towers.tower.Tower`."""

    model_type = "qwen2_5_vl"

    def read_config(self, path: Path, raw: dict[str, Any]) -> "VisionConfig":
        from qwen_vl_axera.towers.qwen2_5_vl.config import read_config

        return read_config(path, raw)

    def stored_tensors(self, config: "VisionConfig") -> dict[str, tuple[int, ...]]:
        from qwen_vl_axera.towers.qwen2_5_vl.config import stored_tensors

        return stored_tensors(config)

    def layout(self, config: "VisionConfig", size: tuple[int, int]) -> "Layout":
        from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout

        return build_layout(config, size)

    def module(self, config: "VisionConfig", layout: "Layout", spec: GraphSpec) -> "VisionTower":
        from qwen_vl_axera.towers.qwen2_5_vl.module import VisionTower

        return VisionTower(config, layout, spec)

    def parameters(self, config: "VisionConfig", spec_input: str) -> list[str]:
        from qwen_vl_axera.towers.qwen2_5_vl.weights import weight_table

        return list(weight_table(config, spec_input))

    def weights(self, stored: "Stored", config: "VisionConfig", spec_input: str):
        from qwen_vl_axera.towers.qwen2_5_vl.weights import vision_weights

        return vision_weights(stored, config, spec_input)

    def witnesses(self, config: "VisionConfig") -> list[str]:
        from qwen_vl_axera.towers.qwen2_5_vl.weights import witnesses

        return witnesses(config)

    def reference(self, stored: "Stored", config: "VisionConfig", device: str = "cpu") -> "ReferenceTower":
        from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower

        return ReferenceTower(stored, config, device)
