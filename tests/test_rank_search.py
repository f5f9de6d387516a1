"""A rank found from part of a spectrum is the one that all of it gives."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

import laser_kernels as lk
from laser_kernels import exact
from laser_kernels.ranks import Energy, Frobenius, Kohya, LyCORIS, Mergekit, Nuclear, Ratio, Threshold, search
from laser_kernels.ranks.crossing import Above, Leading, Share, exactly
from laser_kernels.testing import FAMILIES, eps, gaussian, llm_like, with_spectrum

RULES = [
    *(Energy(0.3), Energy(0.95), Frobenius(1e-4), Ratio(0.6), Ratio(0.01)),
    *(Kohya("sv_fro", 0.7, plus_one=True), Kohya("sv_ratio", 3.0, max_rank=9), LyCORIS("ratio", 0.4), Mergekit(6, 0.2)),
]


@pytest.fixture
def ways(monkeypatch):
    """How ranks were found, counted; growing is tried whatever it costs."""
    counts = Counter()
    grow, by_svd = search._grow, exact.by_svd

    def grown(*arguments):
        found = grow(*arguments)
        counts["tried"] += 1
        counts["grown"] += found is not None
        return found

    def svd(a):
        counts["svd"] += 1
        return by_svd(a)

    monkeypatch.setattr(search, "WORTH", 1e6)
    monkeypatch.setattr(search, "_grow", grown)
    monkeypatch.setattr(exact, "by_svd", svd)
    return counts


def nearest(rule, s, shape):
    """The ranks that the rule gives when values may be off by float64 rounding: one, unless a value is on the line."""
    off = 8 * len(s) * eps(torch.float64)
    moved = [s * (1 + off), s, s * (1 - off)]
    moved += [torch.cat([s[:1] * (1 + sign * off), s[1:]]) for sign in (-1, 1)]
    return {rule.count(each, shape) for each in moved}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rank_is_that_of_the_float64_spectrum(family, dtype, ways):
    for m, n in ((70, 50), (40, 80)):
        a = FAMILIES[family](m, n, 12).to(dtype)
        s = torch.linalg.svdvals(a.double())
        for rule in RULES:
            found = rule.found(a)
            assert found in nearest(rule, s, (m, n)), (rule, found, rule.count(s, (m, n)))
    print(family, dtype, dict(ways))


def test_real_weights(smollm2, ways, monkeypatch):
    monkeypatch.setattr(search, "WORTH", 1.0)
    for name, weight in smollm2.items():
        weight = weight[:300]  # LAPACK takes its time in float64
        s = torch.linalg.svdvals(weight.double())
        for rule in RULES:
            found = rule.found(weight)
            print(name, rule, found)
            assert found == rule.count(s, tuple(weight.shape))
    assert ways["grown"] >= 6 and ways["svd"] == 0


def test_growing_alone_decides_where_the_spectrum_decays(ways):
    for seed in range(4):
        a = with_spectrum(150, 130, 0.9 ** torch.arange(130).double(), seed).float()
        s = torch.linalg.svdvals(a.double())
        for rule in (Energy(0.5), Energy(0.99), Frobenius(0.05), Ratio(0.1), Threshold(0.2), Mergekit(12, 1e-3)):
            assert rule.found(a) == rule.count(s)
    print(dict(ways))
    assert ways["grown"] >= 22 and ways["tried"] == 24


def test_the_bounds_hold_the_true_values():
    """`_leading` must bound each square and each sum: otherwise a wrong rank could be certain."""
    for number, a in enumerate(
        (llm_like(200, 160), gaussian(160, 200, 4, torch.float32), llm_like(150, 150, 3).double())
    ):
        unit = exact.unit_of(a)
        true = (torch.linalg.svdvals(a.double()) / unit).square()
        for rank in (4, 16, 60):
            for tol in (1e-1, 1e-2, 1e-4):
                known = search._leading(a, rank, tol, exact.energy(a, unit), unit)
                sums = true.cumsum(0)[:rank]
                assert (known.low <= true[:rank]).all() and (true[:rank] <= known.high).all(), (number, rank, tol)
                assert (known.low_sum <= sums).all() and (sums <= known.high_sum).all(), (number, rank, tol)
        squares = exact.squares(a)
        known = exactly(squares.squares, squares.energy, squares.slack)
        assert (known.low <= true).all() and (true <= known.high).all()
        assert (known.low_sum <= true.cumsum(0)).all() and (true.cumsum(0) <= known.high_sum).all()


def leading(squares, each, energy, whole=False):
    s = torch.tensor(squares, dtype=torch.float64)
    return Leading(s - each, s + each, s.cumsum(0) - each, s.cumsum(0) + each, energy, whole)


def test_doubt_is_told():
    known = leading([4.0, 2.0, 1.0], 0.1, 10.0)
    assert Share(0.5).bracket(known) == (2, 2)
    assert Share(0.6).bracket(known) == (2, 3)  # 6 of 10, to 0.1
    assert Share(0.9).bracket(known) == (4, None)  # beyond
    assert Above(absolute=1.2).bracket(known) == (2, 2)
    assert Above(absolute=1.0).bracket(known) == (2, None)  # the last may be above, and so may others
    assert Above(relative=math.sqrt(0.5)).bracket(known) == (1, 2)  # 2 of 4, to 0.1
    assert Above(absolute=1.0).bracket(leading([4.0, 2.0, 1.0], 0.1, 7.0, whole=True)) == (2, 3)


def test_values_from_the_gram_matrix_and_from_lapack():
    for shape in ((200, 150), (90, 130)):
        for a in (llm_like(*shape), gaussian(*shape, 2), (1e30 * llm_like(*shape)).double(), torch.zeros(*shape)):
            s = torch.linalg.svdvals(a.double())
            found = exact.singular_values(a)
            bound = min(shape) * eps(torch.float64) * s[0] ** 2 / s.clamp_min(1e-300)
            assert ((found - s).abs() <= bound).all() or s[0] == 0
            assert found.dtype == torch.float64 and (found.diff() <= 0).all()
    steep = with_spectrum(120, 100, torch.logspace(0, -9, 100, dtype=torch.float64))
    s = torch.linalg.svdvals(steep)
    assert ((exact.singular_values(steep) - s).abs() <= 100 * eps(torch.float64)).all()
    assert Nuclear(1 - 1e-7).of(steep) == Nuclear(1 - 1e-7).count(s)


def test_lapack_decides_below_what_the_gram_matrix_resolves(ways):
    steep = with_spectrum(80, 60, torch.logspace(0, -12, 60, dtype=torch.float64))
    s = torch.linalg.svdvals(steep)
    for sigma in (3.3e-9, 3.3e-11):  # squares of 1e-17 and less: A^T A in float64 has nothing of them
        assert Threshold(sigma).found(steep) == Threshold(sigma).count(s)
    assert ways["svd"] == 2


def test_large_matrices_do_not_cost_a_spectrum(monkeypatch):
    """With the real cost model: what decays is found by growing, what does not is not grown for long."""
    tried = []
    inner = search._leading
    monkeypatch.setattr(search, "_leading", lambda a, r, *rest: tried.append(r) or inner(a, r, *rest))
    a = with_spectrum(900, 700, 0.9 ** torch.arange(700).double()).float()
    monkeypatch.setattr(exact, "squares", lambda a: pytest.fail("the whole spectrum"))
    assert Energy(0.9).of(a) == 11 and max(tried) <= 32
    monkeypatch.undo()
    tried.clear()
    monkeypatch.setattr(search, "_leading", lambda a, r, *rest: tried.append(r) or inner(a, r, *rest))
    flat = gaussian(900, 700, 1, torch.float32)
    assert Energy(0.9).of(flat) == Energy(0.9).count(torch.linalg.svdvals(flat.double()))
    assert tried == [search.FIRST]  # 16 values say that hundreds are needed


def test_many_matrices_have_their_own_ranks():
    a = [llm_like(60, 48, 1), with_spectrum(40, 50, 0.5 ** torch.arange(40).double()).float()]
    results, infos = lk.low_rank(a, Energy(0.8), return_info=True)
    for one, reduced, info in zip(a, results, infos, strict=True):
        s = torch.linalg.svdvals(one.double())
        assert info.rank == Energy(0.8).count(s)
        assert torch.linalg.norm(one - reduced) ** 2 <= 0.2 * torch.linalg.norm(one) ** 2 * (1 + 1e-2)
    _, infos = lk.truncated_svd(a, [Energy(0.8), Ratio(0.3)], return_info=True)
    assert [info.rank for info in infos] == [Energy(0.8).of(a[0]), 2]
