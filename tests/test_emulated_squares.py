"""What SPECTRAL adds to LinalgCuda, under the emulator: sums and traces of squares, rounded products, Cholesky inverse
factors by halves. Against float64."""

import pytest
import torch

from laser_kernels.testing import eps, with_spectrum

HALF, PAIR = 1, 2
ROUNDOFF = 2.0**-9  # of bfloat16


def selection(selected, count):
    return None if selected is None else torch.tensor(selected, dtype=torch.int32), len(selected or range(count))


def others(selected, count):
    return [b for b in range(count) if selected is not None and b not in selected]


@pytest.mark.parametrize("selected", [None, [0, 2]])
@pytest.mark.parametrize("n", [1, 33, 70])
def test_affine_add_trace(emu, n, selected):
    x, y = torch.randn(3, n, n), torch.randn(3, n, n)
    scale, shift = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([1.0, 3.0, -0.25]).double()
    out, trace = torch.full_like(x, -7), torch.full((3,), -7.0, dtype=torch.float64)
    total = y.clone()
    emu.call("emu_affine", x, scale, shift, out, 3, n, *selection(selected, 3))
    emu.call("emu_add", 0.5, x, -2.0, total, 3, n, n, *selection(selected, 3))
    emu.call("emu_trace", x, trace, 3, n, *selection(selected, 3))
    for b in selected or range(3):
        torch.testing.assert_close(out[b], (scale[b] * x[b] + shift[b] * torch.eye(n)).float())
        torch.testing.assert_close(total[b], 0.5 * x[b] - 2 * y[b])
        torch.testing.assert_close(trace[b], x[b].double().trace(), rtol=1e-14, atol=1e-14)
    for b in others(selected, 3):
        assert (out[b] == -7).all() and torch.equal(total[b], y[b]) and trace[b] == -7


@pytest.mark.parametrize("n", [1, 31, 32, 65, 100])
def test_add_symmetric_is_symmetric_to_the_last_bit(emu, n):
    x, y = torch.randn(2, n, n), torch.randn(2, n, n)
    x = x + x.mT
    out = x.clone()
    emu.call("emu_add_symmetric", 0.3, y, -1.7, out, 2, n, None, 2)
    assert torch.equal(out, out.mT)
    torch.testing.assert_close(out, 0.3 * (y + y.mT) - 1.7 * x)


@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_rounded_products(emu, a_transposed, b_transposed):
    m, k, n = 20, 40, 30
    a, b = torch.randn(2, m, k), torch.randn(2, k, n)
    stored = [x.mT.contiguous() if t else x for x, t in ((a, a_transposed), (b, b_transposed))]
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    for precision, most in ((HALF, 2.1 * ROUNDOFF), (PAIR, 4 * ROUNDOFF**2)):
        c = torch.full((2, m, n), -7.0)
        emu.call("emu_multiply_rounded", stored[0], a_transposed, stored[1], b_transposed, c, 2, m, k, n, precision,
                 *selection([1], 2))  # fmt: skip
        error = ((c - exact).abs() / scale)[1].max().item()
        print(f"precision {precision}: {error:.2e} of sum |a| |b|, at most {most:.2e}")
        assert most / 100 < error <= most and (c[0] == -7).all()


def test_a_rounded_square_reads_its_operand_once_or_transposed(emu):
    x = torch.randn(1, 24, 24)
    for transposed in (False, True):
        c = torch.empty(1, 24, 24)
        emu.call("emu_multiply_rounded", x, transposed, x, False, c, 1, 24, 24, 24, PAIR, None, 1)
        left = x.mT if transposed else x
        torch.testing.assert_close(c.double(), left.double() @ x.double(), rtol=0, atol=24 * 9 * 4 * ROUNDOFF**2)


def test_large_products_in_full_are_six_of_slices(emu):
    n = 512
    a, b = torch.randn(1, n, n), torch.randn(1, n, n)
    c = torch.empty(1, n, n)
    emu.call("emu_multiply_rounded", a, False, b, True, c, 1, n, n, n, 0, None, 1)
    exact = a.double() @ b.mT.double()
    scale = a.double().abs() @ b.mT.double().abs()
    error = ((c - exact).abs() / scale).max().item()
    print(f"three slices: {error:.1e} of sum |a| |b|, float32 rounds to {eps(torch.float32) / 2:.1e}")
    assert 0 < error <= 4 * eps(torch.float32)  # sums are cut off every 16 terms; two slices leave 2^-17


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 40, 256, 300, 513])
def test_inverse_factors(emu, n, dtype):
    """n > 256 goes by halves; W S W^T = I to eps cond(S)."""
    sigma = torch.logspace(0, 3, n, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    s = torch.stack([(q * sigma) @ q.mT * scale for scale in (1.0, 1e4)]).to(dtype)
    w, failed = torch.full_like(s, -5), torch.full((2,), -7.0, dtype=torch.float64)
    before = s.clone()
    emu.call("emu_inverse_factor", s, w, int(dtype == torch.float64), 2, n, failed, None, 2)
    assert torch.equal(s, before) and failed.tolist() == [0, 0]
    assert torch.equal(w, w.tril())
    identity = torch.eye(n, dtype=torch.float64)
    exact = torch.linalg.solve_triangular(torch.linalg.cholesky(s.double()), identity, upper=False)
    error = (torch.linalg.matrix_norm(w.double() - exact) / torch.linalg.matrix_norm(exact)).max().item()
    print(f"n {n} {dtype}: ||W - L^-1|| / ||L^-1|| = {error:.1e}")
    assert error <= 20 * 1e3 * eps(dtype)


@pytest.mark.parametrize("case", ["indefinite", "zero", "not a number", "rounding"])
def test_what_is_not_positive_definite_fails_alone(emu, case):
    n = 90
    good = with_spectrum(n, n, torch.linspace(2, 1, n)).float()
    good = good @ good.mT
    bad = {
        "indefinite": good - 2.5 * torch.eye(n),
        "zero": torch.zeros(n, n),
        "not a number": good.clone(),
        "rounding": torch.ones(n, n) + 1e-9 * good,
    }[case]
    if case == "not a number":
        bad[50, 20] = bad[20, 50] = float("nan")
    s = torch.stack([good, bad, good])
    w, failed = torch.empty_like(s), torch.full((3,), -7.0, dtype=torch.float64)
    emu.call("emu_inverse_factor", s, w, 0, 3, n, failed, None, 3)
    assert failed.tolist() == [0, 1, 0], failed
    assert torch.equal(w[0], w[2])


@pytest.mark.parametrize("n", [1, 300])
def test_a_pivot_that_is_not_positive_fails_however_small_the_matrix(emu, n):
    """Of a 300 x 300 matrix in its first half."""
    s = torch.eye(n).repeat(3, 1, 1)
    s[1, 0, 0], s[2, 0, 0] = 0.0, -1.0
    w, failed = torch.empty_like(s), torch.full((3,), -7.0, dtype=torch.float64)
    emu.call("emu_inverse_factor", s, w, 0, 3, n, failed, None, 3)
    assert failed.tolist() == [0, 1, 1] and torch.equal(w[0], s[0]) and not w[1:].any()
