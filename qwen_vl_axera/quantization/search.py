"""The largest share of 8-bit arithmetic whose loss stays within a target: which layers go back to 16 bits.

It starts from every linear layer (Gemm) at 8 bits and all else at 16: operator types are the selectors that are known
to work, and Gemm nodes keep their names. Layers are ranked by what each alone costs a token when the others have 16
bits, per multiply-accumulate, and put back from the top until the target holds on the frames that choose, with a
margin: a mix at the very edge there would miss it on others. Layers that it does without after all are taken out again,
so that every layer named is needed. Other frames judge the mix (`losses.loss_over_clips`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json, write_json
from qwen_vl_axera.quantization.execution import Execution, batches
from qwen_vl_axera.quantization.losses import damage, loss
from qwen_vl_axera.quantization.network import Network, Operator
from qwen_vl_axera.quantization.plan import EVERY_TENSOR, FLOAT, Plan, uniform
from qwen_vl_axera.quantization.simulation import Simulation

TARGET_LOSS = 0.005
MARGIN = 0.7  # of the target, while a mix is chosen
PROGRESS_FILE = "quantization_search.json"
TRIED = 24  # layers without which the target is tried, at most
RANKED_STEPS, RANKED_TOKENS = 2, 240  # what layers are ranked on, at least; the result is judged on all frames


@dataclass(frozen=True)
class Group:
    """Linear layers that read one tensor: they take it in one type, and are judged together."""

    layers: tuple[Operator, ...]

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        layer_configs: for `quant.layer_configs`.
        plan: what they mean.
        wide: names of the Gemms at 16 bits.
        reached: whether the target holds.
        sensitivity: [{"layers", "damage", "macs"}], the most harmful first.
    """

    layer_configs: list[dict[str, Any]]
    plan: Plan
    wide: list[str]
    reached: bool
    sensitivity: list[dict[str, Any]]


def gemm_groups(network: Network) -> list[Group]:
    """The linear layers of a network in order, those that read the same tensor together."""
    groups: dict[str, list[Operator]] = {}
    for operator in network.operators:
        if operator.op_type == "Gemm":
            groups.setdefault(operator.inputs[0], []).append(operator)
    return [Group(tuple(layers)) for layers in groups.values()]


def mixed_layer_configs(wide: Sequence[str]) -> list[dict[str, Any]]:
    """Every Gemm at 8 bits but those named, all else at 16."""
    everything = [EVERY_TENSOR]
    entries: list[dict[str, Any]] = [
        {"start_tensor_names": everything, "end_tensor_names": everything, "data_type": "U16"},
        {"op_types": ["Gemm"], "data_type": "U8"},
    ]
    return [*entries, {"layer_names": list(wide), "data_type": "U16"}] if wide else entries


def mixed_plan(network: Network, wide: Sequence[str]) -> Plan:
    """What `mixed_layer_configs` means."""
    plan = uniform(network, "U16")
    narrow = {operator.name: "U8" for operator in network.operators if operator.op_type == "Gemm"}
    return Plan(plan.types | narrow | dict.fromkeys(wide, "U16"))


def rank(
    simulation: Simulation, saved: Path, fingerprint: str, steps: Sequence[int] | None = None
) -> list[tuple[Group, float]]:
    """What each group alone costs at 8 bits, the most harmful per multiply-accumulate first.

    Against the same network with all linear layers at 16 bits, not the float one: what S8 weights cost is in both and
    can't hide or flatter a layer's own rounding. Between linear layers values stay in float: a 16-bit residual stream
    with massive tokens rounds coarsely, and falls another way after the smallest change, which is noise of the size
    of many layers' damage. What is found is saved group by group, so that an interrupted search goes on.

    Args:
        simulation: a calibrated network with frames.
        saved: a file for the progress.
        fingerprint: of everything that the figures depend on; those of another one are not taken over.
        steps: those to rank on, a few of them; None: of all.
    """
    network = simulation.network
    steps = range(len(simulation.steps)) if steps is None else steps
    known = _read_progress(saved, fingerprint)
    groups = gemm_groups(network)
    starts = {group: _start(network, group) for group in groups}
    prefix: dict[str, list[Tensor]] = {}
    gemms = {operator.name: "U16" for operator in network.operators if operator.op_type == "Gemm"}
    wide = Plan(uniform(network, FLOAT).types | gemms)
    with progress.stage("search", len(groups), unit="layer group") as stage:
        for group in groups:
            key = group.names[0]
            if key not in known:
                if not prefix:
                    prefix = _prefix(simulation, wide, {name for _, name in starts.values()}, steps)
                index, tensor = starts[group]
                plan = Plan(wide.types | dict.fromkeys(group.names, "U8"))
                execution = Execution(network, plan, simulation.ranges, simulation.weights)
                made = execution.run(prefix[tensor], start=index, tensor=tensor)[network.output]
                known[key] = damage(prefix[network.output], made)
                write_json(saved, {"fingerprint": fingerprint, "rounding": known})
            stage.advance()
    cost = {group: known[group.names[0]] / _macs(network, group) for group in groups}
    return [(group, known[group.names[0]]) for group in sorted(groups, key=lambda group: -cost[group])]


