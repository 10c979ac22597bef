"""Graphs in turn in one process."""

import json

from bench import latency, step_cost
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.graph.export import export_vision
from tests.conftest import run_main
from tests.tiny import make_tiny


def test_latency_tells_graphs_apart(tiny_dir, tmp_path, capsys):
    """Another checkpoint's graph of the same size is compared with the first, and found different."""
    graphs = []
    for checkpoint in (tiny_dir, make_tiny(tmp_path / "other", seed=1)):
        graphs.append(export_vision(Checkpoint(checkpoint), tmp_path, sizes=[(56, 56)])[0].path)
    one, two = graphs
    flags = ["--rounds", 2, 2, f"one={one}", f"again={one}", f"two={two}"]
    code, out, _ = run_main(latency.main, capsys, *flags)
    figures = json.loads(out)
    assert code == 0 and figures["again"]["agreement"] == figures["one"]["agreement"]
    assert figures["two"]["agreement"]["min_token_cosine"] < step_cost.SAME
    assert all(len(graph["seconds"]) == 2 and graph["patches"] == 16 for graph in figures.values())
    code, _, error = run_main(latency.main, capsys, f"one={tmp_path / 'nothing.onnx'}")
    assert code == 2 and "is missing" in error
