"""Matrices of several ranks in one call: how they are grouped, and that each is reduced to its own."""

import itertools
import math
import warnings

import pytest
import torch

import laser_kernels as lk
from laser_kernels import ops, reference, run
from laser_kernels.dispatch import Problem, choose, default_block, share_ranks
from laser_kernels.status import Status
from laser_kernels.testing import llm_like, norm, optimal_residual, orthonormality_bound, residual, residual_bound

HOPPER = Problem(4096, 4096, 1, "bfloat16", 1e-3, "cuda", 1, "9.0")
COUNTS = [
    {60: 1, 100: 2, 400: 3, 410: 1, 900: 2},
    {20: 200, 40: 5, 80: 1, 160: 40},
    {900: 3, 1000: 1, 1100: 1, 2000: 2, 3000: 1, 4096: 1},
]


def seconds(problem, shared, counts):
    batches = {top: sum(counts[r] for r, with_ in shared.items() if with_ == top) for top in set(shared.values())}
    return sum(choose(problem._replace(rank=top, batch=size)).seconds for top, size in batches.items())


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_no_other_grouping_of_neighbours_takes_less_time(counts):
    shared, ranks = share_ranks(HOPPER, counts, choose), sorted(counts)
    alone = {rank: rank for rank in ranks}
    best = math.inf
    for cuts in itertools.product([False, True], repeat=len(ranks) - 1):
        ends = [i for i, cut in enumerate(cuts) if cut] + [len(ranks) - 1]
        other = {rank: ranks[next(e for e in ends if e >= i)] for i, rank in enumerate(ranks)}
        if all(
            choose(HOPPER._replace(rank=r)).name == choose(HOPPER._replace(rank=top)).name for r, top in other.items()
        ):
            best = min(best, seconds(HOPPER, other, counts))
    found = seconds(HOPPER, shared, counts)
    print(f"{counts}: {shared}, model {seconds(HOPPER, alone, counts) * 1e3:.0f} -> {found * 1e3:.0f} ms")
    assert found <= best * (1 + 1e-9) and found < seconds(HOPPER, alone, counts)


def test_ranks_that_take_another_route_do_not_join():
    counts = {700: 1, 900: 1, 1100: 1, 1200: 1, 4095: 1, 4096: 1}
    shared = share_ranks(HOPPER, counts, choose)
    assert all(r <= top for r, top in shared.items())
    for rank, top in shared.items():
        assert choose(HOPPER._replace(rank=rank)).name == choose(HOPPER._replace(rank=top)).name
    assert shared[700] != shared[1100] and shared[4095] != shared[4096]


