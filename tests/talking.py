"""The tiny checkpoint, made to talk, and the steps before the one under test."""

from pathlib import Path

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.frames.media import frame_size, load_clip
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.oracle.record import Capture
from qwen_vl_axera.oracle.run import run_clip
from tests.tiny import make_tiny

LAYER_SCALE = 4  # of the language model's matrices: what a token sees outweighs the token itself
LOGIT_SCALE = 30  # of the final norm: probabilities far from equal, so that rounding decides nothing


def make_talking(directory: Path) -> Path:
    """`make_tiny`, rescaled: greedy text hangs on the features and on every token before, and does not repeat."""
    from safetensors.torch import load_file, save_file

    (file,) = make_tiny(directory).glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and name.endswith("proj.weight"):
            tensor *= LAYER_SCALE
    tensors["model.norm.weight"] *= LOGIT_SCALE
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def capture_and_export(checkpoint: Path, workdir: Path, video: Path, size=None) -> Capture:
    """Steps 1 and 2 in this process.

    Args:
        checkpoint: its directory.
        workdir: made when missing.
        video: a file or a directory.
        size: height and width; default: what the video gives.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    loaded, clip = Checkpoint(checkpoint), load_clip([video])
    capture = run_clip(loaded, workdir, clip, frame_size(clip, size=size))
    export_vision(loaded, workdir)
    return capture


def names(directory: Path) -> set[str]:
    """The files in a directory, hidden ones included: a temporary file that was left behind shows."""
    return {path.name for path in directory.iterdir()}
