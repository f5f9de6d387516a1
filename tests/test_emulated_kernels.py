"""The elementwise and reducing kernels of csrc/cuda under the emulator, against float64."""

import math

import pytest
import torch

L = torch.ops.laser_kernels
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def selection(*matrices):
    return torch.tensor(matrices, dtype=torch.int32), len(matrices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 37, 129), (2, 16, 64), (2, 5, 1)])
def test_prepare_sums_in_float64_and_finds_the_largest(emu, shape, dtype):
    a = torch.randn(shape, dtype=torch.float64).to(dtype)
    out = torch.zeros(shape[0], 3, dtype=torch.float64)
    emu.call("emu_prepare", a, DTYPES[dtype], *shape, shape[1] * shape[2], shape[2], 0, out)
    exact = a.double().square().sum((1, 2))
    assert ((out[:, 0] - exact).abs() <= 1e-13 * exact).all()
    assert (out[:, 1] == a.double().abs().amax((1, 2))).all() and (out[:, 2] == 0).all()


def test_prepare_takes_strided_rows_and_extreme_sizes(emu):
    a = torch.randn(2, 20, 50, dtype=torch.float64)[:, :, 3:40]
    a[1] *= 2.0**600  # its squares overflow a double
    out = torch.zeros(2, 3, dtype=torch.float64)
    emu.call("emu_prepare", a, 1, 2, 20, 37, a.stride(0), a.stride(1), 1, out)
    assert out[0, 2] == 0 and out[1, 2] == math.frexp(a[1].abs().max())[1] - 1
    exact = (a[1] * 2.0 ** -out[1, 2].item()).square().sum()
    assert abs(out[1, 0] - exact) <= 1e-13 * exact


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_prepare_loses_no_nan_and_keeps_its_neighbours(emu, bad):
    a = torch.randn(3, 19, 70)
    a[1, 18, 69] = bad
    out = torch.zeros(3, 3, dtype=torch.float64)
    emu.call("emu_prepare", a, 0, 3, 19, 70, 19 * 70, 70, 0, out)
    assert [math.isfinite(x) for x in out[:, 1]] == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_load_scales_by_a_power_of_two_and_cuts_into_slices(emu, dtype):
    a = torch.randn(2, 9, 33, dtype=torch.float64).to(dtype)
    slices = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3, torch.float64: 1}[dtype]
    out, cut = torch.zeros(2, 9, 33, dtype=torch.float64), torch.zeros(slices, 2, 9, 33, dtype=torch.bfloat16)
    emu.call("emu_load", a, DTYPES[dtype], 2, 9, 33, 9 * 33, 33, 5, out, slices, cut)
    assert torch.equal(out, a.double() / 32)
    assert torch.equal(cut[0], (a.float() / 32).to(torch.bfloat16))
    if dtype != torch.float64:
        assert torch.equal(cut.double().sum(0), out)


@pytest.mark.parametrize("count, n, cols", [(1, 1, 1), (3, 35, 9), (300, 5, 4)])
def test_sketch_has_the_bits_of_the_cpu(emu, count, n, cols):
    keys = torch.arange(count) * 7919 + 2**40
    q = torch.zeros(count, n, cols)
    emu.call("emu_sketch", q, count, n, cols, 11, keys)
    assert torch.equal(q, L.sketch(torch.zeros(count, n + 1, n), cols, 11, keys.tolist()))


def test_three_slices_hold_a_float32_and_one_is_its_rounding(emu):
    x = torch.randn(2, 17, 40) * torch.logspace(-6, 6, 40)
    out = torch.zeros(3, 2, 17, 40, dtype=torch.bfloat16)
    emu.call("emu_slice", x, 2, 17, 40, 3, out)
    assert torch.equal(out[0], x.to(torch.bfloat16))
    assert torch.equal(out.double().sum(0), x.double())


@pytest.mark.parametrize("n", [1, 31, 33, 70])
def test_mirror_copies_the_lower_half_of_selected_matrices(emu, n):
    g = torch.randn(3, n, n, dtype=torch.float64)
    expected = g.clone()
    for b in (0, 2):
        expected[b] = g[b].tril() + g[b].tril(-1).mT
    emu.call("emu_mirror", g, 3, n, *selection(0, 2))
    assert torch.equal(g, expected)


def test_mirror_needs_its_barrier(emu):
    g = torch.randn(1, 70, 70, dtype=torch.float64)
    expected = g.tril() + g.tril(-1).mT
    emu.drop_barriers(True)
    emu.call("emu_mirror", g, 1, 70, None, 1)
    assert not torch.equal(g, expected)


@pytest.mark.parametrize("factor", [1, 2])
def test_chebyshev_is_the_recurrence_or_the_power(emu, factor):
    x, z, out = (torch.randn(3, 40, 33, dtype=torch.float64) for _ in range(3))
    slope = torch.tensor([2.7, 0.6, 0.0], dtype=torch.float64)
    before = out.clone()
    emu.call("emu_chebyshev", x, z, out, 3, 40, 33, slope, factor, *selection(0, 2))
    shifted = slope[0] * x[0] - z[0]
    torch.testing.assert_close(out[0], shifted if factor == 1 else 2 * shifted - before[0], rtol=1e-14, atol=1e-14)
    assert torch.equal(out[1], before[1]) and torch.equal(out[2], x[2])


