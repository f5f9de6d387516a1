"""SPECTRAL on the CUDA backend, under the emulator: csrc/core/spectral.cpp through LinalgCuda and our kernels."""

import math

import pytest
import torch
from test_emulated_backend import DTYPES, keeps_the_contract, low_rank, observed, truncated_svd

from laser_kernels.ops import CERTIFICATE
from laser_kernels.status import Status
from laser_kernels.testing import (
    gaussian,
    llm_like,
    optimal_residual,
    orthonormality_bound,
    residual,
    with_spectrum,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_a_batch_keeps_the_contract(emu, half, dtype):
    """A batch whose matrices take different numbers of searches, and one that the route refuses."""
    m, n, rank = 150, 120, 60
    stack = torch.stack([
        llm_like(m, n, 1),
        torch.zeros(m, n),
        gaussian(m, n, 2).float(),
        with_spectrum(m, n, torch.arange(1, n + 1).double() ** -0.7).float() * 100,
    ]).to(dtype)  # fmt: skip
    out, rows = low_rank(emu, stack, rank, route="spectral", half=half)
    for i, (a, x, row) in enumerate(zip(stack, out, rows, strict=True)):
        print({k: f"{v:.3g}" for k, v in row.items()})
        if i == 1:
            assert row["status"] == Status.NOT_CONVERGED and x.isnan().all()
            continue
        assert row["status"] == Status.OK, row
        keeps_the_contract(a, x, row, rank)
        assert abs(row["projected"] - (rank - 8)) <= 8 and 10 < row["iterations"] < 60


@pytest.mark.parametrize("half", [False, True])
def test_several_ranks_in_one_batch(emu, half):
    """Some near enough for one projector width, one far off, one that the route refuses, one all of whose values are asked
    for."""
    m, n, ranks = 150, 120, [60, 64, 66, 30, 5, 120, 100]
    stack = torch.stack([llm_like(m, n, i) for i in range(len(ranks))])
    out, rows = low_rank(emu, stack, ranks, route="spectral", half=half)
    for a, x, row, rank in zip(stack, out, rows, ranks, strict=True):
        if rank in (5, 120):
            assert row["status"] == Status.NOT_CONVERGED and x.isnan().all()
            continue
        print(rank, {k: f"{v:.3g}" for k, v in row.items()})
        assert row["status"] == Status.OK, row
        keeps_the_contract(a, x, row, rank)
        assert torch.linalg.matrix_rank(x.double(), rtol=1e-6) == rank
        assert 0 < rank - row["projected"] <= 16
    (u, s, vh), rows = truncated_svd(emu, stack, ranks, route="spectral", half=half)
    for a, left, sigma, right, row, rank in zip(stack, u, s, vh, rows, ranks, strict=True):
        if row["status"] == Status.OK:
            x = (left[:, :rank].double() * sigma[:rank].double()) @ right[:rank].double()
            assert residual(a, x) <= (1 + 1e-3) * optimal_residual(a, rank)
            assert left[:, rank:].isnan().all() and sigma[rank:].isnan().all() and right[rank:].isnan().all()


def test_a_tight_tolerance_in_float64(emu):
    a = gaussian(130, 130, 3)
    out, rows = low_rank(emu, a[None], 40, route="spectral", wide=True, tol=1e-7)
    assert rows[0]["status"] == Status.OK
    keeps_the_contract(a, out[0], rows[0], 40, 1e-7)


def test_factors_of_a_wide_matrix(emu):
    a = llm_like(100, 140)
    (u, s, vh), rows = truncated_svd(emu, a[None], 50, route="spectral", half=True)
    assert rows[0]["status"] == Status.OK
    bound = orthonormality_bound(torch.float32, 50)
    assert (u.mT @ u - torch.eye(50)).abs().max() <= bound and (vh @ vh.mT - torch.eye(50)).abs().max() <= bound
    assert (s.diff(dim=1) <= 0).all()
    exact = torch.linalg.svdvals(a.double())[:50]
    assert torch.linalg.vector_norm(s[0] - exact) <= 0.05 * exact[-1]
    residual = torch.linalg.matrix_norm(a - (u * s[:, None]) @ vh).item()
    assert residual <= (1 + 1e-3) * optimal_residual(a, 50)


def low_rank_at(emu, a, rank, locked, cuts):
    """The results and the rows of the certificate; cuts (b, 2): eigenvalues."""
    count, m, n = a.shape
    out, rows = torch.full_like(a, -7), torch.full((count, len(CERTIFICATE)), -7.0, dtype=torch.float64)
    half, keys = a.dtype != torch.float64, torch.arange(count)
    emu.call("emu_low_rank_at", a, DTYPES[a.dtype], count, m, n, out, rank, locked, cuts, half, 8, 0, keys, rows)
    assert observed(emu)[0] == observed(emu)[3] == 0  # a graph can hold it: nothing waits, nothing comes from the host
    return out, [dict(zip(CERTIFICATE, row, strict=True)) for row in rows.tolist()]


def cuts_of(a, rank, locked, shift=0):
    sigma = torch.linalg.svdvals(a.double())
    return torch.stack(
        [sigma[:, locked - 1 + shift] * sigma[:, locked + shift], sigma[:, rank - 1 + shift] ** 2], dim=1
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_cuts_need_no_host(emu, dtype):
    rank, locked = 60, 50
    size = 2.0**40 if dtype == torch.float32 else 1.0  # weights are not rescaled, nor are cuts
    a = torch.stack([llm_like(150, 120, 1).double(), gaussian(150, 120, 2) / 9 * size]).to(dtype)
    out, rows = low_rank_at(emu, a, rank, locked, cuts_of(a, rank, locked))
    for x, y, row in zip(a, out, rows, strict=True):
        assert (row["status"], row["bound"], row["projected"]) == (Status.UNCERTIFIED, math.inf, locked)
        excess = row["unrounded"] / optimal_residual(x, rank) - 1
        print(f"{dtype}: excess {excess:.1e}")
        assert row["residual"] == pytest.approx(residual(x, y), rel=1e-3) and -1e-6 < excess <= 1e-3


def test_wrong_cuts_leave_numbers_and_their_residual(emu):
    """Of weights that have shrunk, of another count, or beyond the spectrum: no factor exists, and Q stays as it is."""
    rank, locked = 60, 50
    a = torch.stack([llm_like(150, 120, 1), with_spectrum(150, 120, torch.logspace(0, -3, 120)).float()])
    wrong = [cuts_of(a, rank, locked, shift) for shift in (-12, 12)] + [cuts_of(a, rank, locked) * 100]
    for cuts in wrong:
        out, rows = low_rank_at(emu, a, rank, locked, cuts)
        for x, y, row in zip(a, out, rows, strict=True):
            print(f"residual / norm {row['residual'] / row['norm']:.2e}")
            assert y.isfinite().all()
            assert row["residual"] == pytest.approx(residual(x, y), rel=1e-3) and row["residual"] <= row["norm"]


def test_a_top_up_that_would_wait_is_refused(emu, capfd):
    a = llm_like(300, 280)[None]
    with pytest.raises(AssertionError):
        low_rank_at(emu, a, 250, 60, cuts_of(a, 250, 60))
    assert "rank - locked = 190 needs eigenproblems of 220, more than this device's 169" in capfd.readouterr().err


def test_eigenvalues_are_counted(emu):
    a = torch.stack([llm_like(120, 90, 1), gaussian(120, 90, 2).float() / 9, torch.zeros(120, 90)])
    values = torch.linalg.svdvals(a.double())
    sigma = [(values[b, 29] * values[b, 30]).sqrt().item() for b in range(2)] + [1.0]
    out = torch.full((3, 2), -7.0, dtype=torch.float64)
    levels = torch.tensor(sigma, dtype=torch.float64) ** 2
    emu.call("emu_count_eigenvalues", a.mT @ a, levels, out, 3, 90)
    print(out, (values / torch.tensor(sigma)[:, None] - 1).abs().amin(1))
    assert out[2].tolist() == [0, 0]
    for b in range(2):
        assert out[b, 1] <= 0.1 and out[b, 0] == 30


def test_given_cuts_go_with_their_matrices(emu):
    rank, locked = 60, 50
    a = torch.stack([llm_like(150, 120, 1), llm_like(150, 120, 2) * 3])
    emu.call("emu_refuse_products", 1)  # that of both: one by one
    out, rows = low_rank_at(emu, a, rank, locked, cuts_of(a, rank, locked))
    for x, y, row in zip(a, out, rows, strict=True):
        assert row["residual"] == pytest.approx(residual(x, y), rel=1e-3)
        assert row["unrounded"] <= (1 + 1e-3) * optimal_residual(x, rank)
