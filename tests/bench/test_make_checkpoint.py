"""Random checkpoints of the true shapes."""

import json

from bench.make_checkpoint import make_checkpoint
from qwen_vl_axera.checkpoint.tensors import Checkpoint


def test_vision_only_checkpoint_is_the_full_one_without_language_model(tiny_dir, tmp_path):
    config = json.loads((tiny_dir / "config.json").read_text())
    make_checkpoint(tmp_path / "vision", config, vision_only=True)
    vision, full = Checkpoint(tmp_path / "vision"), Checkpoint(tiny_dir)
    assert set(vision.tensors) == {name for name in full.tensors if name.startswith("visual.")}
    for name, info in vision.tensors.items():
        assert (vision.read(name, info.shape) == full.read(name, info.shape)).all()
