"""The fused reconstruction of csrc/cuda under the emulator, tensor cores included."""

import math

import pytest
import torch

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# What bfloat16 slices of both factors lose of each product: 2 slices for 16-bit weights, 3 else.
SLICED = {torch.bfloat16: 2.0**-16, torch.float16: 2.0**-16, torch.float32: 2.0**-23}


def reconstruct(emu, left, right, weight, out, exponent=None, selected=None):
    count, rows, cols = weight.shape
    residual2 = torch.full((count, 2), -5.0, dtype=torch.float64)
    index = None if selected is None else torch.tensor(selected, dtype=torch.int32)
    wide = int(left.dtype == torch.float64)
    shape = (count, rows, cols, weight.stride(0), weight.stride(1))
    emu.call(
        "emu_reconstruct",
        *(left, right, wide, left.shape[2], exponent, weight, out, DTYPES[weight.dtype], *shape),
        *(index, len(selected or range(count)), residual2),
    )
    unit = 1.0 if exponent is None else 2.0 ** exponent.double()[:, None]
    return residual2.sqrt() * unit


def problem(count, rows, cols, rank, dtype, wide=False):
    generator = torch.Generator().manual_seed(rows * cols + rank)
    working = torch.float64 if wide else torch.float32
    left, right = (torch.randn(count, n, rank, generator=generator, dtype=working) for n in (rows, cols))
    noise = torch.randn(count, rows, cols, generator=generator, dtype=torch.float64)
    weight = (left.double() @ right.double().mT + 0.1 * noise).to(dtype)
    return left, right, weight


def check(left, right, weight, out, norms, scale=1.0):
    exact = left.double() @ right.double().mT * scale
    size = left.double().abs() @ right.double().abs().mT * scale
    relative = SLICED.get(weight.dtype, 2.0**-52) if left.dtype == torch.float32 else 2.0**-52
    eps = torch.finfo(weight.dtype).eps
    # products: slices and float32 (float64) sums; then one rounding
    bound = size * (2 * relative + left.shape[2] * torch.finfo(left.dtype).eps) + exact.abs() * eps / 2
    tiny = torch.finfo(weight.dtype).smallest_normal
    assert ((out.double() - exact).abs() <= bound * 1.01 + tiny).all()
    rounded = torch.linalg.matrix_norm(weight.double() - out.double())
    assert torch.allclose(norms[:, 1], rounded, rtol=1e-6)
    unrounded = torch.linalg.matrix_norm(weight.double() - exact)
    slack = torch.linalg.matrix_norm(bound)
    assert ((norms[:, 0] - unrounded).abs() <= slack).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 131, 3), (1, 140, 130, 50), (2, 33, 7, 33)], ids=str)
def test_products_and_residuals(emu, shape, dtype):
    wide = dtype == torch.float64
    left, right, weight = problem(*shape, dtype, wide)
    out = torch.full_like(weight, math.nan)
    check(left, right, weight, out, reconstruct(emu, left, right, weight, out))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float64_factors(emu, dtype):
    left, right, weight = problem(2, 40, 35, 6, dtype, wide=True)
    out = torch.full_like(weight, math.nan)
    check(left, right, weight, out, reconstruct(emu, left, right, weight, out))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_place_strided_scaled_and_selected(emu, dtype):
    left, right, weight = problem(3, 37, 50, 9, torch.float64)
    scale = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)[:, None, None]
    storage = torch.zeros(3, 45, 61, dtype=dtype)
    view = storage[:, 4:41, 5:55]
    view.copy_(weight * scale)
    before = storage.clone()
    exponent = torch.tensor([2, 0, -1], dtype=torch.int32)
    norms = reconstruct(emu, left, right, view, view, exponent, [0, 2])
    for b in (0, 2):
        one = slice(b, b + 1)
        check(left[one], right[one], before[one, 4:41, 5:55], view[one], norms[one], scale[b].item())
    assert torch.equal(storage[1], before[1])
    storage[:, 4:41, 5:55] = before[:, 4:41, 5:55]
    assert torch.equal(storage, before)  # nothing around the view was written


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_nan_in_one_matrix_stays_there(emu, whole, wide):
    """Also where its first and its last numbers are NaN."""
    left, right, weight = problem(3, 20, 20, 4, torch.bfloat16, wide)
    if whole:
        left[1], right[1] = math.nan, math.nan
    else:
        left[1, 3, 2] = math.inf
    out = torch.full_like(weight, math.nan)
    norms = reconstruct(emu, left, right, weight, out)
    for b in (0, 2):
        one = slice(b, b + 1)
        check(left[one], right[one], weight[one], out[one], norms[one])
    assert not norms[1].isfinite().all()


def test_float64_weights_are_measured_in_float64_whatever_the_factors(emu):
    left, right, _ = problem(2, 40, 35, 6, torch.float64)
    weight = left.double() @ right.double().mT  # what is left is rounding of float32
    out = torch.full_like(weight, math.nan)
    check(left, right, weight, out, reconstruct(emu, left, right, weight, out))


@pytest.mark.parametrize("exponent", [600, -600])
def test_squares_of_float64_differences_stay_in_range(emu, exponent):
    left, right, weight = problem(2, 40, 35, 6, torch.float64, wide=True)
    out = torch.full_like(weight, math.nan)
    norms = reconstruct(emu, left, right, weight * 2.0**exponent, out, torch.full((2,), exponent, dtype=torch.int32))
    check(left, right, weight, out * 2.0**-exponent, norms * 2.0**-exponent)


def test_a_lost_barrier_is_noticed(emu):
    left, right, weight = problem(1, 140, 130, 50, torch.bfloat16)
    out = torch.zeros_like(weight)
    emu.drop_barriers(True)
    norms = reconstruct(emu, left, right, weight, out)
    with pytest.raises(AssertionError):
        check(left, right, weight, out, norms)
