"""Thresholds in the place of ranks, and the count of eigenvalues that they need on a GPU."""

import math

import pytest
import torch

import laser_kernels as lk
from laser_kernels.ranks.marchenko_pastur import marchenko_pastur_median
from laser_kernels.ranks.search import UNRESOLVED
from laser_kernels.testing import gaussian, llm_like, optimal_residual, residual, residual_bound, with_spectrum

L = torch.ops.laser_kernels


def count(a, sigma):
    """By the op, as on a GPU: how many, and how many in doubt."""
    tall = a if a.shape[0] >= a.shape[1] else a.mT
    return L.count_eigenvalues((tall.mT @ tall)[None].contiguous(), [sigma**2])[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["gaussian", "llm_like", "power_law"])
def test_trace_of_the_projector_counts(family, dtype):
    n = 150
    a = {
        "gaussian": lambda: gaussian(200, n, 1),
        "llm_like": lambda: llm_like(200, n, 2).double(),
        "power_law": lambda: with_spectrum(200, n, torch.arange(1, n + 1).double() ** -0.7),
    }[family]().to(dtype)
    values = torch.linalg.svdvals(a.double())
    told = 0
    for quantile in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9):
        at = int(quantile * n)
        sigma = math.sqrt(values[at - 1].item() * values[at].item())
        exact = (values > sigma).sum().item()
        above, unresolved = count(a, sigma)
        gap = (values / sigma - 1).abs().min().item()
        print(f"{family} sigma {sigma:.3g}: {above:.0f} (exact {exact}), in doubt {unresolved:.2g}, nearest {gap:.1e}")
        if unresolved <= UNRESOLVED:
            assert above == exact
            told += 1
        else:
            assert gap <= 2e-3
    assert told >= 4


def test_nothing_is_told_where_nothing_can_be():
    a = with_spectrum(120, 100, torch.tensor([2.0, 1.0]).repeat_interleave(50)).float()
    assert count(a, 1.0)[1] > UNRESOLVED  # at the value of half the spectrum
    steep = with_spectrum(70, 60, torch.logspace(0, -9, 60, dtype=torch.float64)).float()
    assert count(steep, 1e-8)[1] > UNRESOLVED  # no Cholesky factor in float32
    outlier = torch.diag(torch.cat([torch.tensor([1e4]), torch.linspace(2, 0.5, 59)]))
    assert count(outlier, 1.01)[1] > UNRESOLVED  # float32 rounds G by more than the level
    assert count(a, 0.0)[1] > UNRESOLVED and count(a, math.nan)[1] > UNRESOLVED
    assert count(torch.full((9, 9), math.nan), 1.0)[1] > UNRESOLVED
    assert count(a, 30.0) == [0, 0] and count(torch.zeros(9, 9), 1.0) == [0, 0]
    h = torch.stack([a.mT @ a, torch.zeros(100, 100)])
    assert L.count_eigenvalues(h, [1.5**2, 1.0]).tolist()[1] == [0, 0]
    assert L.count_eigenvalues(h, [1.5**2, 1.0])[0, 0] == 50


def test_a_threshold_stands_for_a_rank():
    stack = torch.stack([llm_like(60, 48, i) for i in range(3)])
    values = torch.linalg.svdvals(stack.double())
    results, infos = lk.low_rank(stack, lk.Threshold(0.9), return_info=True)
    for a, s, x, info in zip(stack, values, results, infos, strict=True):
        assert info.rank == (s > 0.9).sum() == lk.Threshold(0.9).of(a)
        assert residual(a, x) <= residual_bound(a, info.rank, 1e-3)
    u, _, _ = lk.truncated_svd(stack[0], lk.Threshold(0.9))
    assert u.shape[1] == infos[0].rank
    mixed, ranks = lk.low_rank(stack, [3, lk.Threshold(0.9), 0.25], return_info=True)
    assert [info.rank for info in ranks] == [3, infos[1].rank, 12] and len(mixed) == 3


@pytest.mark.parametrize("shape", [(300, 200), (200, 200), (120, 360)], ids=str)
def test_marchenko_pastur_finds_the_signal_and_no_noise(shape):
    m, n = shape
    std = 0.03
    noise = std * gaussian(m, n, 1)
    edge = std * (math.sqrt(m) + math.sqrt(n))
    signal = with_spectrum(m, n, torch.where(torch.arange(min(m, n)) < 7, 4 * edge, 0.0), seed=5)
    for rule in (lk.MarchenkoPastur(std=std * 1.02), lk.MarchenkoPastur()):
        found = rule.of((signal + noise).float())
        print(f"{shape} {rule}: {found}")
        assert 7 <= found <= 8
        assert rule.count(torch.linalg.svdvals(noise), shape) <= 1


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0])
def test_the_median_of_noise(beta):
    n = 400
    m = round(n / beta)
    values = torch.linalg.svdvals(gaussian(m, n, 2)) / math.sqrt(m)
    assert values.median().item() == pytest.approx(marchenko_pastur_median(beta), rel=0.02)


def test_a_rule_that_gives_no_rank_is_clamped_and_says_so():
    a = llm_like(30, 20)
    with pytest.warns(
        UserWarning, match=r"Threshold\(sigma=1000000.0\) gives rank 0 for a \(30, 20\) matrix: 1 is taken"
    ):
        _, info = lk.low_rank(a, lk.Threshold(1e6), return_info=True)
    assert info.rank == 1
    assert lk.low_rank(a, lk.Threshold(0.0), return_info=True)[1].rank == 20


def test_bad_rules_and_bad_matrices_are_refused():
    for make in (lambda: lk.Threshold(-1), lambda: lk.Threshold(math.nan), lambda: lk.MarchenkoPastur(0)):
        with pytest.raises(ValueError, match=r"\[laser_kernels\] (Threshold|MarchenkoPastur) takes"):
            make()
    a = llm_like(30, 20)
    a[3, 4] = math.nan
    with pytest.raises(lk.NonFiniteError):
        lk.low_rank(a, lk.Threshold(1.0))
    with pytest.raises(RuntimeError, match=r"count_eigenvalues\] above must hold one number per matrix \(1\); got 2"):
        L.count_eigenvalues(torch.eye(4)[None], [1.0, 2.0])


def test_the_result_is_the_best_of_its_rank():
    a = llm_like(80, 64)
    x, info = lk.low_rank(a, lk.Threshold(1.1), tol=0, return_info=True)
    assert residual(a, x) <= (1 + 1e-6) * optimal_residual(a, info.rank) + 1e-5
