"""Checkpoints that quantise badly in a known way, derived from one that does not.

    python bench/witnesses.py CKPT DIR {massive,channels,pca,rotated,smoothed} --video PATH [--size H W]

`massive` plants what large vision towers have and small ones lack: hidden units of an early block fire on a few
per cent of the patches and write a thousand times the median into three channels, a late block takes it back, and the
last block's down_proj sees an input of thousands. `channels` lifts eight channels of every token to 40 to 80 times the
median. `pca` rotates the residual stream into the basis of its own variance, exactly but for the rounding of weights;
`rotated` into a random one, the remedy against loud channels; `smoothed` moves the loudest channels in front of a
linear layer into its weights, by powers of two and so without any rounding.
Writes: DIR, a checkpoint like CKPT. Each is judged against its own float network.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera import cli
from qwen_vl_axera.errors import InputError

SHARE = 0.03  # of the patches that become massive
RATIO = 1200.0  # of a massive value to the median of the residual stream
CHANNELS = 3  # that a massive token is written into
CANCELLED = 0.98  # of it, by the late block
SATURATED = 12.0  # gate at which a planted unit is fully on; SiLU is straight by then
RAMP = 1.5  # a unit is off for all but this many times SHARE of the patches
DIRECTIONS = 16  # of the activations' variance, among which the one with the clearest tail is taken
SPIKE = 3000.0  # the last block's largest down_proj input
LOUD_CHANNELS, LOUDNESS = 8, (40.0, 80.0)  # how many channels `channels` lifts, and between which ratios

SMOOTHED = 8.0  # by how much `smoothed` quietens a channel at most

KINDS = ("massive", "channels", "pca", "rotated", "smoothed")
Tensors = dict[str, np.ndarray]


def plant_massive_tokens(tensors: Tensors, activations: Callable[[Tensors, set[str]], Tensors], depth: int) -> None:
    """Changes a checkpoint's tensors in place.

    Args:
        tensors: name without `visual.` -> float32.
        activations: runs the tensors as a float tower and gives the named tensors of its graph, one row a patch.
        depth: blocks; at least 3.
    """
    early, late, last = min(1, depth - 3), depth - 2, depth - 1
    seen = activations(tensors, {f"blocks.{early}.norm2.mul", f"blocks.{early}.add_1", *_hidden(early, late, last)})
    free = {block: _idle_units(tensors, seen, block) for block in (early, late, last)}
    inputs = seen[f"blocks.{early}.norm2.mul"]
    direction, off_until, on_from = _firing_direction(inputs)
    slope, start = SATURATED / (on_from - off_until), off_until
    channels = np.argsort(np.abs(seen[f"blocks.{early}.add_1"]).mean(0))[:CHANNELS]
    signs = np.array([1.0, -1.0, 1.0])
    size = RATIO * np.median(np.abs(seen[f"blocks.{early}.add_1"]))
    on, off = free[early][:2]
    _set_unit(tensors, early, on, slope * direction, -slope * start, 1.0, channels, signs * size / SATURATED)
    _set_unit(
        tensors, early, off, slope * direction, -slope * start - SATURATED, 1.0, channels, -signs * size / SATURATED
    )

    for block, unit, share in ((late, free[late][0], -CANCELLED), (last, free[last][0], None)):
        seen = activations(tensors, {f"blocks.{block}.norm2.mul", f"blocks.{late - 1}.add_1"})
        loud = np.abs(seen[f"blocks.{late - 1}.add_1"]).max(1) > size / 2
        if not loud.any():
            raise InputError("no patch became massive: give frames with more in them")
        normed = seen[f"blocks.{block}.norm2.mul"][:, channels] @ signs
        level, rest = np.median(normed[loud]), np.quantile(normed[~loud], 0.99)
        gain = 2 * SATURATED / max(level - rest, 1e-3)
        bias = -gain * (level + rest) / 2  # SATURATED for a massive patch, -SATURATED for others
        row = np.zeros(len(seen[f"blocks.{block}.norm2.mul"][0]))
        row[channels] = gain * signs
        if share is not None:
            _set_unit(tensors, block, unit, row, bias, 1.0, channels, share * signs * size / SATURATED)
        else:
            _set_unit(tensors, block, unit, row, bias, SPIKE / SATURATED, channels, signs / SPIKE)


def _firing_direction(inputs: np.ndarray) -> tuple[np.ndarray, float, float]:
    """A direction in which SHARE of the rows stand out, the score up to which none fires, and from which all do."""
    found = []
    for direction in np.linalg.svd(inputs - inputs.mean(0), full_matrices=False)[2][:DIRECTIONS]:
        for signed in (direction, -direction):
            score = inputs @ signed
            off, on = np.quantile(score, (1 - RAMP * SHARE, 1 - SHARE))
            found.append(((on - off) / score.std(), signed, off, on))
    _, direction, off, on = max(found, key=lambda item: item[0])
    return direction, float(off), float(on)


def _hidden(*blocks: int) -> list[str]:
    return [f"blocks.{block}.mlp.mul_1" for block in blocks]


def _idle_units(tensors: Tensors, seen: Tensors, block: int) -> np.ndarray:
    """Hidden units of a block, those that write least first."""
    size = np.abs(seen[f"blocks.{block}.mlp.mul_1"]).mean(0)
    return np.argsort(size * np.linalg.norm(tensors[f"blocks.{block}.mlp.down_proj.weight"], axis=0))


def _set_unit(tensors, block, unit, gate, gate_bias, up_bias, channels, written) -> None:
    mlp = f"blocks.{block}.mlp"
    tensors[f"{mlp}.gate_proj.weight"][unit], tensors[f"{mlp}.gate_proj.bias"][unit] = gate, gate_bias
    tensors[f"{mlp}.up_proj.weight"][unit], tensors[f"{mlp}.up_proj.bias"][unit] = 0, up_bias
    tensors[f"{mlp}.down_proj.weight"][:, unit] = 0
    tensors[f"{mlp}.down_proj.weight"][channels, unit] = written


def lift_channels(tensors: Tensors, activations: Callable[[Tensors, set[str]], Tensors]) -> None:
    """Adds a constant to a few channels of the residual stream, in place, by the first block's last bias."""
    (residual,) = activations(tensors, {"blocks.0.add_1"}).values()
    channels = np.argsort(np.abs(residual).mean(0))[:LOUD_CHANNELS]
    signs = np.resize([1.0, -1.0], LOUD_CHANNELS)
    sizes = np.linspace(*LOUDNESS, LOUD_CHANNELS) * np.median(np.abs(residual))
    tensors["blocks.0.mlp.down_proj.bias"][channels] += (signs * sizes).astype(np.float32)


