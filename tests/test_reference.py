"""reference.py: the oracle agrees with the compiled driver, and takes over where nothing was compiled."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import laser_kernels as lk
from laser_kernels import reference
from laser_kernels.testing import FAMILIES, FLOOR, eps, norm, optimal_residual, residual, residual_bound, with_spectrum

L = torch.ops.laser_kernels
ROUTES = [("randomized", False), ("randomized", True), ("gram_eigh", False), ("gram_eigh", True), ("full_svd", True)]


@pytest.mark.parametrize("route, wide", ROUTES)
@pytest.mark.parametrize("family", ["spiked", "gaussian", "power_law", "zero", "scale_1e30", "exact_rank"])
@pytest.mark.parametrize("shape", [(60, 45), (45, 60)], ids=str)
def test_reference_and_driver_promise_and_keep_the_same(shape, family, route, wide):
    rank, block = 9, 19
    a = FAMILIES[family](*shape, rank).float()[None]
    arguments = (rank, route, block, False, wide, False, 1e-3, 64, 0, [0])
    results = []
    for backend in (L, reference):
        out = torch.zeros_like(a)
        row = backend.low_rank(a, out, *arguments)[0].tolist()
        u, s, vh, _ = backend.truncated_svd(a, *arguments)
        assert row[1] == pytest.approx(norm(a), rel=1e-6)
        if row[0] == 0:
            assert residual(a[0], out[0]) <= residual_bound(a[0], rank, 1e-3)
            assert row[3] == pytest.approx(residual(a[0], out[0]), rel=1e-3, abs=1e-6 * norm(a))
            product = (u[0].double() * s[0].double()) @ vh[0].double()
            assert residual(a[0], product) <= residual_bound(a[0], rank, 1e-3)
        results.append((row[0], s[0].double(), residual(a[0], out[0])))
    (status, s, r), (other_status, other_s, other_r) = results
    assert status == other_status
    if status == 0:
        tail = optimal_residual(a[0], rank) + FLOOR * eps(torch.float32) * norm(a)
        assert abs(r - other_r) <= 1.1e-3 * tail
        # both captured energies lie within 2 tol tail^2 of the optimum
        assert (
            abs((s / tail).square().sum() - (other_s / tail).square().sum()) <= 3e-3
            if tail > 0
            else (s == other_s).all()
        )


@pytest.mark.parametrize("backend", [L, reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("tol, status", [(1e-3, 3), (None, 1)])
def test_nothing_left_where_rounding_could_hide_it_is_no_promise(backend, tol, status):
    a = torch.zeros(1, 60, 45)
    a[0].diagonal()[:9] = 1  # its Gram matrix in float32 leaves exactly 0
    row = backend.low_rank(a, torch.zeros_like(a), 9, "gram_eigh", 19, False, False, False, tol, 64, 0, [0])[0]
    assert row[0] == status and row[4] == float("inf")


def test_reference_with_given_cuts():
    a = torch.stack([FAMILIES["spiked"](60, 45, 30).float()] * 2)
    sigma = torch.linalg.svdvals(a[0].double())
    arguments = (30, 22, 2 * [(sigma[21] * sigma[22]).sqrt().item(), sigma[29].item()], False, 8, 0, [0, 1])
    for backend in (L, reference):
        out = torch.zeros_like(a)
        for one, x, row in zip(a, out, backend.low_rank_at(a, out, *arguments).tolist(), strict=True):
            assert row[3] == pytest.approx(residual(one, x), rel=1e-3) and row[0] == 1
            assert residual(one, x) <= residual_bound(one, 30, 1e-3)


def test_reference_prepare_matches():
    for family in FAMILIES:
        a = FAMILIES[family](20, 30, 5)[None]
        torch.testing.assert_close(L.prepare(a), reference.prepare(a), rtol=1e-12, atol=0)


def test_without_the_library_the_reference_runs_and_says_so_once(tmp_path):
    """A pure-Python install: the package without its .so files."""
    source = Path(lk.__file__).parent
    shutil.copytree(source, tmp_path / "laser_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, laser_kernels as lk
    a = torch.randn(40, 30)
    x, info = lk.low_rank(a, 5, return_info=True)
    lk.low_rank(a, 5)
    s = lk.truncated_svd(torch.stack([a, a]), 5)
tail = torch.linalg.svdvals(a.double())[5:].norm().item()
assert (a.double() - x.double()).norm().item() <= 1.001 * tail, info
assert s.U.shape == (2, 40, 5)
ours = [str(w.message) for w in caught if "laser_kernels" in str(w.message)]
assert len(ours) == 1 and "pip install" in ours[0], ours
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr


def flat(m, n, r):
    """r values a little above the others: what a block that has not turned may hide."""
    sigma = torch.ones(n).double()
    sigma[:r] = math.sqrt(1.1)
    return with_spectrum(m, n, sigma, 3)


def steep(m, n, r):
    """A tail in which float64 rounding of the energy shows."""
    sigma = torch.full((n,), 1e-7).double()
    sigma[:r] = 1
    return with_spectrum(m, n, sigma, 4)


def huge(m, n, r):
    """One large value: rounding of A^T A mixes the small ones."""
    sigma = torch.linspace(1.5, 1, n).double()
    sigma[0] = 1e5
    return with_spectrum(m, n, sigma, 5)


SPECTRA = {name: FAMILIES[name] for name in ("spiked", "gaussian", "power_law", "clustered", "condition_1e3")}
SPECTRA |= {"flat": flat, "steep": steep, "huge": huge}


@pytest.mark.parametrize("family", SPECTRA)
@pytest.mark.parametrize(
    "way", [("randomized", False), ("randomized", True), ("gram_eigh", True), ("full_svd", False)], ids=str
)
def test_the_bound_is_the_oracles(way, family):
    """One look, in float64: what the driver says of it is what the formulas in plain torch say."""
    m, n, rank = 70, 60, 8
    a = SPECTRA[family](m, n, rank).double()[None]
    for block, max_iter in ((11, 1), (20, 2), (40, 2), (60, 2)):
        for tol in (1e-1, 1e-9):
            arguments = (rank, way[0], block, way[1], True, False, tol, max_iter, 0, [5])
            ours, theirs = (b.low_rank(a, torch.zeros_like(a), *arguments)[0].tolist() for b in (L, reference))
            assert ours[0] == theirs[0] and ours[5] == theirs[5]
            rounding = 4 * eps(a.dtype) * ours[1] / (ours[2] * math.sqrt(m * n))  # of the result: kRounding
            bound = min(theirs[4] + rounding, max(theirs[4], tol))
            assert ours[4] == pytest.approx(bound, rel=0.1 if family == "steep" else 0.01, abs=0)
