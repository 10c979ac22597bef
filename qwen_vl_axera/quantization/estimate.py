"""How long a step may take on the card under a plan: an estimate with two ends, and not a measurement.

Without a trace it rests on public reports: the 3B's tower takes 371 ms at 308x308 and 780 ms at 448x448 with every
activation at 16 bits (the vendor), and products run at 3.73e12 multiply-accumulates a second at U8, 2.5 times as long
at U16 (one AX650N). The two leave open what those 371 ms are spent on, so there are two ends:

- A: on products alone. Whatever is at 8 bits takes a third of its time then.
- B: on products at the measured rates, 221 ms, and on all the rest. That shrinks only as the bytes do that it moves,
  and values that are written at 16 bits and read at 8 have to be converted.

With a trace of a build its cycles are scaled, one kind of operator at a time, by what the plan has more or less of it
than the build; the same two ends differ in the speed-up of products and in conversions.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from qwen_vl_axera.quantization.network import Network, Operator
from qwen_vl_axera.quantization.plan import Plan, uniform
from qwen_vl_axera.quantization.simulation import BYTES

SPEEDUPS = (3.0, 2.5)  # of a product from 16 to 8 bits: ends A and B
RATE_16 = 3.73e12 / SPEEDUPS[1]  # multiply-accumulates a second, of 512 rows
WEIGHT_RATE = 21.3e9  # bytes a second; weights are S8
CLOCK = 0.95e9  # cycles a second
CONVERSION = 0.9 / 3  # cycles for each value that is read narrower than it was written, on three cores
ALIASES = {"FullyConnected": "Gemm"}
WEIGHTS, CONVERT = "weights", "RequantizeLinear"  # kinds in a trace besides operator types
PRODUCTS, CONVERSIONS = "products", "changes of width"  # parts of the time
FREE = {"Identity", "Reshape", "Squeeze", "Unsqueeze"}  # move nothing


Parts = dict[str, float]  # what takes the time -> seconds


@dataclass(frozen=True)
class Reference:
    """A reported time of the 3B's tower: seconds, multiply-accumulates, and values that its linear layers write."""

    seconds: float
    macs: float
    written: float

    @property
    def rest(self) -> float:
        """Seconds for each value written that products do not explain: it grows with tokens, width and depth."""
        return (self.seconds - self.macs / RATE_16) / self.written


# Attention dense, as in the vendor's export.
REFERENCES = {"308x308": Reference(371e-3, 329.3e9, 206.5e6), "448x448": Reference(780e-3, 741.9e9, 437.0e6)}


@dataclass(frozen=True)
class Trace:
    """Cycles that a build's profile gives.

    Attributes:
        source: where it was found, in words.
        network, plan: what was built.
        span: cycles that the model takes.
        kinds: kind of operator -> cycles; engines work in parallel, so the sum is larger than the span.
    """

    source: str
    network: Network
    plan: Plan
    span: int
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """Time relative to every activation at 16 bits, between two bounds."""

    low: float
    high: float


def estimate(network: Network, plan: Plan, trace: Trace | None = None) -> Estimate:
    """The relative time of a plan."""
    wide = uniform(network, "U16")
    ends = [ours / theirs for ours, theirs in zip(*(seconds(network, of, trace) for of in (plan, wide)), strict=True)]
    return Estimate(min(ends), max(ends))


def seconds(network: Network, plan: Plan, trace: Trace | None = None) -> tuple[float, float]:
    """The time of one step at the ends A and B."""
    first, last = (sum(of.values()) for of in parts(network, plan, trace))
    return first, last


def parts(network: Network, plan: Plan, trace: Trace | None = None) -> tuple[Parts, Parts]:
    """What takes the time of one step, in seconds, at the ends A and B."""
    if trace and (scaled := _scaled(network, plan, trace)):
        return scaled
    reference = _reference(network)
    (fast, _), (slow, moved) = (_sums(loads(network, plan, speedup)) for speedup in SPEEDUPS)
    streaming = loads(network, plan)[WEIGHTS] / WEIGHT_RATE  # a product can't be faster than its weight arrives
    rest = reference.rest * _written(network) * moved / _sums(loads(network, uniform(network, "U16")))[1]
    conversions = loads(network, plan)[CONVERT] * CONVERSION / CLOCK
    return (
        {PRODUCTS: max(fast * reference.seconds / reference.macs, streaming)},
        {PRODUCTS: max(slow / RATE_16, streaming), "all other operators": rest, CONVERSIONS: conversions},
    )


