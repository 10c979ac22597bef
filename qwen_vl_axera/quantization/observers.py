"""The range of every tensor over the calibration samples: MinMax, as the compiler is configured to take it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.quantization.execution import Execution, Watch, WeightStore, batches
from qwen_vl_axera.quantization.network import Network
from qwen_vl_axera.quantization.samples import CalibrationSamples


@dataclass
class Ranges:
    """Smallest and largest value of each group of tensors that share a scale.

    Attributes:
        limits: representative of `Network.range_group` -> (minimum, maximum).
    """

    network: Network
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)

    def observe(self, tensor: str, values: Sequence[torch.Tensor]) -> None:
        """Widens a tensor's range by the values of some steps.

        Raises:
            InputError: they hold NaN or infinities.
        """
        group = self.network.range_group[tensor]
        low, high = self.limits.get(group, (np.inf, -np.inf))
        for step in values:
            smallest, largest = (float(value) for value in torch.aminmax(step))
            if not np.isfinite((smallest, largest)).all():
                raise InputError(
                    f"{tensor} reaches {smallest:g} to {largest:g} on a calibration sample: no range can be taken; "
                    "look for broken samples or weights"
                )
            low, high = min(low, smallest), max(high, largest)
        self.limits[group] = low, high

    def of(self, tensor: str) -> tuple[float, float]:
        """The range that a tensor shares with those that only move its values."""
        return self.limits[self.network.range_group[tensor]]


def calibrate(
    network: Network,
    samples: Sequence[np.ndarray] | CalibrationSamples,
    watch: Watch | None = None,
    weights: WeightStore | None = None,
    constants: str | None = None,
) -> Ranges:
    """Runs the network over the calibration samples: activations in float, weights as they will be.

    The compiler quantises parameters before it takes ranges.

    Args:
        network: the graph.
        samples: float32 (1, 3, S, 392) each.
        watch: also sees every tensor.
        weights: in S8; None: in float.
        constants: data type of the constants of Add, Mul, Sub and Div; None: in float. How the compiler stores those of
            16-bit operators is not known; at 16 bits they are as good as float.

    Raises:
        InputError: NaN or infinities on the way.
    """
    ranges = Ranges(network)
    execution = Execution(network, weights=weights, constants=constants)

    def observe(tensor: str, values: Sequence[torch.Tensor]) -> None:
        ranges.observe(tensor, values)
        if watch:
            watch(tensor, values)

    with progress.stage("calibration", len(samples), unit="sample") as stage:
        for batch in batches(samples):
            ranges.observe(network.input, batch)
            execution.run(batch, watch=observe)
            stage.advance(len(batch))
    return ranges
