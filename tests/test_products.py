"""SVDs of products and differences, against the dense matrix in float64."""

import pytest
import torch

import laser_kernels as lk
from laser_kernels import deltas, ranks
from laser_kernels.deltas import svd_delta
from laser_kernels.products import svd_product
from laser_kernels.testing import (
    FLOOR,
    eps,
    gaussian,
    llm_like,
    norm,
    optimal_residual,
    orthonormality_bound,
    residual,
    residual_bound,
    with_spectrum,
)


def dense(svd):
    u, s, vh = (t.double() for t in svd)
    return (u * s) @ vh


def check(svd, exact, rank, dtype, tol=0.0):
    """The promises of truncated_svd, for the matrix `exact` in float64."""
    u, s, vh = svd
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (u.dtype, s.dtype, vh.dtype) == (wide,) * 3
    assert (u.shape, s.shape, vh.shape) == ((exact.shape[0], rank), (rank,), (rank, exact.shape[1]))
    one = torch.eye(rank, dtype=torch.float64)
    for q in (u.double(), vh.double().mT):
        assert (q.mT @ q - one).abs().max() <= orthonormality_bound(wide, rank)
    assert (s[:-1] >= s[1:]).all() and (s >= 0).all()
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()
    bound = (1 + tol) * optimal_residual(exact, rank) + FLOOR * eps(dtype) * norm(exact)
    assert residual(exact, dense(svd)) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("m, k, n", [(60, 8, 40), (5, 8, 40), (60, 8, 5), (3, 8, 4), (1, 1, 1), (30, 30, 30)])
