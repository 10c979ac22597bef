"""estimate.py: milliseconds as they follow by hand from the public figures, at the true size of the 3B's tower."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.make_checkpoint import hub_config
from qwen_vl_axera.checkpoint.config import load_config
from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.files import write_json
from qwen_vl_axera.graph.export import trace_graph
from qwen_vl_axera.graph.files import write_graph
from qwen_vl_axera.quantization.estimate import CLOCK, REFERENCES, Trace, basis, estimate, loads, seconds
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.plan import uniform
from qwen_vl_axera.quantization.search import mixed_plan
from qwen_vl_axera.towers import find_tower

NEAR = pytest.approx


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """The 3B's graph of a size and form, without weights."""
    directory = tmp_path_factory.mktemp("3B")
    write_json(directory / "config.json", hub_config("3B"))
    checkpoint = SimpleNamespace(name="3B", config=load_config(directory), tower=find_tower("qwen2_5_vl"))

    def tower(side: int, mode: str = "dense", probe: bool = False) -> Network:
        path = directory / f"{side}_{mode}{probe}.onnx"
        if not path.is_file():
            spec = GraphSpec("qwen2_5_vl", (side, side), window_mode=mode, probe=probe)
            write_graph(trace_graph(checkpoint, spec)[0], path)
        return Network(path)

    return tower


def milliseconds(network, plan, trace=None) -> list[float]:
    return [1e3 * end for end in seconds(network, plan, trace)]


@pytest.mark.parametrize(("side", "vendor"), [(308, 371), (448, 780)])
def test_the_reported_times_are_met_at_both_ends(tower, side, vendor):
    """371 and 780 ms: of them 221 and 498 are products, 150 and 282 the rest."""
    network = tower(side)
    assert milliseconds(network, uniform(network, "U16")) == NEAR([vendor, vendor], rel=2e-3)
    reference = REFERENCES[f"{side}x{side}"]
    assert reference.rest * reference.written * 1e3 == NEAR({308: 150, 448: 282}[side], rel=0.01)


# Products alone at three times the rate, and at the measured rate with the rest: 310.1 and 19.2 GMAC at 308x308.
@pytest.mark.parametrize(
    ("side", "gemms", "everything"), [(308, (138, 246), (124, 163)), (448, (320, 516), (260, 340))]
)
def test_8_bits_take_what_the_figures_say(tower, side, gemms, everything):
    network = tower(side)
    assert milliseconds(network, uniform(network, "U8")) == NEAR(everything, rel=0.01)
    plan = mixed_plan(network, [])
    low, high = milliseconds(network, plan)
    conversions = 1e3 * loads(network, plan)["RequantizeLinear"] * 0.9 / 3 / 0.95e9
    assert low == NEAR(gemms[0], rel=0.01)
    reference, products = REFERENCES[f"{side}x{side}"], loads(network, plan, 2.5)
    slower = (products["Gemm"] + products["MatMul"]) * reference.seconds / reference.macs
    assert 1e3 * slower == NEAR({308: 161, 448: 366}[side], rel=0.01)  # products alone at 2.5 times the rate
    # What moves into linear layers has 8 bits: a little less than the rest at 16.
    assert 0.96 * gemms[1] < high - conversions <= gemms[1]
    if side == 308:  # of a layer's four inputs, 484 x (3 x 1280 + 3420) values
        assert conversions == NEAR(32 * 484 * (3 * 1280 + 3420) * 0.9 / 3 / 0.95e6, rel=0.02)
        found = estimate(network, plan)
        assert (found.low, found.high) == NEAR((low / 371, high / 371), rel=2e-3)
        assert found.low < 0.59 < 0.64 < found.high


def test_windows_save_the_products_that_they_leave_out(tower):
    dense, grouped = (tower(308, mode) for mode in ("dense", "grouped"))
    saved = [a - b for a, b in zip(*(milliseconds(of, uniform(of, "U16")) for of in (dense, grouped)), strict=True)]
    assert saved == NEAR([(19.19 - 4.33) * 371 / 329.3, (19.19 - 4.33) / 1.492], rel=0.01)


def test_weights_arrive_in_any_case(tower):
    network = tower(56, "grouped")  # 16 tokens: 668 MB at 21.3 GB/s
    assert milliseconds(network, uniform(network, "U8"))[0] == NEAR(31.4, rel=0.01)
    assert estimate(network, uniform(network, "U8")).high == NEAR(1, abs=0.05)


@pytest.fixture
def trace(tower):
    """Of the probe with the vendor's recipe: 40 % of the cycles are products, a quarter of all goes in parallel."""
    probe = tower(308, "grouped", probe=True)
    kinds = {"FullyConnected": 9_000_000, "MatMul": 1_000_000, "Softmax": 5_000_000, "load and store": 10_000_000}
    return Trace("probe.json", probe, uniform(probe, "U16"), 18_750_000, kinds)


def test_a_trace_of_the_same_build_is_its_own_time(trace):
    assert milliseconds(trace.network, trace.plan, trace) == NEAR([18.75e6 / CLOCK * 1e3] * 2)


def test_a_probes_trace_is_scaled_by_kind_of_operator(tower, trace):
    whole = tower(308, "grouped")
    wide, built = loads(whole, uniform(whole, "U16")), loads(trace.network, trace.plan)
    assert 8 < wide["Gemm"] / built["Gemm"] < 16 and 4 < wide["MatMul"] / built["MatMul"] < 16

    def cycles(**kinds):
        return [end * CLOCK for end in seconds(whole, uniform(whole, "U16"), replace(trace, kinds=kinds))]

    for kind, name in (("Gemm", "FullyConnected"), ("MatMul", "MatMul")):
        only = cycles(**{"Gemm": 1, name: 10**9})  # nothing else of weight
        assert only == NEAR([18.75e6 * wide[kind] / built[kind]] * 2, rel=1e-6)

    # Linear layers at 8 bits: their cycles by 3 or 2.5, and at the upper end conversions, which the build had none of.
    plan, gemms = mixed_plan(whole, []), 9e6 * wide["Gemm"] / built["Gemm"]
    before, after = (seconds(whole, of, replace(trace, span=25_000_000)) for of in (uniform(whole, "U16"), plan))
    products = {"Gemm", "MatMul", "weights", "RequantizeLinear"}
    moved = [sum(of[kind] for kind in of.keys() - products) for of in (wide, loads(whole, plan), built)]
    less = 10e6 * (moved[0] - moved[1]) / moved[2]  # what loads and stores move into linear layers has 8 bits
    saved = [(a - b) * CLOCK - less for a, b in zip(before, after, strict=True)]
    assert saved == NEAR([gemms * 2 / 3, gemms * 0.6 - loads(whole, plan)["RequantizeLinear"] * 0.3])
    assert 0 < less < 0.1 * gemms
    assert "probe.json" in basis(whole, trace) and "public reports" in basis(whole)


def test_a_trace_without_products_is_not_used(tower, trace):
    whole, unknown = tower(308, "grouped"), replace(trace, kinds={"other": 5})
    assert seconds(whole, uniform(whole, "U8"), unknown) == seconds(whole, uniform(whole, "U8"))
    assert "public reports" in basis(whole, unknown)
