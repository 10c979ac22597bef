"""The tower under a plan, against the same tower in float on the same frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen_vl_axera import progress
from qwen_vl_axera.quantization.execution import Execution, Watch, WeightStore, batches
from qwen_vl_axera.quantization.losses import figures, token_cosines
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.observers import Ranges
from qwen_vl_axera.quantization.plan import Plan

BYTES = {8: 1, 16: 2, 32: 4}
COSINE_DIGITS = 6  # of single tokens, which the report draws


@dataclass
class Result:
    """One plan's outcome.

    Attributes:
        tokens: float32 (S/4, out_hidden) for each step.
        blocks: what each block hands on: cosines to the float network.
        clipped: tensor -> share of its values beyond the calibrated range; those with any.
        clipped_share: of all values that were quantised.
    """

    tokens: list[Tensor]
    blocks: list[dict[str, float]] = field(default_factory=list)
    clipped: dict[str, float] = field(default_factory=dict)
    clipped_share: float = 0.0


class Simulation:
    """A calibrated network and the frames that it is judged on.

    Args:
        network: the graph.
        ranges: from `observers.calibrate`.
        steps: graph inputs, float32 (1, 3, S, 392) each.
        watch: sees every tensor of the float run.
        weights: those that ranges were taken with; None: quantised anew.

    Attributes:
        reference: the float network's tokens, float32 (S/4, out_hidden) for each step.
    """

    def __init__(
        self,
        network: Network,
        ranges: Ranges,
        steps: Sequence[np.ndarray],
        watch: Watch | None = None,
        weights: WeightStore | None = None,
    ):
        self.network, self.ranges, self.steps = network, ranges, list(steps)
        self.weights = weights or WeightStore(network)
        self._blocks: list[dict[str, list[Tensor]]] = []  # of the float run, for each batch
        self.reference: list[Tensor] = []
        keep = set(network.block_outputs.values())
        with progress.stage("float reference", len(self.steps), unit="step") as stage:
            for batch in batches(self.steps):
                found = Execution(network).run(batch, keep=keep, watch=watch)
                self.reference += found.pop(network.output)
                self._blocks.append(found)
                stage.advance(len(batch))

    def run(self, plan: Plan | None, name: str = "simulation") -> Result:
        """Simulates a plan; None: the weights in S8 and nothing else, which is the floor."""
        execution = Execution(self.network, plan, self.ranges, self.weights)
        outputs = self.network.block_outputs
        result, sums = Result([]), {block: [] for block in outputs}
        with progress.stage(name, len(self.steps), unit="step") as stage:
            for batch, reference in zip(batches(self.steps), self._blocks, strict=True):
                found = execution.run(batch, keep=set(outputs.values()))
                result.tokens += found[self.network.output]
                for block, tensor in outputs.items():
                    sums[block] += [figures(*pair) for pair in zip(reference[tensor], found[tensor], strict=True)]
                stage.advance(len(batch))
        result.blocks = [
            {"block": block} | {key: float(np.mean([step[key] for step in steps])) for key in steps[0]}
            for block, steps in sums.items()
        ]
        result.clipped = {name: beyond / total for name, (beyond, total) in execution.clipped.items() if beyond}
        counts = np.array(list(execution.clipped.values()) or [(0, 1)]).sum(0)
        result.clipped_share = float(counts[0] / counts[1])
        return result

    def tokens(self, plan: Plan | None, steps: Sequence[int], name: str = "simulation") -> list[Tensor]:
        """Simulates a plan over some of the steps: their tokens and nothing else."""
        execution = Execution(self.network, plan, self.ranges, self.weights)
        found: list[Tensor] = []
        with progress.stage(name, len(steps), unit="step") as stage:
            for batch in batches([self.steps[step] for step in steps]):
                found += execution.run(batch)[self.network.output]
                stage.advance(len(batch))
        return found

    def setting(self, name: str, plan: Plan | None, config: list[dict] | None) -> tuple[dict[str, Any], Result]:
        """Simulates a plan: its entry in `quantization.json`, and the outcome."""
        result = self.run(plan, name)
        worst = sorted(result.clipped.items(), key=lambda item: -item[1])[:5]
        entry = {
            "name": name,
            "config": config,
            "mac8": mac8(self.network, plan) if plan else None,
            "border_bytes": border_bytes(self.network, plan) if plan else None,
            **figures(torch.cat(self.reference), torch.cat(result.tokens)),
            "clipped": {"share": result.clipped_share, "worst": dict(worst)},
            "steps": [self._step(*pair) for pair in zip(self.reference, result.tokens, strict=True)],
            "blocks": result.blocks,
            "notes": list(plan.notes) if plan else [],
        }
        return entry, result

    @staticmethod
    def _step(reference: Tensor, tokens: Tensor) -> dict[str, Any]:
        cosines = token_cosines(reference, tokens).tolist()
        return figures(reference, tokens) | {"token_cosines": [round(cosine, COSINE_DIGITS) for cosine in cosines]}


def mac8(network: Network, plan: Plan) -> float:
    """The share of multiply-accumulates whose activations have 8 bits."""
    products = [operator for operator in network.operators if network.macs(operator)]
    eight = sum(network.macs(operator) for operator in products if plan.bits(operator) == 8)
    return eight / sum(map(network.macs, products))


def border_bytes(network: Network, plan: Plan) -> int:
    """Bytes of one step that an operator writes in another width than it computes in, for what consumes them."""
    total = 0
    for tensor, producer in network.producers.items():
        if producer.passive:
            continue
        widths = {plan.bits(consumer) for consumer in network.consumers(tensor)}
        total += sum(BYTES[width] for width in widths - {plan.bits(producer)}) * network.elements(tensor)
    return total
