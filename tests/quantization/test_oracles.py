"""Observers and kernels against 95 small builds of the real compiler: scales, zero points, signs, weight scales."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from qwen_vl_axera.quantization.execution import ELEMENTWISE, WeightStore, constant_scale
from qwen_vl_axera.quantization.functions import TABLE
from qwen_vl_axera.quantization.kernels import Scale, Weight
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.observers import Ranges, calibrate

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())
BUILDS = ORACLES["builds"]
EXACT, APART = 245, 2  # of 266 scales, those equal to the bit; units in the last place of the others
NODES = {  # attributes that the builds have; Neg occurs in no graph of the converter
    "Softmax": helper.make_node("Softmax", ["x"], ["y"], axis=-1),
    "ReduceMean": helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1], keepdims=1),
}


def parse(graph: str) -> list[tuple[str, str, list[str]]]:
    """ "s=Sigmoid(x);y=Mul(x,s)" -> what each node makes, its operator, what it reads."""
    found = [re.fullmatch(r"(\w+)=(\w+)\((.*)\)", node) for node in graph.split(";")]
    return [(node[1], node[2], node[3].split(",")) for node in found]


def samples(build: dict) -> dict[str, torch.Tensor]:
    chance = np.random.default_rng(0)
    return {
        name: torch.from_numpy(chance.uniform(low, high, (16, *shape)).astype(np.float32))
        for name, (low, high, shape) in build["inputs"].items()
    }


def constant(value) -> torch.Tensor:
    if not isinstance(value, list):
        return torch.tensor(value, dtype=torch.float32)
    seed, low, high, shape = value
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def scales(build: dict, baked: bool = True) -> dict[str, Scale]:
    """The scale of every tensor, as the simulation has it.

    Args:
        build: an entry of oracles.json.
        baked: calibrate with quantised weights and constants, as the compiler does.
    """
    nodes = parse(build["graph"])
    constants = {name: constant(value) for name, value in build["constants"].items()}
    values, found = samples(build), {}
    ranges = Ranges(SimpleNamespace(range_group={name: name for name in build["tensors"]}))
    for name, tensor in values.items():
        ranges.observe(name, list(tensor))
    for made, kind, names in nodes:
        operands = []
        for name in names:
            if name not in constants:
                operands.append(values[name])
            elif kind == "MatMul":
                weight = Weight.of(constants[name].T.contiguous())
                operands.append(weight.values.T if baked else constants[name])
            else:
                assert kind in ELEMENTWISE
                found[name] = constant_scale(constants[name], "U8")
                operands.append(found[name].rounded(constants[name]) if baked else constants[name])
        values[made] = -operands[0] if kind == "Neg" else TABLE[kind](NODES.get(kind), *operands)
        ranges.observe(made, list(values[made]))
    for name in values:
        uses = [kind == "MatMul" and not set(names) & constants.keys() for _, kind, names in nodes if name in names]
        found[name] = Scale.of(*ranges.of(name), "U8", operand=bool(uses) and all(uses))
    return found


def distance(scale: Scale, bits: int) -> int:
    """Units in the last place between a scale and the compiler's."""
    step = np.float32(scale.step)
    assert float(step) == scale.step
    return abs(int(step.view(np.uint32)) - bits)


@pytest.mark.parametrize("name", BUILDS)
def test_a_build_has_these_scales(name):
    build = BUILDS[name]
    found = scales(build)
    for tensor, (bits, zero, signed) in build["tensors"].items():
        if tensor in build["constants"] and tensor not in found:
            continue  # a weight has many scales: see below
        scale = found[tensor]
        assert distance(scale, bits) <= APART, tensor
        assert (scale.zero, scale.low < 0) == (zero, signed), tensor
        assert scale.high - scale.low == 255


def agreeing(baked: bool = True) -> tuple[int, int]:
    """How many scales of all builds are equal to the bit, and how many there are."""
    pairs = [
        (found[tensor], bits)
        for build in BUILDS.values()
        for found in [scales(build, baked)]
        for tensor, (bits, *_) in build["tensors"].items()
        if tensor in found
    ]
    return sum(distance(scale, bits) == 0 for scale, bits in pairs), len(pairs)


def test_nearly_all_scales_are_equal_to_the_bit():
    exact, total = agreeing()
    assert total == 266 and exact >= EXACT


def test_ranges_are_taken_over_quantised_weights_and_constants():
    """With float ones, many scales would be others."""
    assert agreeing(baked=False)[0] < agreeing()[0] - 10


@pytest.mark.parametrize("seed", ORACLES["weight_scales"])
def test_weight_scales_are_the_compilers(seed):
    """Of the first 32 output channels, all that is published."""
    values = torch.from_numpy(np.random.default_rng(int(seed)).uniform(-0.1, 0.1, (64, 64)).astype(np.float32))
    steps = Weight.of(values.T.contiguous()).steps[:32].numpy()
    assert steps.view(np.uint32).tolist() == ORACLES["weight_scales"][seed]


def test_the_network_calibrates_as_the_builds_do(tmp_path):
    """The same through the library's own walk over a graph: the norm of a build, and its weight as a Gemm."""
    name = next(name for name, build in BUILDS.items() if build["graph"].startswith("sq=Mul(x,x)"))
    build = BUILDS[name]
    nodes = []
    for made, kind, names in parse(build["graph"]):
        node = helper.make_node(kind, names, [made], name=made)
        if kind in NODES:
            node.attribute.extend(NODES[kind].attribute)
        nodes.append(node)
    *_, shape = build["inputs"]["x"]
    tensors = [
        onnx.numpy_helper.from_array(constant(value).numpy(), name) for name, value in build["constants"].items()
    ]
    io = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:], tensors)), tmp_path / "g.onnx")
    network = Network(tmp_path / "g.onnx", fuse=())
    given = [sample.numpy() for sample in samples(build)["x"]]
    ranges = calibrate(network, given, weights=WeightStore(network), constants="U8")
    for tensor, (bits, zero, _) in build["tensors"].items():
        if tensor not in build["constants"]:
            scale = Scale.of(*ranges.of(tensor), "U8")
            assert distance(scale, bits) <= APART and scale.zero == zero, tensor
