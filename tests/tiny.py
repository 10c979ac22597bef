"""A tiny random Qwen2.5-VL checkpoint: the full model class, hub layout, a few hundred kB, seeded."""

from pathlib import Path

from bench.make_checkpoint import flat_config, make_checkpoint
from bench.plan import QUICK_TEXT, QUICK_VISION
from demo.tokenizer import build_tokenizer

VISION = QUICK_VISION
TEXT = QUICK_TEXT | {"num_hidden_layers": 2}


def make_tiny(directory: Path, vision: dict | None = None, text: dict | None = None, seed: int = 0) -> Path:
    """Writes the checkpoint, tokenizer included.

    Args:
        directory: where; made when missing.
        vision: fields of vision_config to set differently.
        text: fields of the language model to set differently.
        seed: of the weights.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ids = build_tokenizer(directory)
    tokens = {name: ids[name] for name in ids if name.endswith("_token_id")}
    config = flat_config(TEXT | (text or {}), VISION | (vision or {}), tokens)
    make_checkpoint(directory, config, seed)
    return directory
