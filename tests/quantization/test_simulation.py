"""The simulation against ONNX Runtime, against a second one written apart, and with the classic wrong rules."""

import numpy as np
import onnxruntime
import pytest
import torch

from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, within
from qwen_vl_axera.quantization.execution import Execution, WeightStore, batches
from qwen_vl_axera.quantization.losses import figures
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.observers import calibrate
from qwen_vl_axera.quantization.plan import uniform
from qwen_vl_axera.quantization.search import mixed_plan
from qwen_vl_axera.quantization.simulation import Simulation, border_bytes, mac8
from tests.quantization.interpreter import Interpreter, Rules

# Relative error between the two simulations: sums differ in their rounding, which moves a few codes by one, and a
# massive token makes much of one code. Seen: 1e-6 (weights), 1e-3 (16 bits), 1e-2 (mixed), 1e-7 (8 bits).
AGREEMENT = {"weights": 1e-5, "16": 5e-3, "mixed": 4e-2, "8": 1e-2}
WRONG = 1.5  # times the agreement: from here on a rule is told apart

TYPES = {
    "weights": lambda node: "U16",
    "16": lambda node: "U16",
    "mixed": lambda node: "U8" if node.op_type == "Gemm" else "U16",
    "8": lambda node: "U8",
}


def plan_of(name: str, network: Network):
    makers = {
        "weights": lambda network: None,
        "16": lambda network: uniform(network, "U16"),
        "mixed": lambda network: mixed_plan(network, []),
        "8": lambda network: uniform(network, "U8"),
    }
    return makers[name](network)


def simulate(calibrated, name: str, steps) -> torch.Tensor:
    plan = plan_of(name, calibrated.network)
    execution = Execution(calibrated.network, plan, calibrated.ranges, calibrated.weights)
    (batch,) = batches(steps)
    return torch.cat(execution.run(batch)[calibrated.network.output])


@pytest.fixture(scope="module")
def independent(massive):
    """Runs the second simulation."""

    def run(name: str, **mistakes) -> torch.Tensor:
        interpreter = Interpreter(str(massive.graph), TYPES[name], Rules(quantise=name != "weights", **mistakes))
        interpreter.calibrate(massive.samples())
        return torch.from_numpy(np.concatenate([interpreter(step) for step in massive.steps()]))

    return run


@pytest.fixture(scope="module")
def library(massive, calibrated):
    return {name: simulate(calibrated, name, massive.steps()) for name in TYPES}


@pytest.mark.parametrize("fuse", [(), ("norm", "activation")])
def test_the_float_path_is_the_graph(demo, fuse):
    session = onnxruntime.InferenceSession(demo.graph)
    steps = demo.steps()
    (batch,) = batches(steps)
    network = Network(demo.graph, fuse)
    for step, made in zip(steps, Execution(network).run(batch)[network.output], strict=True):
        expected = session.run(None, {"hidden_states": step})[0]
        assert within(compare(expected, made.numpy()), THRESHOLDS)


@pytest.mark.parametrize("name", TYPES)
def test_two_simulations_agree(name, library, independent):
    assert figures(independent(name), library[name])["relative_error"] <= AGREEMENT[name]


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        ("by_producer", "mixed"),
        ("weights_per_tensor", "weights"),
        ("weights_per_tensor", "16"),
        ("affine_operands", "8"),
        ("ranges_not_shared", "8"),
    ],
)
def test_wrong_rules_are_told_apart(mistake, name, library, independent):
    assert figures(independent(name, **{mistake: True}), library[name])["relative_error"] > WRONG * AGREEMENT[name]


def test_unfused_norms_are_quantised_inside(massive, library, independent):
    network = Network(massive.graph, ())
    ranges = calibrate(network, massive.samples())
    (batch,) = batches(massive.steps())
    apart = Execution(network, uniform(network, "U16"), ranges, WeightStore(network)).run(batch)[network.output]
    apart = torch.cat(apart)
    assert figures(independent("16", fused=False), apart)["relative_error"] <= AGREEMENT["mixed"]
    assert figures(library["16"], apart)["relative_error"] > WRONG * AGREEMENT["mixed"]


def test_several_steps_at_once_are_what_each_is_alone(massive, calibrated):
    together = simulate(calibrated, "mixed", massive.steps(3))
    alone = torch.cat([simulate(calibrated, "mixed", [step]) for step in massive.steps(3)])
    assert torch.equal(together, alone)


def test_a_run_can_begin_at_every_cut(massive, calibrated):
    network, plan = calibrated.network, mixed_plan(calibrated.network, [])
    (batch,) = batches(massive.steps())
    cuts = network.cuts
    execution = Execution(network, plan, calibrated.ranges, calibrated.weights)
    whole = execution.run(batch, keep={name for _, name in cuts})
    for index, name in cuts:
        again = execution.run(whole[name], start=index, tensor=name)[network.output]
        assert all(torch.equal(*pair) for pair in zip(again, whole[network.output], strict=True))


def test_massive_tokens_ruin_all_8_bits_and_not_the_mix(massive, calibrated):
    simulation = Simulation(calibrated.network, calibrated.ranges, massive.steps())
    network = calibrated.network
    floor, _ = simulation.setting("floor", None, None)
    eight, _ = simulation.setting("8", uniform(network, "U8"), [])
    mixed, _ = simulation.setting("mixed", mixed_plan(network, ["blocks.3.mlp.down_proj"]), [])
    assert eight["mean_token_cosine"] < 0.9
    assert mixed["mean_token_cosine"] > floor["mean_token_cosine"] - 0.005
    assert [block["block"] for block in eight["blocks"]] == [0, 1, 2, 3]
    assert eight["blocks"][1]["mean_token_cosine"] < floor["blocks"][1]["mean_token_cosine"]
    assert (mac8(network, uniform(network, "U8")), mac8(network, uniform(network, "U16"))) == (1, 0)
    assert 0.85 < mixed["mac8"] < 1
    assert len(mixed["steps"]) == 2
    assert len(mixed["steps"][0]["token_cosines"]) == 36


def test_bytes_at_borders(calibrated):
    """Each Gemm at U8 writes for U16 consumers, and each norm at U16 for U8 ones."""
    network = calibrated.network
    assert border_bytes(network, uniform(network, "U16")) == border_bytes(network, uniform(network, "U8")) == 0
    one = "blocks.0.mlp.up_proj"
    plan = uniform(network, "U16")
    plan.types[one] = "U8"
    rows, inner, outer = 144, 128, 256
    assert border_bytes(network, plan) == rows * inner * 1 + rows * outer * 2