def test_product_is_the_svd_of_the_dense_matrix(m, k, n, dtype):
    b, a = gaussian(m, k, 1).to(dtype), gaussian(k, n, 2).to(dtype)
    exact, side = b.double() @ a.double(), min(m, k, n)
    for rank in {1, max(1, side // 2), side}:
        check(svd_product(b, a, rank), exact, rank, dtype)
    s = svd_product(b, a).S
    assert torch.allclose(s.double(), torch.linalg.svdvals(exact)[:side], rtol=0, atol=8 * eps(dtype) * norm(exact))


def test_product_of_huge_sides_is_never_formed():
    """200000 x 200000 would be 160 GB."""
    b, a = gaussian(200_000, 4, 1, torch.float32), gaussian(4, 200_000, 2, torch.float32)
    svd = svd_product(b, a, 4)
    rows, columns = torch.arange(0, 200_000, 20_011), torch.arange(7, 200_000, 30_011)
    exact = b[rows].double() @ a[:, columns].double()
    got = dense((svd.U[rows], svd.S, svd.Vh[:, columns]))
    assert (got - exact).abs().max() <= FLOOR * eps(torch.float32) * exact.abs().max()


def test_factors_that_cancel_in_the_product():
    """||B|| ||A|| is 1e8 times ||B A||: what float32 would round away is the whole product."""
    x, y = gaussian(50, 3, 1), gaussian(3, 40, 2)
    b = torch.cat([1e4 * x, x], 1)
    a = torch.cat([1e4 * y, -1e8 * y + gaussian(3, 40, 3)])
    b, a = b.float(), a.float()
    check(svd_product(b, a, 2), b.double() @ a.double(), 2, torch.float32)


@pytest.mark.parametrize("kind", ["zero", "deficient", "parallel", "one zero column"])
def test_deficient_factors(kind):
    b, a = gaussian(20, 6, 1, torch.float32), gaussian(6, 15, 2, torch.float32)
    if kind == "zero":
        b = torch.zeros_like(b)
    elif kind == "deficient":
        b[:, 3:] = b[:, :3]
    elif kind == "parallel":
        a[:] = a[:1]
    else:
        b[:, 2] = 0
    for rank in (2, 6):
        check(svd_product(b, a, rank), b.double() @ a.double(), rank, torch.float32)


def test_batches_are_their_matrices():
    b, a = gaussian(3 * 20, 4, 1).reshape(3, 20, 4).float(), gaussian(3 * 4, 15, 2).reshape(3, 4, 15).float()
    whole = svd_product(b, a, 0.5)
    assert [t.shape for t in whole] == [(3, 20, 2), (3, 2), (3, 2, 15)]
    for i in range(3):
        check(lk.SVD(*(t[i] for t in whole)), b[i].double() @ a[i].double(), 2, torch.float32)


def test_a_threshold_gives_each_matrix_its_rank():
    b = torch.stack([with_spectrum(20, 4, torch.tensor(s)).float() for s in ([9.0, 5, 1, 1], [9.0, 8, 7, 1])])
    a = torch.eye(4, 15).expand(2, 4, 15)
    found = svd_product(b, a, lk.Threshold(4))
    assert [svd.S.shape[0] for svd in found] == [2, 3]
    for svd, one in zip(found, b, strict=True):
        check(svd, one.double() @ a[0].double(), svd.S.shape[0], torch.float32)


@pytest.mark.parametrize(
    "rule", [ranks.Peft(0.9), ranks.Kohya("sv_cumulative", 0.6), ranks.Nuclear(0.7), ranks.Ratio(0.5)]
)
def test_a_rule_sees_all_singular_values_of_the_product(rule):
    b, a = gaussian(30, 6, 1), gaussian(6, 20, 2)
    expected = rule.count(torch.linalg.svdvals(b @ a), (30, 20))
    assert 1 < expected < 6
    assert svd_product(b, a, rule).S.shape == (expected,)


def test_the_zeros_of_a_product_count_for_a_rule_that_looks_at_all_values():
    b, a = gaussian(30, 4, 1), gaussian(4, 20, 2)
    rule = ranks.Knee()
    assert rule.count(torch.linalg.svdvals(b @ a)[:4], (30, 20)) == 1
    assert svd_product(b, a, rule).S.shape == (4,)


def test_numpy_comes_back_as_numpy():
    b, a = gaussian(6, 3, 1).cpu().numpy(), gaussian(3, 5, 2).cpu().numpy()
    u, s, vh = svd_product(b, a, 2)
    assert {type(t) for t in (u, s, vh)} == {type(b)}


@pytest.mark.parametrize(
    "b, a, rank, error, message",
    [
        (torch.ones(4, 2), torch.ones(3, 5), 1, ValueError, r"got \(4, 2\) and \(3, 5\)"),
        (torch.ones(4, 2), torch.ones(1, 2, 5), 1, ValueError, "or \\(b, m, k\\)"),
        (torch.ones(2, 4, 2), torch.ones(3, 2, 5), 1, ValueError, "batches equal"),
        (torch.ones(4, 0), torch.ones(0, 5), 1, ValueError, "must not be empty"),
        (torch.ones(4, 2), torch.ones(2, 5), 3, ValueError, r"1..min\(m, n\) = 2 for.*core of a 4x5 product"),
        (torch.ones(4, 2), torch.ones(2, 5), "3", TypeError, "rank must be"),
        (torch.ones(4, 2).int(), torch.ones(2, 5), 1, TypeError, "B must be float32"),
        (torch.full((4, 2), 1e30), torch.full((2, 5), 1e30), 1, ValueError, "exceed float32"),
    ],
)
def test_bad_factors_are_refused(b, a, rank, error, message):
    with pytest.raises(error, match=message):
        svd_product(b, a, rank)


def test_non_finite_factors_are_named():
    b, a = torch.ones(3, 4, 2), torch.ones(3, 2, 5)
    b[1, 0, 0], a[2, 0, 0] = float("nan"), float("inf")
    with pytest.raises(lk.NonFiniteError) as caught:
        svd_product(b, a, 1)
    assert caught.value.indices == [1, 2]


def tuned(base, seed, size=0.3):
    """`base` after some training: another bf16 weight near it, most entries changed by less than a factor 2."""
    return (base.double() + size * base.double().std() * llm_like(*base.shape, seed).double()).to(base.dtype)


def test_delta_of_real_16_bit_weights_is_that_of_the_exact_difference(smollm2):
    for i, base in enumerate(smollm2.values()):
        other = tuned(base, i)
        exact = other.double() - base.double()
        svd, info = svd_delta(other, base, 16, return_info=True)
        check(svd, exact, 16, base.dtype, tol=1e-3)
        assert info.residual == pytest.approx(residual(exact, dense(svd)), rel=1e-6)


def test_difference_is_not_rounded_to_16_bits():
    one, other = llm_like(60, 40, 1).bfloat16(), llm_like(60, 40, 2).bfloat16()
    s = svd_delta(one, other, 40).S.double()
    exact = torch.linalg.svdvals(one.double() - other.double())
    assert (s - exact).abs().max() <= FLOOR * eps(torch.float32) * exact[0]
    in_16_bits = torch.linalg.svdvals((one - other).double())
    assert (in_16_bits - exact).abs().max() > 10 * FLOOR * eps(torch.float32) * exact[0]  # it would show


def test_mixed_dtypes_are_subtracted_in_the_wider():
    one, other = gaussian(12, 9, 1), gaussian(12, 9, 2).bfloat16()
    svd = svd_delta(one, other, 9)
    assert svd.S.dtype == torch.float64
    assert residual(one - other.double(), dense(svd)) <= FLOOR * eps(torch.float64) * norm(one)


def test_batches_and_ragged_lists_in_bounded_memory(monkeypatch):
    held = []
    real = lk.truncated_svd

    def watched(matrices, *args, **options):
        held.append(sum(t.numel() for t in matrices))
        return real(matrices, *args, **options)

    monkeypatch.setattr(deltas, "truncated_svd", watched)
    monkeypatch.setattr(deltas, "CHUNK", 2 * 20 * 12)
    one = gaussian(5 * 20, 12, 1).reshape(5, 20, 12).bfloat16()
    other = gaussian(5 * 20, 12, 2).reshape(5, 20, 12).bfloat16()
    u, s, vh = svd_delta(one, other, 3)
    assert (u.shape, s.shape, vh.shape) == ((5, 20, 3), (5, 3), (5, 3, 12))
    assert held == [480, 480, 240]
    several = svd_delta(one, other, [1, 2, 3, 4, 5])
    assert [svd.S.shape[0] for svd in several] == [1, 2, 3, 4, 5]
    ragged = [one[0], one[1, :7], one[2].mT, torch.ones(40, 30).bfloat16()]
    zero = [torch.zeros_like(t) for t in ragged]
    found, infos = svd_delta(ragged, zero, 3, key=[5, 6, 7, 8], return_info=True)
    assert max(held) == 1200 and [info.rank for info in infos] == [3] * 4
    for svd, a in zip(found, ragged, strict=True):
        assert residual(a, dense(svd)) <= residual_bound(a, 3, 1e-3)
    ragged[3][0, 0] = float("nan")
    with pytest.raises(lk.NonFiniteError, match=r"svd_delta.*matrix 3"):
        svd_delta(ragged, zero, 3)


@pytest.mark.parametrize(
    "one, other, message",
    [
        (torch.ones(4, 3), torch.ones(3, 4), r"matrix 0 has \(4, 3\) on cpu and \(3, 4\)"),
        ([torch.ones(4, 3)], [], "equally many"),
        ([], [], "at least one"),
        (torch.ones(4), torch.ones(4), r"W1 must be \(m, n\)"),
    ],
)
def test_bad_differences_are_refused(one, other, message):
    with pytest.raises(ValueError, match=message):
        svd_delta(one, other, 1)


def test_a_product_is_float64_where_either_factor_is():
    b, a = gaussian(30, 4, 1), gaussian(4, 20, 2)
    for left, right in ((b, a.float()), (b.float(), a)):
        assert {t.dtype for t in lk.svd_product(left, right)} == {torch.float64}
