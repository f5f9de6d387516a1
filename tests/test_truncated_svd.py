"""The contract of truncated_svd and low_rank over matrix families, shapes, dtypes, routes and tolerances."""

import itertools
import math

import pytest
import torch

import laser_kernels as lk
from laser_kernels import ops
from laser_kernels.dispatch import default_block
from laser_kernels.status import Status
from laser_kernels.testing import (
    FAMILIES,
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

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(96, 40), (40, 97), (131, 130), (1, 7), (9, 1)]
ROUTES = ["auto", "randomized", "gram_eigh", "full_svd"]
ESCALATES = pytest.mark.filterwarnings("ignore::laser_kernels.EscalationWarning")


def matrix(family, shape, rank, dtype):
    a = FAMILIES[family](*shape, rank).to(dtype)
    return a if torch.isfinite(a).all() else FAMILIES["gaussian"](*shape, rank).to(dtype)  # out of fp16's range


def ranks(shape):
    side = min(shape)
    return sorted({1, max(1, side // 4), max(1, 3 * side // 4), side})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_keeps_the_contract(family, shape, dtype):
    for rank in ranks(shape):
        a = matrix(family, shape, rank, dtype)
        tail, size = optimal_residual(a, rank), norm(a)
        for route in ROUTES:
            x, info = lk.low_rank(a, rank, route=route, return_info=True)
            assert x.dtype == dtype and x.shape == a.shape
            assert math.isclose(info.residual, residual(a, x), rel_tol=1e-3, abs_tol=1e-9 * size)
            unrounded = info.residual - info.rounding
            assert unrounded <= residual_bound(a, rank, 1e-3), (rank, route, info)
            # the bound that was reported, not only the one that was asked
            assert unrounded <= (1 + info.excess_bound) * tail * (1 + 1e-9) + FLOOR * eps(dtype) * size, (rank, info)
            assert info.excess_bound <= 1e-3 and info.rank == rank
            assert math.isclose(info.relative_residual * size, info.residual, rel_tol=1e-6, abs_tol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_svd_factors_are_an_svd(family, shape, dtype):
    for rank in ranks(shape):
        a = matrix(family, shape, rank, dtype)
        for route in ROUTES:
            u, s, vh = lk.truncated_svd(a, rank, route=route)
            assert u.dtype == s.dtype == vh.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert (u.shape, s.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
            identity = torch.eye(rank, dtype=u.dtype)
            bound = orthonormality_bound(dtype, rank)
            assert (u.mT @ u - identity).abs().max() <= bound, (rank, route)
            assert (vh @ vh.mT - identity).abs().max() <= bound, (rank, route)
            assert (s >= 0).all() and (s.diff() <= 0).all(), (rank, route)
            x = (u.double() * s.double()) @ vh.double()
            assert residual(a, x) <= residual_bound(a, rank, 1e-3), (rank, route)
            extreme = u.gather(0, u.abs().argmax(0, keepdim=True))
            assert (extreme >= 0).all(), (rank, route)


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("family", ["spiked", "gaussian", "power_law", "clustered", "condition_1e3"])
def test_excess_stays_below_tol_on_the_randomized_route(family, fraction, tol):
    a = FAMILIES[family](600, 400, int(400 * fraction)).float()
    x, info = lk.low_rank(a, fraction, tol=tol, route="randomized", return_info=True)
    excess = residual(a, x) / optimal_residual(a, info.rank) - 1
    print(f"{family} rank {info.rank} tol {tol}: excess {excess:.2e}, bound {info.excess_bound:.2e}, {info.route}")
    assert excess <= info.excess_bound <= tol


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["spiked", "gaussian", "power_law", "one_huge", "condition_1e3"])
def test_products_of_bfloat16_operands_keep_the_bound(family, dtype, tol):
    a = FAMILIES[family](600, 400, 40).to(dtype)
    for rank, gram in itertools.product((1, 40, 200), (False, True)):
        block = default_block(rank, 400, tol)
        out = torch.empty_like(a)
        arguments = (rank, "randomized", block, gram, False, True, tol, 64, 0, [0])
        rows = torch.ops.laser_kernels.low_rank(a[None], out[None], *arguments)
        status, _, unrounded, _, bound, *_ = rows[0].tolist()
        assert status in (Status.OK, Status.PRECISION, Status.NOT_CONVERGED)
        excess = unrounded / optimal_residual(a, rank) - 1
        print(f"{family} rank {rank} tol {tol}: excess {excess:.2e}, bound {bound:.2e}, status {status}")
        assert status != Status.OK or excess <= bound <= tol
        assert status == Status.OK or family not in ("spiked", "gaussian")


@pytest.mark.parametrize("rank", [1, 0.05, 0.1, 0.25, 0.5, 0.8])
def test_real_weights_keep_the_contract(smollm2, rank):
    for name, w in smollm2.items():
        for tol in (1e-2, 1e-3, 1e-4):
            x, info = lk.low_rank(w.float(), rank, tol=tol, return_info=True)
            tail = optimal_residual(w, info.rank)
            excess = residual(w, x) / tail - 1
            print(
                f"{name} rank {info.rank} tol {tol}: excess {excess:.2e}, bound {info.excess_bound:.2e}, {info.route}"
            )
            assert excess <= tol + FLOOR * eps(torch.float32) * norm(w) / tail
            assert info.excess_bound >= excess - FLOOR * eps(torch.float32) * norm(w) / tail


@pytest.mark.parametrize("family", ["spiked", "condition_1e6", "power_law", "exact_rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tol_zero_finds_the_truncation_itself(family, dtype):
    m, n, rank = 120, 80, 20
    a = FAMILIES[family](m, n, rank).to(dtype)
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    exact = (u[:, :rank] * s[:rank]) @ vh[:rank]
    x, info = lk.low_rank(a, rank, tol=0, return_info=True)
    assert (s[rank - 1] - s[rank]) / s[0] >= 1e-6
    assert residual(exact, x) <= 1e-5 * norm(a), info
    assert residual(a, x) <= (1 + 1e-6) * residual(a, exact) + FLOOR * eps(dtype) * norm(a)


def test_tol_none_does_max_iter_multiplications_and_does_not_judge():
    a = llm_like(300, 200)
    x, info = lk.low_rank(a, 20, tol=None, max_iter=3, return_info=True)
    assert (info.iterations, info.status, info.route) == (3, "uncertified", "randomized")
    few = residual(a, lk.low_rank(a, 20, tol=None, max_iter=1))
    assert optimal_residual(a, 20) <= residual(a, x) < few


def test_an_iteration_that_cannot_converge_escalates_and_says_so():
    a = llm_like(300, 200)
    with pytest.warns(lk.EscalationWarning, match="matrix 0: gram_eigh takes over") as caught:
        x, info = lk.low_rank(a, 20, route="randomized", max_iter=1, return_info=True)
    assert (info.route, info.status) == ("gram_eigh", "escalated") and caught[0].filename == __file__
    assert residual(a, x) <= residual_bound(a, 20, 1e-3)


def test_only_the_matrix_that_fails_is_redone():
    easy, hard = llm_like(200, 100), FAMILIES["condition_1e6"](200, 100, 90).float()
    x, infos = lk.low_rank(torch.stack([easy, hard, easy]), 90, route="gram_eigh", return_info=True)
    assert [i.status for i in infos] == ["ok", "escalated", "ok"]
    for a, y in zip((easy, hard, easy), x, strict=True):
        assert residual(a, y) <= residual_bound(a, 90, 1e-3)


def test_scaling_by_a_power_of_two_scales_the_result_exactly():
    a = llm_like(90, 60)
    assert torch.equal(lk.low_rank(a * 2.0**10, 6), lk.low_rank(a, 6) * 2.0**10)


def test_half_precision_results_are_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        a = llm_like(90, 60).to(dtype)
        single = lk.low_rank(a.float(), 6)
        if a.is_cuda:  # bfloat16 weights are multiplied as they are there, so that single precision results differ too
            bound = torch.finfo(dtype).eps * single.abs() + 1e-4 * single.abs().max()
            assert ((lk.low_rank(a, 6).double() - single.double()).abs() <= bound).all()
        else:
            assert torch.equal(lk.low_rank(a, 6), single.to(dtype))


@pytest.mark.parametrize("n, rank, above, tol", [(300, 9, 1.1, 1e-3), (600, 25, 1.1, 1e-3), (300, 30, 1.01, 1e-4)])
@ESCALATES
def test_a_cluster_just_above_the_others_is_not_missed(n, rank, above, tol):
    """A block that has not turned yet shows small residuals: all its vectors are nearly eigenvectors of one value."""
    sigma = torch.ones(n).double()
    sigma[:rank] = math.sqrt(above)
    a = with_spectrum(n, n, sigma, 3)
    tail = optimal_residual(a, rank)
    for b in (a, a.float()):
        _, info = lk.low_rank(b, rank, tol=tol, return_info=True)
        excess = (info.residual - info.rounding) / tail - 1
        print(f"{b.dtype}: {info.route}, excess {excess:.1e} <= {info.excess_bound:.1e}")
        assert excess <= info.excess_bound + FLOOR * eps(b.dtype) * norm(b) / tail and info.excess_bound <= tol


@ESCALATES
def test_a_block_of_the_whole_space_counts_its_rounding():
    """One large value: rounding of A^T A and of the eigensolver mixes the small ones."""
    worst = 0.0
    for seed in range(40):
        drawn = torch.rand(190, generator=torch.Generator().manual_seed(seed), device="cpu")
        sigma = (1 + 0.5 * drawn.double()).sort(descending=True).values.to(torch.get_default_device())
        sigma[0] = 10 ** (1.8 + 0.7 * seed / 40)
        a = with_spectrum(210, 190, sigma, seed).float()
        _, info = lk.low_rank(a, 70, tol=1e-3, route="randomized", oversample=190, return_info=True)
        tail = optimal_residual(a, 70)
        excess = (info.residual - info.rounding) / tail - 1
        worst = max(worst, excess - FLOOR * eps(a.dtype) * norm(a) / tail - info.excess_bound)
    assert worst <= 0


@pytest.mark.parametrize("shape", [(204, 230), (300, 300), (500, 400)], ids=str)
@ESCALATES
def test_a_constant_float64_matrix_gets_what_lapack_can_do(shape):
    a = torch.full(shape, 0.3, dtype=torch.float64)
    x = lk.low_rank(a, 5)
    assert residual(a, x) <= FLOOR * math.sqrt(min(shape)) * eps(a.dtype) * norm(a)


@pytest.mark.parametrize("decades", [18, 22, 30])
@ESCALATES
def test_rows_and_columns_of_all_sizes(decades):
    """Entries of A^T A are subnormal: MKL's eigensolver gave up on some of these."""
    for seed in range(12):
        n = 40 + seed
        a = gaussian(n + 8, n, seed, torch.float32) * torch.logspace(0, -decades, n)
        a *= torch.logspace(0, -decades, n + 8)[:, None]
        x, info = lk.low_rank(a, n // 2, return_info=True)
        assert info.status in ("ok", "escalated") and residual(a, x) <= residual_bound(a, n // 2, 1e-3)


@pytest.mark.parametrize("function", [lk.low_rank, lk.truncated_svd], ids=lambda f: f.__name__)
def test_what_failed_is_redone_with_its_own_key_and_stored_in_its_own_place(function, monkeypatch):
    """A scripted backend, which writes each matrix's key where it certifies."""
    script = [
        [Status.OK, Status.NOT_CONVERGED, Status.OK, Status.PRECISION],
        [Status.PRECISION, Status.OK],
        [Status.OK],
    ]
    calls = []

    def run(weight, target, route, wide, keys):
        calls.append((route, wide, weight[:, 0, 0].tolist(), keys))
        rows = torch.zeros(len(weight), len(ops.CERTIFICATE), dtype=torch.float64)
        for row, x, key, status in zip(rows, target, keys, script[len(calls) - 1], strict=True):
            row[0] = status
            x.fill_(key if status == Status.OK else -1)
        return rows

    class Backend:
        @staticmethod
        def low_rank(weight, out, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys):
            return run(weight, out, route, wide, keys)

        @staticmethod
        def truncated_svd(weight, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys):
            u, s, vh = (torch.empty(len(weight), *shape) for shape in ((48, 4), (4,), (4, 32)))
            return u, s, vh, run(weight, s, route, wide, keys)

    monkeypatch.setattr("laser_kernels.ops.backend", lambda _: Backend)
    stack = torch.arange(4.0)[:, None, None].expand(4, 48, 32).contiguous()
    with pytest.warns(lk.EscalationWarning, match="matrix 1, 3"):
        x, infos = function(stack, 4, route="randomized", key=[7, 8, 9, 10], return_info=True)
    assert [(wide, which, keys) for _, wide, which, keys in calls] == [
        (False, [0, 1, 2, 3], [7, 8, 9, 10]),
        (True, [1, 3], [8, 10]),  # the more demanding reason decides
        (True, [1], [8]),
    ]
    found = x.S[:, 0] if function is lk.truncated_svd else x[:, 0, 0]
    assert found.tolist() == [7, 8, 9, 10]
    assert [info.status for info in infos] == ["ok", "escalated", "ok", "escalated"]
    assert [info.route for info in infos] == [calls[i][0] for i in (0, 2, 0, 1)]


@pytest.mark.filterwarnings("ignore::laser_kernels.EscalationWarning")
def test_tol_zero_is_kept_by_every_route():
    a = gaussian(200, 120, 1).float()
    for route in ("randomized", "spectral"):
        _, info = lk.low_rank(a, 30, tol=0, route=route, return_info=True)
        assert info.excess_bound <= 1e-6, (route, info)
