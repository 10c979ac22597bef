"""How long a configuration may take on the card, relative to the vendor's recipe: an estimate, as a range.

Nothing here was measured by this project. The constants are public reports: a step of 308x308 takes about 371 ms and
448x448 780 ms with every activation at 16 bits; products of 16-bit activations take 2.5 to 3 times as long as those of
8; weights stream at about 21 GB/s; a Transpose of 180 MB takes 5.7 ms.
"""

from dataclasses import dataclass

from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.plan import Plan
from qwen_vl_axera.quantization.simulation import BYTES

SPEEDUP = (2.5, 3.0)  # of a product, from 16 to 8 bits
WEIGHT_RATE = 21e9  # bytes/s
MOVE_RATE = 180e6 / 5.7e-3  # bytes/s
# Multiply-accumulates per second at 16 bits, weights and data movement included: of the 3B's tower 314.4e9 in 371 ms
# at 308x308, 671.5e9 in 780 ms at 448x448.
RATE_16 = 0.85e12


@dataclass(frozen=True)
class Estimate:
    """Time relative to every activation at 16 bits, between two bounds."""

    low: float
    high: float


def estimate(network: Network, plan: Plan) -> Estimate:
    """The relative time of a plan.

    The lower bound takes the larger speed-up and hides data movement behind products; the upper one takes the
    smaller and adds movement, counted in the bytes that each operator reads and writes.
    """
    products = {8: 0, 16: 0, 32: 0}
    moved = {"plan": 0, "wide": 0}
    for operator in network.operators:
        elements = sum(map(network.elements, (*operator.inputs, *operator.outputs)))
        moved["wide"] += elements * BYTES[16]
        if operator.passive:
            moved["plan"] += elements * BYTES[_width(network, plan, operator.outputs[0])]
        else:
            products[plan.bits(operator)] += network.macs(operator)
            moved["plan"] += elements * BYTES[plan.bits(operator)]
    weights = sum(network.elements(operator.weight) for operator in network.operators if operator.op_type == "Gemm")
    streaming, everything = weights / WEIGHT_RATE, sum(products.values()) / RATE_16
    times = []
    for speedup, weight in ((SPEEDUP[1], 0.0), (SPEEDUP[0], 1.0)):
        computed = (products[8] / speedup + products[16] + products[32]) / RATE_16
        # Weights stream in any case: a product can't be faster than its weight arrives.
        ours = max(computed, streaming) + weight * moved["plan"] / MOVE_RATE
        theirs = max(everything, streaming) + weight * moved["wide"] / MOVE_RATE
        times.append(ours / theirs)
    return Estimate(min(times), max(times))


def _width(network: Network, plan: Plan, tensor: str) -> int:
    """Bits of the widest consumer of a tensor; 16 for the graph's output."""
    return max((plan.bits(consumer) for consumer in network.consumers(tensor)), default=16)
