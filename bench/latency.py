"""ONNX Runtime's seconds per step for several graphs, in turn within one process.

    python bench/latency.py [--budget SECONDS] [--rounds LOW HIGH] NAME=GRAPH.onnx...

Reads:  graphs of export.py, or one of bench/peers.py (with inputs.npz beside it).
Prints: JSON: per graph the seconds of each round, what it holds (`operators.statistics`) and how far its answer is
        from the first graph of its size. All sessions have the same options, those of `fidelity.runtime.OnnxTower`.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from preprocess import CHANNELS, PATCH_PIXELS, flat_patches
from qwen_vl_axera import cli
from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.fidelity.metrics import compare
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.graph.files import load_graph
from qwen_vl_axera.graph.operators import statistics

TOKENS_OF_PEER = "pooler_output"
FIGURES = "nodes", "reshapes", "moved_bytes", "multiplications"


class PeerTower:
    """transformers' graph: flat normalised patches and the tensors that its tracing can't make."""

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", "1")  # as OnnxTower
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with np.load(path.parent / "inputs.npz", allow_pickle=False) as stored:
            wanted = {value.name for value in self.session.get_inputs()}
            self.inputs = {name: stored[name] for name in stored.files if name in wanted}
        self.num_patches = len(self.inputs[INPUT_NAME])

    def feed(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        return self.inputs | {INPUT_NAME: flat_patches(patches)}

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run([TOKENS_OF_PEER], feed)[0]


class OwnTower(OnnxTower):
    def feed(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        return {INPUT_NAME: self.graph_input(patches)}

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, feed)[0]


def open_tower(path: Path) -> OwnTower | PeerTower:
    return PeerTower(path) if (path.parent / "inputs.npz").is_file() else OwnTower(path)


def graph_figures(path: Path) -> dict[str, int]:
    """Nodes and moved bytes; a foreign graph whose shapes are not all written down has no moved bytes."""
    model = load_graph(path)
    try:
        figures = statistics(model)
    except KeyError:
        figures = {"nodes": len(model.graph.node)}
    return {name: figures[name] for name in FIGURES if name in figures}


def measure(graphs: dict[str, Path], budget: float, rounds: tuple[int, int]) -> dict:
    """Runs all graphs in turn until the budget is used up, within the bounds for the number of rounds."""
    random = np.random.default_rng(0)
    towers = {name: open_tower(path) for name, path in graphs.items()}
    pixels: dict[int, np.ndarray] = {}  # by patches: all graphs of a size get the same step
    for tower in towers.values():
        shape = tower.num_patches, PATCH_PIXELS, CHANNELS
        pixels.setdefault(tower.num_patches, random.integers(0, 256, shape, dtype=np.uint8))
    feeds = {name: tower.feed(pixels[tower.num_patches]) for name, tower in towers.items()}

    result: dict[str, dict] = {}
    first_of_size: dict[int, np.ndarray] = {}
    start = time.monotonic()
    for name, tower in towers.items():  # warms up, and compares the answers
        tokens = tower.run(feeds[name])
        reference = first_of_size.setdefault(tower.num_patches, tokens)
        agreement = compare(reference, tokens)
        result[name] = {
            "patches": tower.num_patches,
            "seconds": [],
            "agreement": {key: agreement[key] for key in ("max_abs_relative", "min_token_cosine")},
            **graph_figures(graphs[name]),
        }
    one_round = time.monotonic() - start
    for number in range(max(rounds[0], min(rounds[1], int(budget / one_round)))):
        for name in list(towers) if number % 2 == 0 else reversed(list(towers)):
            start = time.monotonic()
            towers[name].run(feeds[name])
            result[name]["seconds"].append(time.monotonic() - start)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("graphs", nargs="+", metavar="NAME=GRAPH.onnx")
    parser.add_argument("--budget", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--rounds", type=int, nargs=2, default=(3, 9), metavar=("LOW", "HIGH"))
    args = parser.parse_args(argv)
    graphs = dict(graph.split("=", 1) for graph in args.graphs)
    measured = measure({name: Path(path) for name, path in graphs.items()}, args.budget, tuple(args.rounds))
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