def search(
    simulation: Simulation,
    floor: Sequence[Tensor],
    target: float,
    saved: Path,
    fingerprint: str,
    steps: Sequence[int] | None = None,
) -> Outcome:
    """Finds the mix.

    Args:
        simulation: a calibrated network with frames.
        floor: the tokens with S8 weights alone, one tensor for each step.
        target: how much lower the mean of cosines may be, plain or centred.
        saved, fingerprint: see `rank`.
        steps: those that choose; None: all.
    """
    network = simulation.network
    steps = range(len(simulation.steps)) if steps is None else steps
    ranked = rank(simulation, saved, fingerprint, steps)
    reference, best = ([tokens[step] for step in steps] for tokens in (simulation.reference, floor))

    def holds(wide: Sequence[Operator]) -> bool:
        plan = mixed_plan(network, [layer.name for layer in wide])
        tokens = simulation.tokens(plan, steps, f"{len(wide)} layers wide")
        return loss(reference, best, tokens) <= MARGIN * target

    groups = [group for group, _ in ranked]
    found = first_that_hold(groups, holds)
    kept = needed(network, found, holds) if found is not None else layers_of(groups)
    wide = [operator.name for operator in network.operators if operator in kept]
    sensitivity = [{"layers": group.names, "damage": cost, "macs": _macs(network, group)} for group, cost in ranked]
    return Outcome(mixed_layer_configs(wide), mixed_plan(network, wide), wide, found is not None, sensitivity)


Holds = Callable[[Sequence[Operator]], bool]  # whether the target holds with these layers at 16 bits


def first_that_hold(groups: Sequence[Group], holds: Holds) -> list[Operator] | None:
    """The layers of the fewest groups from the front with which the target holds; None: not even with all."""
    if holds([]):
        return []
    if not holds(layers_of(groups)):
        return None
    low, high = 0, len(groups)  # `low` groups at 16 bits are too few, `high` are enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(layers_of(groups[:middle])) else (middle, high)
    return layers_of(groups[:high])


def needed(network: Network, layers: Sequence[Operator], holds: Holds) -> list[Operator]:
    """Those of some layers without which the target is missed; the ones with most arithmetic are let go first.

    A layer may go where another one that reads the same tensor stays: each takes it in its own type.
    """
    kept = list(layers)
    for layer in sorted(layers, key=lambda layer: -network.macs(layer))[:TRIED]:
        fewer = [other for other in kept if other is not layer]
        if holds(fewer):
            kept = fewer
    return kept


def layers_of(groups: Sequence[Group]) -> list[Operator]:
    return [layer for group in groups for layer in group.layers]


def _macs(network: Network, group: Group) -> int:
    return sum(map(network.macs, group.layers))


def _start(network: Network, group: Group) -> tuple[int, str]:
    """The last place before a group from which a run can begin."""
    first = network.operators.index(group.layers[0])
    return max(cut for cut in network.cuts if cut[0] <= first)


def _prefix(simulation: Simulation, plan: Plan, wanted: set[str], chosen: Sequence[int]) -> dict[str, list[Tensor]]:
    """The values at the places to begin from, and the output, under a plan; a few evenly spaced steps of each."""
    network, steps = simulation.network, [simulation.steps[step] for step in chosen]
    tokens = network.shapes[network.output][0]
    count = min(len(steps), max(RANKED_STEPS, ceil(RANKED_TOKENS / tokens)))
    (batch,) = batches([steps[index * len(steps) // count] for index in range(count)], count)
    return Execution(network, plan, simulation.ranges, simulation.weights).run(batch, keep=wanted)


def _read_progress(saved: Path, fingerprint: str) -> dict[str, float]:
    if not saved.is_file():
        return {}
    try:
        stored = read_json(saved)
        return dict(stored["rounding"]) if stored["fingerprint"] == fingerprint else {}
    except (InputError, KeyError, TypeError, ValueError):  # half a file of an older version: begin anew
        return {}