def rotate(tensors: Tensors, rotation: np.ndarray, depth: int) -> None:
    """Turns the residual stream in place, exactly but for rounding; the norms' weights go into what follows them.

    Args:
        tensors: name without `visual.` -> float32.
        rotation: orthogonal (C, C).
        depth: blocks.
    """
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = (rotation @ kernel.reshape(len(kernel), -1)).reshape(kernel.shape)
    for block in range(depth):
        name = f"blocks.{block}"
        for norm, readers in (("norm1", ["attn.qkv"]), ("norm2", ["mlp.gate_proj", "mlp.up_proj"])):
            for reader in readers:
                weight = tensors[f"{name}.{reader}.weight"]
                tensors[f"{name}.{reader}.weight"] = (weight * tensors[f"{name}.{norm}.weight"]) @ rotation.T
            tensors[f"{name}.{norm}.weight"] = np.ones_like(tensors[f"{name}.{norm}.weight"])
        for writer in ("attn.proj", "mlp.down_proj"):
            for part in ("weight", "bias"):
                tensors[f"{name}.{writer}.{part}"] = rotation @ tensors[f"{name}.{writer}.{part}"]
    weight, norm = tensors["merger.mlp.0.weight"], tensors["merger.ln_q.weight"]
    parts = weight.reshape(len(weight), -1, len(norm))  # (out, 4, C)
    tensors["merger.mlp.0.weight"] = ((parts * norm) @ rotation.T).reshape(weight.shape)
    tensors["merger.ln_q.weight"] = np.ones_like(norm)


def smoothed_tensors(depth: int) -> set[str]:
    """Names of the graph's tensors that `smooth` looks at: what a norm or an activation hands to linear layers."""
    ends = ("norm1.mul", "norm2.mul", "mlp.mul_1")
    return {f"blocks.{block}.{end}" for block in range(depth) for end in ends} | {"merger.ln_q.mul"}


