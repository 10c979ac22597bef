"""The largest share of 8-bit arithmetic whose loss stays within a target: which layers go back to 16 bits.

It starts from every linear layer (Gemm) at 8 bits and all else at 16: operator types are the selectors that are known
to work, and Gemm nodes keep their names. Layers are ranked by what each alone costs a token when everything else has
16 bits, per multiply-accumulate, and put back from the top until the target holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json, write_json
from qwen_vl_axera.quantization.execution import BATCH, Execution, batches
from qwen_vl_axera.quantization.losses import damage
from qwen_vl_axera.quantization.network import Network, Operator
from qwen_vl_axera.quantization.plan import EVERY_TENSOR, Plan, uniform
from qwen_vl_axera.quantization.simulation import Simulation

TARGET_LOSS = 0.005
PROGRESS_FILE = "quantization_search.json"
STEPS = BATCH  # frames' steps that layers are ranked on; the result is judged on all


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


def rank(simulation: Simulation, saved: Path, fingerprint: str) -> list[tuple[Group, float]]:
    """What each group alone costs at 8 bits, the most harmful per multiply-accumulate first.

    What is found is saved group by group, so that an interrupted search goes on.

    Args:
        simulation: a calibrated network with frames.
        saved: a file for the progress.
        fingerprint: of everything that the figures depend on; those of another one are not taken over.
    """
    network = simulation.network
    known = _read_progress(saved, fingerprint)
    steps, reference = simulation.steps[:STEPS], simulation.reference[:STEPS]
    groups = gemm_groups(network)
    starts = {group: _start(network, group) for group in groups}
    prefix: dict[str, list[Tensor]] = {}
    wide = uniform(network, "U16")
    with progress.stage("search", len(groups), unit="layer group") as stage:
        for group in groups:
            key = group.names[0]
            if key not in known:
                if not prefix:
                    prefix, nothing = _prefix(simulation, wide, steps, {name for _, name in starts.values()})
                    base = damage(reference, nothing)
                index, tensor = starts[group]
                plan = Plan(wide.types | dict.fromkeys(group.names, "U8"))
                execution = Execution(network, plan, simulation.ranges, simulation.weights)
                made = execution.run(prefix[tensor], start=index, tensor=tensor)[network.output]
                known[key] = damage(reference, made) - base
                write_json(saved, {"fingerprint": fingerprint, "damage": known})
            stage.advance()
    cost = {group: known[group.names[0]] / sum(map(network.macs, group.layers)) for group in groups}
    return [(group, known[group.names[0]]) for group in sorted(groups, key=lambda group: -cost[group])]


def search(simulation: Simulation, floor: Sequence[Tensor], target: float, saved: Path, fingerprint: str) -> Outcome:
    """Finds the mix.

    Args:
        simulation: a calibrated network with frames.
        floor: the tokens with S8 weights alone, one tensor for each step.
        target: how much more of a token may be lost than that.
        saved, fingerprint: see `rank`.
    """
    network = simulation.network
    ranked = rank(simulation, saved, fingerprint)
    limit = damage(simulation.reference, floor) + target

    def holds(count: int) -> bool:
        wide = _names(network, ranked[:count])
        return (
            damage(simulation.reference, simulation.run(mixed_plan(network, wide), f"{count} groups wide").tokens)
            <= limit
        )

    low, high = 0, len(ranked)
    reached = True
    if holds(0):
        high = 0
    elif not holds(high):
        reached = False
    else:
        while high - low > 1:  # `low` groups at 16 bits are too few, `high` are enough
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
    wide = _names(network, ranked[:high])
    sensitivity = [
        {"layers": group.names, "damage": cost, "macs": sum(map(network.macs, group.layers))} for group, cost in ranked
    ]
    return Outcome(mixed_layer_configs(wide), mixed_plan(network, wide), wide, reached, sensitivity)


def _names(network: Network, ranked: Sequence[tuple[Group, float]]) -> list[str]:
    """The layers of some groups, in the graph's order."""
    chosen = {name for group, _ in ranked for name in group.names}
    return [operator.name for operator in network.operators if operator.name in chosen]


def _start(network: Network, group: Group) -> tuple[int, str]:
    """The last place before a group from which a run can begin."""
    first = network.operators.index(group.layers[0])
    return max(cut for cut in network.cuts if cut[0] <= first)


def _prefix(
    simulation: Simulation, plan: Plan, steps: Sequence, wanted: set[str]
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """The values at the places to begin from, and the output, with everything at 16 bits."""
    (batch,) = batches(steps, len(steps))
    execution = Execution(simulation.network, plan, simulation.ranges, simulation.weights)
    found = execution.run(batch, keep=wanted)
    return found, found[simulation.network.output]


def _read_progress(saved: Path, fingerprint: str) -> dict[str, float]:
    if not saved.is_file():
        return {}
    try:
        stored = read_json(saved)
        return dict(stored["damage"]) if stored["fingerprint"] == fingerprint else {}
    except (InputError, KeyError, TypeError, ValueError):  # half a file of an older version: begin anew
        return {}
