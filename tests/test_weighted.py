"""weighted_svd against the closed form in float64: the tail of the singular values of W C^(1/2)."""

import pytest
import torch

import laser_kernels as lk
from laser_kernels.testing import (
    FLOOR,
    eps,
    gaussian,
    llm_like,
    norm,
    optimal_residual,
    orthonormal,
    orthonormality_bound,
    residual,
)
from laser_kernels.weighted import weighted_svd

N = 48


def covariance(values, seed=3):
    q = orthonormal(N, N, seed)
    return (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT


def samples(count, seed=5):
    x = gaussian(count, N, seed) * torch.logspace(0, -2, N, dtype=torch.float64)
    return x.mT @ x


RIGHTS = {
    "identity": lambda: torch.eye(N, dtype=torch.float64),
    "samples": lambda: samples(400),
    "fewer samples than inputs": lambda: samples(20),
    "rank 1": lambda: samples(1),
    "zero": lambda: torch.zeros(N, N, dtype=torch.float64),
    "condition 1e8": lambda: covariance(torch.logspace(0, -8, N)),
    "condition 1e16 in float64": lambda: covariance(torch.logspace(0, -16, N)),
    "semidefinite by rounding": lambda: covariance(torch.cat([torch.ones(10), torch.full((N - 10,), -1e-17)])),
    "float32": lambda: samples(400).float(),
    "few samples in float32": lambda: samples(20).float(),
    "1e-30": lambda: 1e-30 * samples(400),
    "1e60": lambda: 1e60 * samples(400),
    "scales": lambda: torch.logspace(0, -3, N, dtype=torch.float64),
    "scales with zeros": lambda: torch.arange(N).remainder(3).double(),
    "one scale": lambda: (torch.arange(N) == 5).double(),
    "scales 1e-40": lambda: 1e-40 * torch.arange(1, N + 1).double(),
}


def root(right):
    """R as the documentation defines it: diag(right), or the symmetric square root."""
    right = right.double()
    if right.dim() == 1:
        return torch.diag(right)
    values, vectors = torch.linalg.eigh(right)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", RIGHTS)
def test_weighted_error_is_that_of_the_closed_form(name, dtype):
    for m, rank in ((70, 6), (30, 6), (30, 30)):
        w, r = llm_like(m, N, m).to(dtype), root(RIGHTS[name]())
        b, a, s, error, relative = weighted_svd(w, rank, right=RIGHTS[name]())
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert (b.dtype, a.dtype, s.dtype) == (wide, wide, torch.float64)
        assert (b.shape, a.shape, s.shape) == ((m, rank), (rank, N), (rank,))
        seen = w.double() @ r
        got = norm((w.double() - b.double() @ a.double()) @ r)
        rounding = FLOOR * eps(dtype) * norm(w) * torch.linalg.matrix_norm(r, 2).item()
        if (
            r.count_nonzero() > N
        ):  # a covariance: directions are weighed by the roots of its eigenvalues, and of their rounding
            rounding += (N * eps(torch.float64)) ** 0.5 * norm(w) * torch.linalg.matrix_norm(r, 2).item()
        assert got <= (1 + 1e-3) * optimal_residual(seen, rank) + rounding
        assert abs(error - got) <= 1e-6 * got + rounding
        assert relative == pytest.approx(error / norm(seen) if norm(seen) else 0, abs=1e-6)
        assert (s.double() - torch.linalg.svdvals(seen)[:rank]).abs().max() <= 1e-3 * norm(seen) + rounding
        gram = b.double().mT @ b.double()
        assert (gram - torch.eye(rank, dtype=torch.float64)).abs().max() <= orthonormality_bound(wide, rank)


@pytest.mark.parametrize("right", [torch.eye(N), torch.ones(N)], ids=["covariance", "scales"])
def test_equal_weights_give_the_plain_svd(right):
    w = llm_like(70, N)
    b, a, s, error, _ = weighted_svd(w, 6, right=right, tol=0)
    plain, info = lk.truncated_svd(w, 6, tol=0, return_info=True)
    assert torch.allclose(b @ a, (plain.U * plain.S) @ plain.Vh, atol=1e-5 * norm(w))
    assert torch.allclose(s.float(), plain.S, rtol=1e-6) and error == pytest.approx(info.residual, rel=1e-5)


def test_weights_decide_what_is_kept():
    """The plain SVD is worse where the weights count, and the weighted one worse where they do not."""
    w, c = llm_like(70, N).double(), samples(400)
    r = root(c)
    b, a = weighted_svd(w, 6, right=c)[:2]
    u, s, vh = lk.truncated_svd(w, 6)
    plain = (u * s) @ vh
    assert norm((w - b @ a) @ r) < 0.9 * norm((w - plain) @ r)
    assert residual(w, b @ a) > residual(w, plain)


def test_factors_are_those_of_svd_llm_where_its_inverse_exists():
    w, c = gaussian(30, N, 1), samples(400)
    b, a = weighted_svd(w, 6, right=c, tol=0)[:2]
    lower = torch.linalg.cholesky(c)
    u, s, vh = torch.linalg.svd(w @ lower, full_matrices=False)
    theirs = (u[:, :6] * s[:6]) @ vh[:6] @ torch.linalg.inv(lower)
    assert residual(theirs, b @ a) <= 1e-5 * norm(w)


def test_inputs_without_weight_get_the_best_that_the_basis_has():
    w, scales = gaussian(30, N, 1), (torch.arange(N) % 2).double()
    b, a = weighted_svd(w, 6, right=scales)[:2]
    assert torch.allclose(a, b.mT @ w, atol=1e-12 * norm(w))
    changed = w.clone()
    changed[:, ::2] *= 100
    assert torch.allclose(weighted_svd(changed, 6, right=scales).B, b, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_the_unit_of_the_weights_does_not_matter(unit):
    w, scales = llm_like(30, N), torch.logspace(0, -3, N, dtype=torch.float64)
    one, other = weighted_svd(w, 6, right=scales), weighted_svd(w, 6, right=unit * scales)
    assert torch.allclose(one.B, other.B, atol=1e-5) and torch.allclose(one.A, other.A, atol=1e-5 * norm(w))
    assert torch.allclose(other.S, unit * one.S, rtol=1e-5) and other.error == pytest.approx(unit * one.error, rel=1e-5)


def test_rank_is_of_the_weighted_matrix():
    w, scales = gaussian(30, N, 1), torch.logspace(0, -3, N, dtype=torch.float64)
    seen = torch.linalg.svdvals(w * scales)
    cut = (seen[7] + seen[8]).item() / 2
    assert weighted_svd(w, lk.Threshold(cut), right=scales).S.shape == (8,)
    assert weighted_svd(w, 0.25, right=scales).B.shape == (30, 7)


def test_numpy_comes_back_as_numpy():
    w = gaussian(6, N, 1).cpu().numpy()
    b, a, s, _, _ = weighted_svd(w, 2, right=samples(40).cpu().numpy())
    assert {type(t) for t in (b, a, s)} == {type(w)}


@pytest.mark.parametrize(
    "w, right, error, message",
    [
        (torch.ones(4, 3), torch.ones(4), ValueError, r"must be \(3,\) scales or a \(3, 3\)"),
        (torch.ones(4, 3), torch.ones(3, 4), ValueError, r"got \(3, 4\)"),
        (torch.ones(2, 4, 3), torch.ones(3), ValueError, "one .m, n. matrix"),
        (torch.ones(4, 3), torch.tensor([1.0, -1e-9, 1]), ValueError, "scales must be >= 0"),
        (torch.ones(4, 3), torch.tensor([1.0, float("nan"), 1]), ValueError, "NaN or Inf"),
        (torch.ones(4, 3), torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), ValueError, "symmetric"),
        (torch.ones(4, 3), torch.diag(torch.tensor([1.0, 1, -0.01])), ValueError, "semidefinite.*-0.01 to 1"),
        (torch.ones(4, 3), -torch.eye(3), ValueError, "semidefinite"),
        (torch.ones(4, 3), torch.ones(3).int(), TypeError, "right must be float32"),
        (torch.full((4, 3), float("inf")), torch.ones(3), lk.NonFiniteError, "NaN or Inf"),
    ],
)
def test_bad_input_is_refused(w, right, error, message):
    with pytest.raises(error, match=message):
        weighted_svd(w, 1, right=right)