def test_the_route_is_that_of_the_batch_as_it_runs():
    """Where a larger batch turns the largest rank to SPECTRAL, those it would not serve stay out."""
    flips = 0
    for capability, side, tol in itertools.product(("8.0", "9.0", "12.0"), (512, 640, 1024, 2048), (1e-2, 1e-3, 1e-4)):
        problem = Problem(side, side, 1, "bfloat16", tol, "cuda", 1, capability)
        for small, top, count in itertools.product((13, side // 8), range(side // 4, side // 2, side // 40), (1, 2, 7)):
            shared = share_ranks(problem, {small: 1, top: count}, choose)
            if shared[small] == top:
                batch = problem._replace(batch=count + 1)
                assert choose(batch._replace(rank=small)).name == choose(batch._replace(rank=top)).name
            alone, beside = (choose(problem._replace(rank=top, batch=b)).name for b in (1, count + 1))
            flips += alone != beside
    assert flips > 50


def test_a_cpu_shares_nothing_and_close_ranks_are_not_told_apart():
    counts = {rank: 1 for rank in range(1, 300)}
    assert share_ranks(HOPPER._replace(device="cpu", capability=""), counts, choose) == {r: r for r in counts}
    shared = share_ranks(HOPPER, counts, choose)
    for first in range(1, 300, 16):
        assert len({shared[rank] for rank in range(first, min(first + 16, 300))}) == 1


# --- the ops

WAYS = [
    ("randomized", False, False),
    ("randomized", True, False),
    ("randomized", False, True),
    ("spectral", True, False),
    ("gram_eigh", True, False),
    ("full_svd", False, True),
]


def arguments(route, gram, wide, ranks, side, tol=1e-3):
    block = default_block(max(ranks), side, tol) if route == "randomized" else max(ranks)
    return route, block, gram, wide, False, tol, 64, 0, list(range(len(ranks)))


@pytest.mark.parametrize("backend", [ops.backend(torch.device("cpu")), reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("way", WAYS, ids=lambda w: "-".join(map(str, w)))
@pytest.mark.parametrize("shape", [(40, 32), (200, 210)], ids=str)  # several go in step; one by one
def test_each_matrix_keeps_the_contract_at_its_own_rank(backend, way, shape):
    side = min(shape)
    ranks = [side // k for k in (4, 2, 3, 8)] if way[0] != "spectral" or side < 100 else [50, 100, 54, 110]
    if way[0] == "spectral" and side < 100:
        ranks = [16, 12, 10, 20]
    stack = torch.stack([llm_like(*shape, i) for i in range(len(ranks))])
    out = torch.full_like(stack, math.nan)
    rows = backend.low_rank(stack, out, ranks, *arguments(*way, ranks, side))
    u, s, vh, again = backend.truncated_svd(stack, ranks, *arguments(*way, ranks, side))
    assert u.shape[-1] == max(ranks) and rows[:, 0].tolist() == again[:, 0].tolist() == [Status.OK] * len(ranks)
    for a, x, left, sigma, right, row, rank in zip(stack, out, u, s, vh, rows.tolist(), ranks, strict=True):
        info = dict(zip(ops.CERTIFICATE, row, strict=True))
        excess = info["unrounded"] / optimal_residual(a, rank) - 1
        print(f"rank {rank}: excess {excess:.1e} <= {info['bound']:.1e}")
        assert residual(a, x) <= residual_bound(a, rank, 1e-3) and excess <= info["bound"] + 1e-6
        assert torch.linalg.matrix_rank(x.double(), rtol=1e-6) == rank
        assert not left[:, rank:].any() and not sigma[rank:].any() and not right[rank:].any()
        bound, identity = orthonormality_bound(torch.float32, rank), torch.eye(rank)
        assert (left[:, :rank].mT @ left[:, :rank] - identity).abs().max() <= bound
        assert (right[:rank] @ right[:rank].mT - identity).abs().max() <= bound
        assert residual(a, (left.double() * sigma.double()) @ right.double()) <= residual_bound(a, rank, 1e-3)


def test_ranks_are_checked():
    stack = torch.stack([llm_like(20, 16, i) for i in range(3)])
    for ranks, said in (
        ([4, 5], "one per matrix \\(3\\); got 2"),
        ([], "got 0"),
        ([4, 0, 4], "got 0"),
        ([4, 17, 4], "got 17"),
    ):
        with pytest.raises(RuntimeError, match=said):
            torch.ops.laser_kernels.low_rank(stack, stack, ranks, *arguments("randomized", False, False, [4, 5, 6], 16))


# --- the public functions, where a device shares


@pytest.fixture
def shares(monkeypatch):
    """As on a GPU: whatever ranks there are go together."""
    monkeypatch.setattr(run, "share_ranks", lambda problem, counts, route_of: {r: max(counts) for r in counts})
    calls = []
    whole = run.run
    monkeypatch.setattr("laser_kernels.api.run", lambda bucket, *rest: calls.append(bucket) or whole(bucket, *rest))
    return calls


RANKS = [6, 17, 3, 30]


@pytest.mark.parametrize("listed", [False, True])
def test_low_rank_of_several_ranks_is_one_call(shares, listed):
    stack = torch.stack([llm_like(60, 50, i) for i in range(len(RANKS))])
    given = list(stack) if listed else stack
    found, infos = lk.low_rank(given, RANKS, return_info=True)
    assert len(shares) == 1 and shares[0].ranks == RANKS and [info.rank for info in infos] == RANKS
    assert listed or (found.shape == stack.shape and shares[0].tensor.data_ptr() == stack.data_ptr())
    for a, x, info, rank in zip(stack, found, infos, RANKS, strict=True):
        assert residual(a, x) <= residual_bound(a, rank, 1e-3) and info.residual == pytest.approx(
            residual(a, x), rel=1e-4
        )
        assert torch.linalg.matrix_rank(x.double(), rtol=1e-6) == rank
    target = [a.clone() for a in stack] if listed else stack.clone()
    assert lk.low_rank(target, RANKS, out=target) is target
    assert all(torch.equal(x, y) for x, y in zip(target, found, strict=True))


def test_factors_of_several_ranks_have_their_own_shapes(shares):
    stack = torch.stack([llm_like(60, 50, i) for i in range(len(RANKS))])
    found, infos = lk.truncated_svd(stack, RANKS, return_info=True)
    assert len(shares) == 1 and isinstance(found, list)
    for a, (u, s, vh), info, rank in zip(stack, found, infos, RANKS, strict=True):
        assert (u.shape, s.shape, vh.shape, info.rank) == ((60, rank), (rank,), (rank, 50), rank)
        assert u.is_contiguous() and vh.is_contiguous()
        assert residual(a, (u * s) @ vh) <= residual_bound(a, rank, 1e-3)


def test_what_cannot_be_certified_goes_on_with_its_own_rank(shares):
    """Two whose tails float32 cannot tell, of other ranks than the largest."""
    n, ranks = 48, [5, 12, 9]
    stack = torch.stack([llm_like(60, n, i) for i in range(3)])
    for i in (0, 2):
        u, s, vh = torch.linalg.svd(stack[i].double(), full_matrices=False)
        s[ranks[i] :] *= 1e-5
        stack[i] = ((u * s) @ vh).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low, infos = lk.low_rank(stack, ranks, tol=1e-4, return_info=True)
        factors, again = lk.truncated_svd(stack, ranks, tol=1e-4, return_info=True)
    print([(i.status, i.route) for i in infos])
    assert [i.status for i in infos] == [i.status for i in again] == ["escalated", "ok", "escalated"]
    for a, x, (u, s, vh), rank in zip(stack, low, factors, ranks, strict=True):
        limit = residual_bound(a, rank, 1e-4)
        for found in (x, (u.double() * s) @ vh.double()):
            assert residual(a, found) <= limit + 1e-6 * norm(a)  # rounding to float32


def test_choosing_is_by_the_options_of_the_call(monkeypatch):
    seen = []

    def note(problem, counts, route_of):
        seen.append((problem.tol, route_of(problem).name, dict(counts)))
        return {r: r for r in counts}

    monkeypatch.setattr(run, "share_ranks", note)
    a = [llm_like(40, 30, i) for i in range(3)]
    lk.low_rank(a, [3, 5, 3], tol=1e-2, route="gram_eigh")
    lk.low_rank(a, 4)
    assert seen == [(1e-2, "gram_eigh", {3: 2, 5: 1})]
