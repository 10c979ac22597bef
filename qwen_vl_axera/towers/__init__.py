"""The vision towers that can be converted. All that is known of a model's numbers stands in a tower's package."""

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.towers.tower import Tower

MODEL_TYPES = ("qwen2_5_vl",)


def find_tower(model_type: object) -> Tower:
    """The tower of a `model_type`, as config.json has it.

    Raises:
        InputError: there is none.
    """
    if model_type == "qwen2_5_vl":
        from qwen_vl_axera.towers.qwen2_5_vl import Qwen25VLTower

        return Qwen25VLTower()
    raise InputError(f"model_type is {model_type!r}, expected {' or '.join(map(repr, MODEL_TYPES))} (Qwen2.5-VL)")
