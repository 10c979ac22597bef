"""Integer arithmetic as the NPU does it: codes, S8 weights, and products of both with exact sums.

The rules are the compiler's (docs/quantization.md): activations per tensor, MinMax widened to include 0; weights S8,
symmetric, one scale per output channel; operands of a product of two activations symmetric. Rounding is half to even.
Scales and zero points equal those of 95 small real builds to the bit or two (tests/quantization/test_oracles.py).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16}
INT8_OFFSET = 128  # takes an unsigned byte to int8 and back
SMALLEST_RANGE = 1e-30  # narrower than this counts as all zeros


@dataclass(frozen=True)
class Scale:
    """How a tensor's values become codes: code = clip(round(x / step) + zero, low, high).

    Attributes:
        step: the value of one code.
        zero: the code of 0.
        low, high: the smallest and the largest code.
    """

    step: float
    zero: int
    low: int
    high: int

    @classmethod
    def affine(cls, minimum: float, maximum: float, bits: int) -> "Scale":
        """All codes over a range that includes 0."""
        minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
        levels = 2**bits - 1
        # As the compiler writes it: the step in float32, and the zero point from that, not from the exact step.
        step = float(np.float32((maximum - minimum) / levels)) if maximum - minimum > SMALLEST_RANGE else 1.0
        return cls(step, round(-minimum / step), 0, levels)

    @classmethod
    def symmetric(cls, minimum: float, maximum: float, bits: int) -> "Scale":
        """Codes of both signs, 0 at the code 0: max|x| lies half a code beyond the largest one."""
        largest, half = max(abs(minimum), abs(maximum)), 2 ** (bits - 1)
        step = float(np.float32(largest) / np.float32(half - 0.5)) if largest > SMALLEST_RANGE else 1.0
        return cls(step, 0, -half, half - 1)

    @classmethod
    def of(cls, minimum: float, maximum: float, data_type: str, operand: bool = False) -> "Scale":
        """The scale of a tensor for an operator's data type.

        Args:
            minimum, maximum: the calibrated range.
            data_type: one of BITS.
            operand: of a product of two activations, which takes symmetric codes.
        """
        make = cls.symmetric if operand or data_type.startswith("S") else cls.affine
        return make(minimum, maximum, BITS[data_type])

    @property
    def wide(self) -> bool:
        """16 bits."""
        return self.high - self.low > 255

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest value that a code stands for."""
        return (self.low - self.zero) * self.step, (self.high - self.zero) * self.step

    def codes(self, values: Tensor) -> Tensor:
        """Codes as whole numbers in float32, which holds 16 bits exactly. Infinities saturate, NaN becomes 0."""
        codes = torch.div(values, self.step).round_().add_(self.zero).clamp_(self.low, self.high)
        return codes.nan_to_num_(nan=float(self.zero))

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for, float32."""
        return codes.sub(self.zero).mul_(self.step)

    def rounded(self, values: Tensor) -> Tensor:
        """Values after a way through the codes."""
        return self.codes(values).sub_(self.zero).mul_(self.step)


@dataclass(frozen=True)
class Weight:
    """A Gemm's weight in S8.

    Attributes:
        codes: int8 (out, in).
        steps: float32 (out,).
        sums: int32 (out,), of each row's codes.
    """

    codes: Tensor
    steps: Tensor
    sums: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Weight":
        """Quantises float32 (out, in), one scale per output channel, in float32 as the compiler does.

        Weights of 16 bits often lie half-way between two codes: there float64 would decide otherwise.
        """
        largest = values.abs().amax(1)
        steps = torch.where(largest > SMALLEST_RANGE, largest / 127.5, 1.0)
        codes = (values / steps[:, None]).round_().clamp_(-128, 127).to(torch.int8)
        return cls(codes, steps, codes.sum(1, dtype=torch.int32))

    @property
    def values(self) -> Tensor:
        """float32 (out, in), as the codes stand for."""
        return self.codes.float().mul_(self.steps[:, None])


def linear(values: Tensor, scale: Scale, weight: Weight, bias: Tensor | None) -> Tensor:
    """A Gemm of integer products: the sums are exact, one float multiplication and the float bias follow.

    Args:
        values: float32 (rows, in); they are quantised with `scale`.
        scale: of the activations.
        weight: in S8.
        bias: float32 (out,) or None.

    Returns:
        float32 (rows, out).
    """
    codes = scale.codes(values).sub_(scale.low)  # unsigned, with its zero point moved along
    zero = scale.zero - scale.low
    if scale.wide:
        codes = codes.to(torch.int32)
        high, low = (codes >> 8) - INT8_OFFSET, (codes & 255) - INT8_OFFSET
        sums = (
            product(high.to(torch.int8), weight.codes)
            .double()
            .mul_(256)
            .add_(product(low.to(torch.int8), weight.codes))
        )
        sums.add_((257 * INT8_OFFSET - zero) * weight.sums.double())
    else:
        sums = product(codes.sub_(INT8_OFFSET).to(torch.int8), weight.codes)
        sums.add_((INT8_OFFSET - zero) * weight.sums)
    result = sums.float().mul_(weight.steps.mul(scale.step))
    return result if bias is None else result.add_(bias)


def product(left: Tensor, right: Tensor) -> Tensor:
    """int8 (rows, in) times int8 (out, in) transposed, int32 (rows, out), exact."""
    return torch._int_mm(left, right.t())


def matmul(left: Tensor, right: Tensor, scales: tuple[Scale, Scale]) -> Tensor:
    """A batched product of two activations with symmetric codes.

    float32 sums of 8-bit codes are exact up to 1024 terms; of 16-bit codes they carry float32's rounding.
    """
    codes = scales[0].codes(left) @ scales[1].codes(right)
    return codes.mul_(scales[0].step * scales[1].step)
