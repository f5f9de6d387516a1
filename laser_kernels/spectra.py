"""What a matrix's spectrum says: norms, ranks, conditioning, and signal against noise as laserRMT and Spectrum have it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laser_kernels import exact
from laser_kernels.arrays import on_its_stream
from laser_kernels.canonical import canonicalise
from laser_kernels.errors import NonFiniteError
from laser_kernels.ranks import Energy
from laser_kernels.ranks.marchenko_pastur import estimated_edge, laserrmt_threshold

ENERGY_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class SpectrumStats:
    """Statistics of the singular values s_1 >= ... >= s_k, k = min(m, n), of one matrix (m, n).

    Attributes:
        shape: (m, n).
        sigma_1: the largest singular value, the spectral norm.
        frobenius: ||A||_F = sqrt(sum s_i^2), from the entries.
        nuclear: sum s_i.
        stable_rank: ||A||_F^2 / s_1^2; ASVD's is its square root. 0 for a zero matrix.
        effective_rank: exp of the entropy of s_i / nuclear (Roy, Vetterli 2007). 0 for a zero matrix.
        condition: s_1 / s_k; inf where s_k is not told from 0 (below k eps s_1, eps of the precision it was found in).
        snr: laserRMT's: the sum of values above `mp_threshold` / the sum of the others; inf where that is 0.
        snr_spectrum: Spectrum's: the same ratio / s_1; where no value is noise, 1 stands for their sum.
        mp_threshold: laserRMT's and Spectrum's threshold, IQR(s) / 1.349 (1 + sqrt beta).
        mp_count: how many values exceed it.
        edge: the edge of the Marchenko-Pastur law for noise with the median of these values (MarchenkoPastur()).
        edge_count: how many values exceed it.
        energy_ranks: ((share, k), ...): the least k that holds this share of ||A||_F^2.
    """

    shape: tuple[int, int]
    sigma_1: float
    frobenius: float
    nuclear: float
    stable_rank: float
    effective_rank: float
    condition: float
    snr: float
    snr_spectrum: float
    mp_threshold: float
    mp_count: int
    edge: float
    edge_count: int
    energy_ranks: tuple[tuple[float, int], ...]


@on_its_stream
def spectrum_stats(A: Any) -> Any:
    """SpectrumStats of a matrix; a list of them for a stack (b, m, n) or a list of matrices.

    Values come in float64 from A^T A, formed in float64: as exact as LAPACK's SVD in float32 (absolute error about
    1e-7 s_1) and faster; float64 input goes to LAPACK's SVD in float64.

    Args:
        A: as for truncated_svd.

    Raises:
        NonFiniteError: NaN or Inf, naming the matrices. TypeError, ValueError: as truncated_svd.

    References:
        Roy, Vetterli: The effective rank (2007). cognitivecomputations/laserRMT, rmt_laser_snr.py, calculate_snr_for_layer;
        cognitivecomputations/spectrum, spectrum.py, calculate_snr_for_layer.
    """
    given = canonicalise(A, 1, 0, "spectrum_stats")
    found: list[SpectrumStats | None] = [None] * given.size
    bad: list[int] = []
    for bucket in given.buckets:
        for position, matrix in zip(bucket.positions, bucket.tensor, strict=True):
            if torch.isfinite(matrix).all():
                found[position] = _stats(matrix)
            else:
                bad.append(position)
    if bad:
        raise NonFiniteError(sorted(bad), "spectrum_stats")
    return found[0] if given.form == "matrix" else found


def _values(a: Tensor) -> tuple[Tensor, float, float]:
    """Singular values, the resolution below which one is not told from 0, and ||A||_F."""
    unit = exact.unit_of(a)
    if a.dtype == torch.float64:
        values, step = exact.by_svd(a), torch.finfo(torch.float64).eps
        return values, step * len(values) * values[0].item(), math.sqrt(exact.energy(a, unit)) * unit
    squares = exact.squares(a)
    values = squares.squares.sqrt() * unit
    least = max(math.sqrt(squares.slack) * unit, torch.finfo(torch.float32).eps * len(values) * values[0].item())
    return values, least, math.sqrt(squares.energy) * unit


def _stats(a: Tensor) -> SpectrumStats:
    shape = (a.shape[0], a.shape[1])
    s, resolution, frobenius = _values(a)
    top, nuclear = s[0].item(), s.sum().item()
    threshold, rim = laserrmt_threshold(s, shape), estimated_edge(s, shape)
    signal, noise = s[s > threshold].sum().item(), s[s <= threshold].sum().item()
    count = int((s > threshold).sum())
    parts = s[s > 0] / nuclear if nuclear > 0 else s[:0]
    ratio = signal / noise if noise > 0 else math.inf
    return SpectrumStats(
        shape=shape,
        sigma_1=top,
        frobenius=frobenius,
        nuclear=nuclear,
        stable_rank=(frobenius / top) ** 2 if top > 0 else 0.0,
        effective_rank=math.exp(-(parts * parts.log()).sum().item()) if len(parts) else 0.0,
        condition=top / s[-1].item() if s[-1] > resolution else math.inf,
        snr=ratio,
        snr_spectrum=(signal if count == len(s) else ratio) / top if top > 0 else math.inf,
        mp_threshold=threshold,
        mp_count=count,
        edge=rim,
        edge_count=int((s > rim).sum()),
        energy_ranks=tuple((share, Energy(share).count(s)) for share in ENERGY_SHARES),
    )