def basis(network: Network, trace: Trace | None = None) -> str:
    """What the estimate rests on, in words."""
    wide = uniform(network, "U16")
    low, high = sorted(1e3 * end for end in seconds(network, wide, trace))
    text = f"relative to all at 16 bits, about {low:.3g} to {high:.3g} ms a step"
    if trace and _scaled(network, wide, trace):
        return f"{text}: cycles by kind of operator in {trace.source}, scaled to the whole graph and to each setting"
    found = " and ".join(f"{1e3 * of.seconds:.0f} ms at {size}" for size, of in REFERENCES.items())
    return (
        f"{text}: from public reports, {found} for the 3B's tower, and nothing of your card. The lower end has "
        "products alone, the upper one data movement and changes of width as well; a probe of your compiler narrows it"
    )


def loads(network: Network, plan: Plan, speedup: float = SPEEDUPS[1]) -> Counter[str]:
    """What there is to do under a plan, by kind: operator types, WEIGHTS and CONVERT.

    Returns:
        Of Gemm and MatMul multiply-accumulates, those at 8 bits divided by the speed-up; of other operators the bytes
        that they read and write; the bytes of weights; and how many values are read at 8 bits and written wider.
    """
    found: Counter[str] = Counter()
    for operator in network.operators:
        macs = network.macs(operator)
        if operator.op_type == "Gemm":
            found[WEIGHTS] += network.elements(operator.weight)
        if macs:
            found[operator.op_type] += macs / (speedup if plan.bits(operator) == 8 else 1)
        elif operator.op_type not in FREE:
            elements = sum(map(network.elements, (*operator.inputs, *operator.outputs)))
            found[operator.op_type] += elements * BYTES[_width(network, plan, operator)]
        if not operator.passive and plan.bits(operator) > 8:
            narrow = (name for name in operator.outputs if 8 in {plan.bits(one) for one in network.consumers(name)})
            found[CONVERT] += sum(map(network.elements, narrow))
    return found


def _sums(found: Counter[str]) -> tuple[float, float]:
    """Multiply-accumulates of products, and bytes of the rest."""
    products = found["Gemm"] + found["MatMul"]
    return products, sum(found.values()) - products - found[WEIGHTS] - found[CONVERT]


def _scaled(network: Network, plan: Plan, trace: Trace) -> tuple[Parts, Parts] | None:
    """As `parts`, from a trace; None where it knows no products."""
    cycles = Counter()
    for kind, count in trace.kinds.items():
        cycles[ALIASES.get(kind, kind)] += count
    if not (cycles["Gemm"] and trace.span):
        return None
    ends = []
    for speedup, priced in zip(SPEEDUPS, (False, True), strict=True):
        ours, built = loads(network, plan, speedup), loads(trace.network, trace.plan, speedup)
        # A kind that the graph has not, such as loads and stores, goes with the bytes of the rest.
        whole = _sums(ours)[1] / _sums(built)[1]
        rate = CLOCK * cycles.total() / trace.span
        end = {kind: n / rate * (ours[kind] / built[kind] if built[kind] else whole) for kind, n in cycles.items()}
        if priced and not built[CONVERT]:  # the build had none: there is no telling what they cost
            end[CONVERSIONS] = ours[CONVERT] * CONVERSION / CLOCK
        ends.append(end)
    return ends[0], ends[1]


def _reference(network: Network) -> Reference:
    """The reported tower that is nearest in size."""
    written = _written(network)
    return min(REFERENCES.values(), key=lambda reference: abs(log(reference.written / written)))


def _written(network: Network) -> int:
    return sum(network.elements(one.outputs[0]) for one in network.operators if one.op_type == "Gemm")


def _width(network: Network, plan: Plan, operator: Operator) -> int:
    """Bits in which an operator works; a passive one in those of its widest consumer, 16 at the graph's output."""
    if not operator.passive:
        return plan.bits(operator)
    widths = (plan.bits(consumer) for name in operator.outputs for consumer in network.consumers(name))
    return max(widths, default=16)