@pytest.mark.parametrize("rows, cols", [(1, 1), (300, 33), (520, 5)])
def test_column_sums_are_float64(emu, rows, cols):
    x, z = torch.randn(3, rows, cols), torch.randn(3, rows, cols)
    theta = torch.randn(3, cols, dtype=torch.float64)
    out, product = torch.full((3, cols), -1.0, dtype=torch.float64), torch.full((3,), -1.0, dtype=torch.float64)
    emu.call("emu_ritz_residuals", x, z, theta, out, 3, rows, cols, *selection(1, 2))
    emu.call("emu_dot", x, z, product, 3, rows, cols, *selection(1, 2))
    exact = (x.double() - theta[:, None] * z.double()).square().sum(1)
    torch.testing.assert_close(out[1:], exact[1:], rtol=1e-13, atol=0)
    exact = (x.double() * z.double()).sum((1, 2))
    torch.testing.assert_close(product[1:], exact[1:], rtol=0, atol=1e-13 * rows * cols)
    assert (out[0] == -1).all() and product[0] == -1


@pytest.mark.parametrize("rows, cols", [(1, 1), (64, 32), (300, 32), (131, 45)])
def test_recurrence_and_its_moments(emu, rows, cols):
    before, now, product = (torch.randn(3, rows, cols) for _ in range(3))
    following, sums = product.clone(), torch.full((2, 3), -1.0, dtype=torch.float64)
    emu.call("emu_recurrence", before, now, following, sums, 3, rows, cols, *selection(0, 2))
    assert torch.equal(following[1], product[1]) and (sums[:, 1] == -1).all()
    for b in (0, 2):
        assert torch.equal(following[b], 2 * product[b] - before[b])
        exact = now[b].double().square().sum(), (now[b].double() * following[b].double()).sum()
        torch.testing.assert_close(sums[:, b], torch.stack(exact), rtol=0, atol=1e-13 * rows * cols)


def test_diagonal_tells_rounding_from_more_and_orders_sigma(emu):
    m = torch.diag_embed(torch.tensor([[4.0, -2.0, 2.0000002], [4.0, 2.0, 1.0], [1.0, math.nan, 1.0]]))
    assert m[0, 2, 2] > 2
    m[0, 0, 2] = 1e-7
    m[1, 2, 0] = 1e-3
    u = torch.randn(3, 50, 3)
    expected = u.clone()
    expected[0, :, 1] *= -1
    sigma, flags = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.int32)
    emu.call("emu_diagonal", m, u, 3, 3, 50, sigma, flags)
    assert flags.tolist() == [1, 0, 0]
    assert sigma[0].tolist() == [4.0, 2.0, 2.0] and torch.equal(u, expected)


def test_column_signs_look_at_the_first_of_the_largest(emu):
    u = torch.randn(2, 45, 35)
    u[0, 3, 0], u[0, 11, 0] = -9.0, 9.0
    u[0, 4, 1], u[0, 2, 1] = -9.0, 9.0
    sign = torch.zeros(2, 35, dtype=torch.float64)
    emu.call("emu_column_signs", u, sign, 2, 45, 35)
    largest = u.gather(1, u.abs().argmax(1, keepdim=True)).squeeze(1)
    assert sign[0, 0] == -1 and sign[0, 1] == 1
    assert torch.equal(sign[1], largest[1].sign().double())


def judged(emu):
    """Rows of the host and of the device for the same four steps: certified, running, running, NaN."""
    count, rank, block, n = 4, 70, 101, 200
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(count, block, dtype=torch.float64, generator=generator).sort(descending=True).values
    residual2 = torch.rand(count, block, dtype=torch.float64, generator=generator)
    residual2 *= torch.tensor([1e-12, 1e-2, 1e-2, 1.0])[:, None]
    residual2[3, 5] = math.nan
    out = torch.zeros(2, count, 6, dtype=torch.float64)
    emu.call("emu_judge", theta, residual2, theta.sum(1) + 5, count, rank, block, n, 1e-3, out)
    return out


def test_the_device_judges_as_the_host_does(emu):
    host, device = judged(emu)
    torch.testing.assert_close(device, host, rtol=1e-12, atol=0, equal_nan=True)
    assert host[:, 5].tolist() == [0, 5, 5, 3]


def test_judging_needs_its_barriers(emu):
    emu.drop_barriers(True)
    host, device = judged(emu)
    assert not torch.allclose(device, host, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prepare_reads_what_aligned_rows_end_with(emu, dtype):
    a = torch.randn(2, 20, 64, dtype=torch.float64).to(dtype)[:, :, :61]  # rows begin on 16 bytes and end anywhere
    a[:, :, 60] = 10  # the last number of every row
    out = torch.zeros(2, 3, dtype=torch.float64)
    emu.call("emu_prepare", a, DTYPES[dtype], 2, 20, 61, a.stride(0), a.stride(1), 0, out)
    exact = a.double().square().sum((1, 2))
    assert ((out[:, 0] - exact).abs() <= 1e-13 * exact).all() and (out[:, 1] == 10).all()
