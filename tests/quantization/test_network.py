"""network.py and fusion.py: what the exported graph becomes."""

from collections import Counter

import numpy as np
import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.operators import statistics
from qwen_vl_axera.quantization.network import Network


@pytest.fixture(scope="module")
def network(demo):
    return Network(demo.graph)


def test_norms_and_activations_are_fused(network, demo):
    apart = Network(demo.graph, ())
    kinds = Counter(operator.op_type for operator in network.operators)
    assert (kinds["RMSNorm"], kinds["Silu"], kinds["Gelu"]) == (9, 4, 1)
    assert not kinds.keys() & {"Pow", "ReduceMean", "Sqrt", "Div", "Sigmoid", "Erf"}
    assert sum(len(operator.nodes) for operator in network.operators) == len(apart.operators)
    norm = network.by_name["blocks.0.norm1.mul"]
    assert (norm.inputs, norm.outputs) == (("patch_embed.proj",), ("blocks.0.norm1.mul",))


def test_fusions_can_be_left_out_one_by_one(demo):
    kinds = Counter(operator.op_type for operator in Network(demo.graph, ["norm"]).operators)
    assert kinds["RMSNorm"] == 9
    assert kinds["Sigmoid"] == 4


def test_consumers_are_seen_through_what_moves(network):
    def readers(tensor):
        return {operator.name for operator in network.consumers(tensor)}

    assert readers("blocks.0.add") == {"blocks.0.norm2.mul", "blocks.0.add_1"}
    assert readers("blocks.0.attn.qkv.v") == {f"blocks.0.attn.windows.{group}.mat_mul_1" for group in range(3)}
    assert readers("merger.mlp.2") == set()


def test_ranges_are_shared_along_what_moves_and_over_a_concat(network):
    group = network.range_group
    parts = [f"blocks.0.attn.windows.{window}.transpose_2" for window in range(3)]
    assert {group[name] for name in parts} == {group["blocks.0.attn.qkv.v"]}
    windows = [f"blocks.0.attn.windows.{window}.mat_mul_1" for window in range(3)]
    assert {group[name] for name in windows} == {group["blocks.0.attn.concat"]}
    assert group["blocks.0.add"] != group["blocks.0.add_1"]


def test_products_are_counted_as_the_exporter_counts_them(network):
    macs = sum(map(network.macs, network.operators))
    assert macs == statistics(network.model)["multiplications"]


def test_the_residual_stream_is_what_blocks_hand_on(network):
    assert network.block_outputs == {block: f"blocks.{block}.add_1" for block in range(4)}


def test_a_missing_data_file_is_bad_input(demo, tmp_path):
    (tmp_path / "moved.onnx").write_bytes(demo.graph.read_bytes())
    with pytest.raises(InputError, match="run export"):
        Network(tmp_path / "moved.onnx").constant("blocks.0.mlp.up_proj.weight")


def test_weights_are_those_of_the_file(network):
    weight = network.constant("blocks.0.mlp.up_proj.weight")
    assert weight.shape == (256, 128)
    assert np.isfinite(weight).all()
