"""Correct but odd random towers: the gate must let every one pass, however its weights make float32 round.

    python -m tests.odd_towers [--count 200] [--seed 0] [--jobs 1]

Prints what each tower's graph was measured at and the distribution over all. Exit code 1 on a false alarm.
Depths 1 to 12, head sizes 8 to 80, all-window to all-full attention, sharp attention, large and spiked norms,
massive activations, small and large inputs, biases and residuals, stored in three dtypes; clips of noise, of smooth,
of mostly flat and of black or white frames, at twelve sizes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bench.make_checkpoint import TOKENS, draw, flat_config
from bench.plan import QUICK_TEXT, QUICK_VISION
from qwen_vl_axera.checkpoint.config import load_config
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import FIDELITY
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.fidelity.gate import find_graphs, verify
from qwen_vl_axera.fidelity.record import THRESHOLDS
from qwen_vl_axera.files import plain
from qwen_vl_axera.frames.media import Clip
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.oracle.run import run_clip
from qwen_vl_axera.towers import find_tower

SIZES = [
    *((308, 308), (140, 252), (56, 84), (168, 336), (448, 448), (56, 56)),
    *((28, 28), (84, 28), (364, 420), (196, 196), (112, 112), (224, 308)),
]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
FRAMES = 8
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def odd_shape(random: np.random.Generator) -> dict[str, Any]:
    """A `vision_config`: depth, heads, widths and full-attention blocks drawn at random."""
    depth, heads = int(random.integers(1, 13)), int(random.choice([1, 2, 4, 8]))
    head_dim = int(random.choice([8, 16, 20, 32, 40, 64, 80]))
    while heads * head_dim > 320:
        heads //= 2
    full = [[], list(range(depth)), [depth - 1], [number for number in range(depth) if number % 4 == 3], [0]]
    return QUICK_VISION | {
        "depth": depth,
        "hidden_size": heads * head_dim,
        "num_heads": heads,
        "intermediate_size": int(heads * head_dim * random.choice([1, 2, 2.67])) // 4 * 4,
        "out_hidden_size": int(random.choice([32, 64, 128, 256])),
        "fullatt_block_indexes": full[int(random.integers(0, len(full)))],
    }


def odd_scales(random: np.random.Generator, depth: int) -> dict[str, Any]:
    """What the ordinary random weights are multiplied with."""
    return {
        "attention": float(random.choice([0.5, 1, 1, 2, 3, 5])),  # 5: scores of hundreds
        "norm": float(random.choice([1, 1, 1, 0.1, 3, 10])),
        "spikes": float(random.choice([1, 1, 10, 50])),  # three channels of every norm
        "input": float(random.choice([1, 1, 0.01, 30])),
        "bias": float(random.choice([1, 1, 0, 10])),
        "massive": float(random.choice([1, 1, 20, 100])),  # three channels of one block's MLP
        "massive_block": int(random.integers(0, depth)),
        "residual": float(random.choice([1, 1, 0.2, 3])),
    }


def odd_tensor(name: str, shape: tuple, seed: int, scales: dict[str, Any], random: np.random.Generator) -> np.ndarray:
    """One tensor's float32 values."""
    values = np.concatenate(list(draw(name, shape, seed))).reshape(shape)
    if ".qkv." in name:
        values[: shape[0] // 3 * 2] *= scales["attention"]
    if "norm" in name or "ln_q" in name:
        values *= scales["norm"]
        values[random.integers(0, len(values), 3)] *= scales["spikes"]
    if "patch_embed" in name:
        values *= scales["input"]
    if name.endswith(".bias"):
        values *= scales["bias"]
    if name.startswith(f"visual.blocks.{scales['massive_block']}.mlp.") and "down_proj" not in name:
        values[:3] *= scales["massive"]
    if name.endswith(("down_proj.weight", "attn.proj.weight")):
        values *= scales["residual"]
    return values


def make_odd(directory: Path, seed: int) -> tuple[Checkpoint, dict[str, Any]]:
    """Writes an odd tower without a language model; also says what is odd about it."""
    random = np.random.default_rng(seed)
    vision = odd_shape(random)
    scales = odd_scales(random, vision["depth"])
    dtype = str(random.choice(["bf16", "bf16", "f16", "f32"]))
    directory.mkdir(parents=True)
    config = flat_config(QUICK_TEXT, vision, TOKENS)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_config(directory)
    tensors = {
        name: torch.from_numpy(odd_tensor(name, shape, seed, scales, random)).to(DTYPES[dtype])
        for name, shape in find_tower(model.model_type).stored_tensors(model.vision).items()
    }
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint(directory), {"depth": vision["depth"], "width": vision["hidden_size"], "dtype": dtype, **scales}


def odd_clip(size: tuple[int, int], random: np.random.Generator) -> Clip:
    """Eight frames, two of a kind: noise, smooth, mostly flat, or of one grey."""
    frames = []
    for kind in random.integers(0, 4, FRAMES // 2):
        for _ in range(2):
            noise = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            if kind == 1:
                noise = np.clip(random.normal(128, 10, (*size, 3)), 0, 255).astype(np.uint8)
            elif kind == 2:
                noise[size[0] // 3 :] = 40
            elif kind == 3:
                noise[:] = noise[0, 0, 0]
            frames.append(noise)
    return Clip(frames, "frames", (Path("odd"),), tuple(range(FRAMES)), 1.0, size)


def measure(seed: int, sizes: list[tuple[int, int]] = SIZES) -> dict[str, Any]:
    """One tower through capture, export and gate: what makes it odd, and what the gate measured."""
    random = np.random.default_rng([seed, 1])
    size = sizes[int(random.integers(0, len(sizes)))]
    with tempfile.TemporaryDirectory() as place:
        checkpoint, oddness = make_odd(Path(place) / "odd", seed)
        workdir = Path(place) / "work"
        workdir.mkdir()
        row: dict[str, Any] = {"seed": seed, "size": size, **oddness}
        try:
            run_clip(checkpoint, workdir, odd_clip(size, random), size)
            export_vision(checkpoint, workdir)
            paths = find_graphs(checkpoint.name, workdir)
            graph, other = verify(checkpoint, workdir, paths, workdir / FIDELITY).graphs
        except (CheckFailed, InputError) as error:
            return row | {"problems": [str(error)]}
    return row | {
        **plain(graph.exact),
        "relative": max(step.max_abs_relative for step in graph.steps),
        # Steps whose exact answer was computed because of the bound.
        "asked": sum(step.exact is not None and step.bound is not None for step in graph.steps),
        "same": other.same_as == graph.file,
        "problems": graph.problems + ["uint8: " + problem for problem in other.problems if not other.same_as],
    }


def distribution(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The figures over all towers, a line each."""
    yield f"{'':20}" + "".join(f"{f'{percent} %':>10}" for percent in PERCENTILES)
    for name in (*plain(THRESHOLDS), "relative"):
        values = np.percentile([row[name] for row in rows if name in row], PERCENTILES)
        yield f"{name:20}" + "".join(f"{value:10.2g}" for value in values)
    again = sum(row.get("float32_runs", 1) > 1 for row in rows)
    alarms = [row for row in rows if row["problems"]]
    asked, steps = sum(row.get("asked", 0) for row in rows), FRAMES // 2 - 2
    yield f"{len(rows)} towers; transformers ran again for {again}; {len(alarms)} false alarms"
    yield f"{asked} of {steps * len(rows)} other steps were computed exactly, too"
    yield f"{sum(row.get('same', False) for row in rows)} uint8 graphs gave the very same values"
    yield from (f"seed {row['seed']}: {'; '.join(row['problems'])}" for row in alarms)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first tower")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    args = parser.parse_args(argv)
    rows = []
    with ProcessPoolExecutor(args.jobs, initializer=partial(torch.set_num_threads, 1)) as pool:
        for row in pool.map(measure, range(args.seed, args.seed + args.count)):
            print(json.dumps(row), flush=True)
            rows.append(row)
    print("\n".join(distribution(rows)))
    return 1 if any(row["problems"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
