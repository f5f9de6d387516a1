"""Statistics of spectra against their definitions on float64 singular values."""

from __future__ import annotations

import math

import pytest
import torch

import laser_kernels as lk
from laser_kernels import exact
from laser_kernels.ranks import MarchenkoPastur
from laser_kernels.testing import FAMILIES, gaussian, llm_like, with_spectrum


def spectrum_py(weights):
    """spectrum.py's calculate_snr_for_layer, transcribed."""
    s = torch.linalg.svdvals(weights)
    sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
    n, m = weights.shape
    threshold = sigma * math.sqrt((1 + math.sqrt(n / m if n < m else m / n)) ** 2)
    mask = s > threshold
    signal = s[mask].sum() if mask.any() else torch.tensor(0.0)
    noise = s[~mask].sum() if (~mask).any() else torch.tensor(1.0)
    ratio = signal / noise if noise != 0 else math.inf
    return (ratio / s[0]).item() if s[0] > 0 else math.inf


def laserrmt_py(weights):
    """rmt_laser_snr.py's, transcribed."""
    s = torch.linalg.svdvals(weights)
    sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
    beta = min(weights.shape) / max(weights.shape)
    threshold = sigma * math.sqrt((1 + math.sqrt(beta)) ** 2)
    noise = s[s <= threshold].sum()
    return (s[s > threshold].sum() / noise).item() if noise != 0 else math.inf, int((s > threshold).sum())


WELL = ["spiked", "gaussian", "power_law", "condition_1e3", "clustered", "scale_1e30", "scale_1e-30"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", WELL)
def test_definitions(family, dtype):
    for m, n in ((120, 80), (60, 150), (70, 70)):
        a = FAMILIES[family](m, n, 10).to(dtype)
        s = torch.linalg.svdvals(a.double())
        stats = lk.spectrum_stats(a)
        close = pytest.approx
        assert stats.shape == (m, n)
        assert stats.sigma_1 == close(s[0].item(), rel=1e-12)
        assert stats.frobenius == close(torch.linalg.vector_norm(a.double() / s[0]).item() * s[0].item(), rel=1e-13)
        assert stats.nuclear == close(s.sum().item(), rel=1e-9)
        assert stats.stable_rank == close((s / s[0]).square().sum().item(), rel=1e-12)
        p = s / s.sum()
        assert stats.effective_rank == close(math.exp(-(p * p.log()).sum().item()), rel=1e-9)
        assert stats.condition == close((s[0] / s[-1]).item(), rel=1e-6)
        ratio, count = laserrmt_py(a.double())
        assert stats.snr == close(ratio, rel=1e-9) and stats.mp_count == count
        assert stats.snr_spectrum == close(spectrum_py(a.double()), rel=1e-9)
        assert stats.edge_count == MarchenkoPastur().count(s, (m, n)) == (s > stats.edge).sum()
        for share, k in stats.energy_ranks:
            assert s[:k].square().sum() >= share * s.square().sum() * (1 - 1e-12)
            assert k == 1 or s[: k - 1].square().sum() < share * s.square().sum() * (1 + 1e-12)


def test_known_values():
    stats = lk.spectrum_stats(3 * torch.eye(8))
    assert (stats.sigma_1, stats.nuclear, stats.condition) == pytest.approx((3, 24, 1))
    assert (stats.stable_rank, stats.effective_rank) == pytest.approx((8, 8))
    assert stats.mp_threshold == pytest.approx(0, abs=1e-12) and stats.snr == math.inf  # no value is noise
    assert stats.snr_spectrum == pytest.approx(24 / 3)  # where Spectrum takes 1
    assert [k for _, k in stats.energy_ranks] == [4, 7, 8, 8, 8, 8]


@pytest.mark.parametrize("shape", [(400, 300), (300, 700)], ids=str)
def test_the_edge_separates_signal_from_noise_where_the_heuristic_does_not(shape):
    std = 0.02
    edge = std * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    signal = with_spectrum(*shape, torch.where(torch.arange(300) < 5, 3 * edge, 0.0), seed=3)
    stats = lk.spectrum_stats((signal + std * gaussian(*shape, 1)).float())
    assert stats.edge == pytest.approx(edge, rel=0.05) and 5 <= stats.edge_count <= 6
    assert stats.mp_count > 50  # laserRMT's threshold lies inside the noise


def test_what_cannot_be_told_from_zero():
    for dtype in (torch.float32, torch.float64):
        deficient = with_spectrum(50, 40, (torch.arange(40) < 9).double()).to(dtype)
        stats = lk.spectrum_stats(deficient)
        assert stats.condition == math.inf and stats.energy_ranks[-1][1] == 9
        assert stats.effective_rank == pytest.approx(9, rel=1e-4)
        zero = lk.spectrum_stats(torch.zeros(5, 4, dtype=dtype))
        assert (zero.sigma_1, zero.stable_rank, zero.effective_rank) == (0, 0, 0)
        assert zero.snr == zero.snr_spectrum == zero.condition == math.inf
    steep = with_spectrum(60, 50, torch.logspace(0, -9, 50, dtype=torch.float64))
    assert lk.spectrum_stats(steep).condition == pytest.approx(1e9, rel=1e-4)
    assert lk.spectrum_stats(steep.float()).condition == math.inf


def test_stacks_lists_and_real_weights(smollm2):
    stack = torch.stack([llm_like(50, 40, i) for i in range(3)])
    together = lk.spectrum_stats(stack)
    ragged = lk.spectrum_stats([stack[1], stack[0, :20], stack[2].mT])
    assert together == [lk.spectrum_stats(one) for one in stack]
    assert ragged[0] == together[1] and ragged[1].shape == (20, 40)
    assert ragged[2].sigma_1 == pytest.approx(together[2].sigma_1, rel=1e-12)
    weight = next(w for w in smollm2.values() if min(w.shape) <= 576)[:200]
    stats = lk.spectrum_stats(weight)
    assert stats.snr_spectrum == pytest.approx(spectrum_py(weight.float()), rel=1e-4)  # its own float32
    assert lk.spectrum_stats(weight.float().numpy()).nuclear == pytest.approx(stats.nuclear)


def test_bad_input():
    a = torch.ones(3, 4, 5)
    a[1, 0, 0] = math.nan
    with pytest.raises(lk.NonFiniteError, match="1"):
        lk.spectrum_stats(a)
    with pytest.raises(TypeError, match=r"spectrum_stats\] A must be float32"):
        lk.spectrum_stats(torch.ones(3, 4, dtype=torch.int32))


def test_blocks_of_rows_add_up(monkeypatch):
    a = gaussian(50, 20, 1)
    monkeypatch.setattr(exact, "BLOCK_ELEMENTS", 160)  # seven blocks
    for b in (a, a.mT):
        torch.testing.assert_close(exact.squares(b).squares.sqrt() * exact.unit_of(b), torch.linalg.svdvals(a))
        assert exact.energy(b, 2.0) == pytest.approx(a.square().sum().item() / 4, rel=1e-14)


def test_small_values_are_not_taken_from_a_gram_matrix():
    sigma = torch.logspace(0, -6, 20, dtype=torch.float64)
    found = exact.singular_values(with_spectrum(40, 20, sigma))
    assert (found - sigma).abs().max() <= 20 * torch.finfo(torch.float64).eps
