"""What in a tower's activations is hard to quantise, seen on real frames, and what follows from it.

A scale is shared by a whole tensor, so what matters is how far its largest values stand above the ordinary ones: in
a few channels, in a few tokens, in the input of a down_proj, and in the small entries of a softmax.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_vl_axera.quantization.kernels import Scale
from qwen_vl_axera.quantization.network import Network

MASSIVE = 50.0  # times the median token's largest value: from here on a token is called massive
OUTLIER = 20.0  # times the median channel's largest value, massive tokens left out
SPIKY = 150.0  # a down_proj input's largest value to its root mean square: one 8-bit step is half of the latter
LOST = 0.02  # of a softmax row's mass, on average, from which it is worth 16 bits


class Census:
    """Collects statistics of named tensors while a float network runs (`observe` is an `Execution` watch)."""

    def __init__(self, network: Network):
        self.network = network
        self._blocks = {name: block for block, name in network.block_outputs.items()}
        operators = network.operators
        self._spiky = {o.inputs[0]: o.name for o in operators if o.op_type == "Gemm" and o.name.endswith("down_proj")}
        self._softmax = {o.outputs[0] for o in operators if o.op_type == "Softmax"}
        self.tokens: dict[int, list[Tensor]] = defaultdict(list)  # block -> each token's largest value
        self.channels: dict[int, Tensor] = {}  # block -> each channel's largest value, massive tokens left out
        self.inputs: dict[str, list[tuple[float, float]]] = defaultdict(list)  # Gemm -> largest, root mean square
        self.softmax: dict[str, list[tuple[float, float]]] = defaultdict(list)  # lost mass, share of zeros

    def observe(self, tensor: str, steps: Sequence[Tensor]) -> None:
        for values in steps:
            if tensor in self._blocks:
                self._observe_block(self._blocks[tensor], values)
            elif tensor in self._spiky:
                self.inputs[self._spiky[tensor]].append(
                    (float(values.abs().max()), float(values.square().mean().sqrt()))
                )
            elif tensor in self._softmax:
                self.softmax[tensor].append(softmax_lost(values))

    def _observe_block(self, block: int, values: Tensor) -> None:
        sizes = values.abs()
        largest = sizes.amax(1)
        self.tokens[block].append(largest)
        ordinary = sizes[largest <= MASSIVE * largest.median()]
        channels = ordinary.amax(0)
        self.channels[block] = torch.maximum(self.channels[block], channels) if block in self.channels else channels

    def massive(self) -> list[dict[str, Any]]:
        """Per block: the share of massive tokens, and the largest token's ratio to the median one."""
        found = []
        for block, parts in sorted(self.tokens.items()):
            sizes = torch.cat(parts)
            ratio = sizes / sizes.median()
            found.append(
                {"block": block, "share": float((ratio > MASSIVE).float().mean()), "ratio": float(ratio.max())}
            )
        return found

    def outliers(self) -> list[dict[str, Any]]:
        """Per block: how many channels stand out among ordinary tokens, and the largest one's ratio."""
        found = []
        for block, channels in sorted(self.channels.items()):
            ratio = channels / channels.median()
            found.append({"block": block, "channels": int((ratio > OUTLIER).sum()), "ratio": float(ratio.max())})
        return found

    def spikes(self) -> list[dict[str, Any]]:
        """Each down_proj's input: the largest value to the root mean square, the spikiest first."""
        found = []
        for layer, pairs in self.inputs.items():
            largest, mean = max(pair[0] for pair in pairs), sum(pair[1] for pair in pairs) / len(pairs)
            found.append({"layer": layer, "largest": largest, "ratio": largest / max(mean, 1e-30)})
        return sorted(found, key=lambda entry: -entry["ratio"])

    def lost_mass(self) -> list[dict[str, Any]]:
        """Each softmax at 8 bits: the mass of a row that rounds to zero on average, and the share of such entries."""
        found = []
        for tensor, pairs in self.softmax.items():
            lost, zeros = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
            found.append({"layer": tensor, "lost_mass": lost, "zeros": zeros})
        return sorted(found, key=lambda entry: -entry["lost_mass"])


def softmax_lost(values: Tensor) -> tuple[float, float]:
    """Mass that rounds to zero in S8 codes, as a share of all, and the share of entries that do."""
    zero = values < Scale.symmetric(0.0, float(values.max()), 8).step / 2
    return float(values[zero].sum() / values.sum()), float(zero.float().mean())


def findings(evaluated: Census, calibrated: Census | None = None) -> dict[str, Any]:
    """The census of `quantization.json`: figures, and each finding with the remedy that follows.

    Args:
        evaluated: of the frames that are judged on.
        calibrated: of the calibration samples, to be warned of what they lack.
    """
    massive, outliers, spikes, lost = (
        evaluated.massive(),
        evaluated.outliers(),
        evaluated.spikes(),
        evaluated.lost_mass(),
    )
    notes = []
    with_massive = [entry for entry in massive if entry["share"] > 0]
    if with_massive:
        worst = max(with_massive, key=lambda entry: entry["ratio"])
        last = with_massive[-1]["block"]
        end = f"gone after block {last}" if last < massive[-1]["block"] else "still there at the end"
        notes.append(
            {
                "finding": f"massive tokens: {worst['share']:.1%} of the tokens, up to {worst['ratio']:.0f} times the "
                f"median, first after block {with_massive[0]['block']}, {end}",
                "remedy": "keep the residual stream (Add, norms) at 16 bits; calibrate on frames that have them",
            }
        )
    if calibrated and with_massive:
        theirs = max(entry["ratio"] for entry in calibrated.massive())
        ours = max(entry["ratio"] for entry in massive)
        if theirs < MASSIVE:
            notes.append(
                {
                    "finding": f"the calibration samples hold no massive token (largest ratio {theirs:.0f}), the "
                    f"evaluation frames do ({ours:.0f}): their values will be clipped",
                    "remedy": "add frames like these to the calibration set: get_calib.py --inputs A B ...",
                }
            )
    if any(entry["channels"] for entry in outliers):
        worst = max(outliers, key=lambda entry: entry["ratio"])
        notes.append(
            {
                "finding": f"outlier channels: {worst['channels']} after block {worst['block']}, up to "
                f"{worst['ratio']:.0f} times the median channel",
                "remedy": "keep the residual stream (Add, norms) at 16 bits",
            }
        )
    for entry in (entry for entry in spikes[:3] if entry["ratio"] > SPIKY):
        notes.append(
            {
                "finding": f"spiky input of {entry['layer']}: {entry['largest']:.4g}, {entry['ratio']:.0f} times its "
                "root mean square",
                "remedy": f'layer_names ["{entry["layer"]}"] at U16',
            }
        )
    if lost and lost[0]["lost_mass"] > LOST:
        notes.append(
            {
                "finding": f"softmax at 8 bits: {lost[0]['lost_mass']:.1%} of the mass and {lost[0]['zeros']:.0%} of "
                f"the entries of {lost[0]['layer']} round to zero",
                "remedy": "all at 8 bits shows what that costs; MatMul and Softmax at 16 bits avoid it",
            }
        )
    return {
        "massive_tokens": massive,
        "outlier_channels": outliers,
        "spikes": spikes,
        "softmax": lost,
        "findings": notes,
    }