def smooth(tensors: Tensors, seen: Tensors, depth: int, cap: float = SMOOTHED) -> None:
    """Moves loud channels in front of linear layers into their weights, in place and exactly.

    A channel is divided by the largest power of two that leaves it above the median channel, at most by `cap`: in the
    norm's weight or in up_proj's rows, where S8 weights have a scale of their own for each row. The columns that read
    it are multiplied, where rows share their scale with all columns: so the cap.

    Args:
        tensors: name without `visual.` -> float32.
        seen: `smoothed_tensors` on some frames, one row a patch.
        depth: blocks.
        cap: a power of two.
    """

    def factors(name: str) -> np.ndarray:
        largest = np.abs(seen[name]).max(0)
        ratio = largest / max(float(np.median(largest)), 1e-30)
        return 2.0 ** np.clip(np.floor(np.log2(np.maximum(ratio, 1))), 0, np.log2(cap))

    for block in range(depth):
        name = f"blocks.{block}"
        for norm, readers in (("norm1", ["attn.qkv"]), ("norm2", ["mlp.gate_proj", "mlp.up_proj"])):
            by = factors(f"{name}.{norm}.mul")
            tensors[f"{name}.{norm}.weight"] /= by
            for reader in readers:
                tensors[f"{name}.{reader}.weight"] *= by
        by = factors(f"{name}.mlp.mul_1")
        tensors[f"{name}.mlp.up_proj.weight"] /= by[:, None]
        tensors[f"{name}.mlp.up_proj.bias"] /= by
        tensors[f"{name}.mlp.down_proj.weight"] *= by
    by = factors("merger.ln_q.mul")
    tensors["merger.ln_q.weight"] /= by
    tensors["merger.mlp.0.weight"] *= np.tile(by, tensors["merger.mlp.0.weight"].shape[1] // len(by))


def pca_rotation(residual: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that takes rows into the basis of their own variance, float64 (C, C)."""
    return np.linalg.svd(residual.astype(np.float64), full_matrices=False)[2]


def random_rotation(channels: int, seed: int = 0) -> np.ndarray:
    """A seeded orthogonal matrix, float64 (C, C)."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0]


def make_witness(
    source: Path, target: Path, kind: str, video: Path, size: tuple[int, int] | None = None, cap: float = SMOOTHED
) -> None:
    """Writes a derived checkpoint.

    Args:
        source: a Qwen2.5-VL checkpoint.
        target: an empty or absent directory.
        kind: one of KINDS.
        video: frames on which the tower is looked at.
        size: height and width; default: what the clip gives.
        cap: of `smoothed`.
    """
    from preprocess import frames_to_patches, to_graph_input
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.frames.media import frame_size, load_clip

    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: not empty; give another directory")
    checkpoint, clip = Checkpoint(source), load_clip([video])
    size = size or frame_size(clip)
    steps = [to_graph_input(step) for step in frames_to_patches(clip.frames, size)]
    names = [name for name in checkpoint.tensors if name.startswith("visual.")]
    tensors = {name.removeprefix("visual."): checkpoint.read(name) for name in names}
    depth = checkpoint.config.vision.depth

    def activations(changed: Tensors, wanted: set[str]) -> Tensors:
        with tempfile.TemporaryDirectory() as scratch:
            write_checkpoint(source, Path(scratch) / "ckpt", changed)
            return run_float(Path(scratch) / "ckpt", Path(scratch), size, steps, wanted)

    if kind == "massive":
        plant_massive_tokens(tensors, activations, depth)
    elif kind == "channels":
        lift_channels(tensors, activations)
    elif kind == "smoothed":
        smooth(tensors, activations(tensors, smoothed_tensors(depth)), depth, cap)
    elif kind == "rotated":
        rotate(tensors, random_rotation(checkpoint.config.vision.hidden_size), depth)
    else:
        residual = activations(tensors, {f"blocks.{depth // 2}.add_1"})[f"blocks.{depth // 2}.add_1"]
        rotate(tensors, pca_rotation(residual), depth)
    write_checkpoint(source, target, tensors)


def run_float(checkpoint: Path, workdir: Path, size, steps: Sequence[np.ndarray], wanted: set[str]) -> Tensors:
    """Named tensors of the exported graph over some steps, one row a patch."""
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.graph.export import export_vision
    from qwen_vl_axera.quantization.execution import Execution, batches
    from qwen_vl_axera.quantization.network import Network

    export_vision(Checkpoint(checkpoint), workdir, sizes=[size])
    (graph,) = (path for path in workdir.glob("*_vision.onnx"))
    network = Network(graph, fuse=())
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in batches(steps):
        for name, values in Execution(network).run(batch, keep=wanted).items():
            if name in found:
                found[name] += [value.numpy() for value in values]
    return {name: np.concatenate(values) for name, values in found.items()}


def write_checkpoint(source: Path, target: Path, vision: Tensors) -> None:
    """A copy of a checkpoint with other vision tensors, in its own types and files."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            if path.is_file():
                shutil.copyfile(path, target / path.name)
            continue
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        for name in tensors:
            if "visual." in name:
                changed = torch.from_numpy(np.ascontiguousarray(vision[name.split("visual.", 1)[1]]))
                tensors[name] = changed.to(tensors[name].dtype)
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("target", metavar="DIR", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--video", type=Path, required=True, metavar="PATH", help="frames to look at the tower with")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    make_witness(args.ckpt, args.target, args.kind, args.video, tuple(args.size) if args.size else None)
    print(f"{args.target}: {args.ckpt.name} with {args.kind}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
