"""The vision towers that can be converted. All that is known of a model's numbers stands in a tower's package."""

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.towers.qwen2_5_vl import QWEN2_5_VL
from qwen_vl_axera.towers.qwen3_vl import QWEN3_VL
from qwen_vl_axera.towers.tower import Tower

TOWERS = {tower.model_type: tower for tower in (QWEN2_5_VL, QWEN3_VL)}


def find_tower(model_type: object) -> Tower:
    """The tower of a `model_type`, as config.json has it.

    Raises:
        InputError: there is none.
    """
    if isinstance(model_type, str) and model_type in TOWERS:
        return TOWERS[model_type]
    names = ", ".join(tower.name for tower in TOWERS.values())
    raise InputError(f"model_type is {model_type!r}, expected {' or '.join(map(repr, TOWERS))} ({names})")
