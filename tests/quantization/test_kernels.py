"""kernels.py: codes by hand, and integer products against float64."""

import numpy as np
import pytest
import torch

from qwen_vl_axera.quantization.kernels import Scale, Weight, linear, matmul, product

EXACT = 2e-7  # of the largest value: one float32 rounding of an exact sum


@pytest.mark.parametrize(
    ("limits", "data_type", "step", "zero"),
    [
        ((-1.0, 3.0), "U8", 4 / 255, 64),
        ((2.0, 255.0), "U8", 1.0, 0),  # widened to include 0
        ((-5.0, -1.0), "U8", 5 / 255, 255),
        ((-1.0, 3.0), "U16", 4 / 65535, 16384),
        ((0.0, 0.0), "U8", 1.0, 0),
    ],
)
def test_activations_use_all_codes_of_a_range_with_zero(limits, data_type, step, zero):
    scale = Scale.of(*limits, data_type)
    assert (scale.step, scale.zero, scale.low) == (pytest.approx(step), zero, 0)
    assert scale.high == {"U8": 255, "U16": 65535}[data_type]


@pytest.mark.parametrize(("data_type", "half"), [("U8", 127.5), ("U16", 32767.5)])
def test_operands_of_a_product_are_symmetric(data_type, half):
    scale = Scale.of(-0.2, 1.0, data_type, operand=True)
    assert (scale.step, scale.zero) == (pytest.approx(1 / half), 0)
    assert scale.codes(torch.tensor([2.0, -2.0])).tolist() == [half - 0.5, -half - 0.5]


def test_rounding_is_half_to_even_and_beyond_the_range_saturates():
    scale = Scale.of(0.0, 255.0, "U8")
    given = torch.tensor([0.5, 1.5, 2.5, 300.0, -1.0, torch.inf, torch.nan])
    assert scale.codes(given).tolist() == [0, 2, 2, 255, 0, 255, 0]


def test_weights_have_a_scale_for_each_output_channel():
    values = torch.tensor([[127.5, 0.5, 1.5, -127.5], [1.275, 0.005, -0.015, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weight = Weight.of(values)
    assert weight.codes[0].tolist() == [127, 0, 2, -128]  # the largest itself is half a code beyond
    assert weight.steps.tolist() == pytest.approx([1.0, 0.01, 1.0])
    assert weight.codes[2].tolist() == [0, 0, 0, 0]
    assert weight.sums.tolist() == [codes.sum() for codes in weight.codes.numpy().astype(int)]


def test_products_of_the_largest_codes_are_exact():
    left = torch.full((3, 5120), -128, dtype=torch.int8)
    right = torch.full((17, 5120), -128, dtype=torch.int8)
    right[::2] = 127
    exact = left.numpy().astype(np.int64) @ right.numpy().astype(np.int64).T
    assert np.array_equal(product(left, right).numpy(), exact)


@pytest.mark.parametrize("data_type", ["U8", "U16", "S8", "S16"])
@pytest.mark.parametrize("shape", [(1, 7, 3), (37, 256, 96), (484, 1176, 128)])
def test_a_gemm_is_the_float64_product_of_its_codes(data_type, shape):
    rows, inner, outer = shape
    random = np.random.default_rng(rows)
    values = torch.from_numpy(random.normal(0.3, 1, (rows, inner)).astype(np.float32))
    weight = Weight.of(torch.from_numpy(random.normal(0, 0.1, (outer, inner)).astype(np.float32)))
    bias = torch.from_numpy(random.normal(size=outer).astype(np.float32))
    scale = Scale.of(-2.0, 2.5, data_type)  # some values saturate
    codes = scale.codes(values).double().numpy()
    expected = (codes - scale.zero) * scale.step @ (weight.codes.numpy() * weight.steps.double().numpy()[:, None]).T
    expected += bias.double().numpy()
    made = linear(values, scale, weight, bias).double().numpy()
    assert np.abs(made - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize("data_type", ["U8", "U16"])
def test_a_product_of_activations_is_that_of_its_codes(data_type):
    random = np.random.default_rng(5)
    left, right = (
        torch.from_numpy(random.normal(size=shape).astype(np.float32)) for shape in ((2, 4, 64, 80), (2, 4, 80, 64))
    )
    scales = tuple(Scale.of(-3.0, 3.0, data_type, operand=True) for _ in range(2))
    expected = scales[0].codes(left).double() @ scales[1].codes(right).double() * (scales[0].step * scales[1].step)
    assert float((matmul(left, right, scales) - expected).abs().max() / expected.abs().max()) <= 1e-6
