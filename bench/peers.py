"""Other ways to a dense rank-r approximation on the CPU, product included, and their tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import SETTLE, timed

MAX_ITERATIONS = 16


def laser(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """LASER's do_low_rank, without its cast back: no oversampling, two iterations."""
    u, s, v = torch.svd_lowrank(matrix.float(), q=rank, niter=2)
    return u @ torch.diag(s) @ v.T


def svd_lowrank(matrix: torch.Tensor, rank: int, oversample: int, niter: int) -> torch.Tensor:
    """torch.svd_lowrank with q = r + p, trimmed to r."""
    u, s, v = torch.svd_lowrank(matrix, q=rank + oversample, niter=niter)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank].mT


def randomized_svd(matrix: torch.Tensor, rank: int, oversample: int, niter: int) -> torch.Tensor:
    """scikit-learn's randomized_svd, its other settings at their defaults."""
    from sklearn.utils.extmath import randomized_svd as sklearn_svd

    settings = {"n_oversamples": oversample, "n_iter": niter, "random_state": 0}
    u, s, vh = sklearn_svd(matrix.numpy(), rank, **settings)
    return torch.from_numpy((u * s) @ vh)


def full_svd(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """torch.linalg.svd (LAPACK gesdd), cut to r."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


def gram_eigh(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """A^T A of the short side, torch.linalg.eigh, then (A V) V^T."""
    if matrix.shape[-2] < matrix.shape[-1]:
        return gram_eigh(matrix.mT, rank).mT
    v = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors[..., -rank:]
    return (matrix @ v) @ v.mT


TUNED = {"torch.svd_lowrank": svd_lowrank, "sklearn.randomized_svd": randomized_svd}
UNTUNED = {"torch.linalg.svd": full_svd, "gram + torch.linalg.eigh": gram_eigh}


@dataclass(frozen=True)
class Tuned:
    """The cheapest setting found: its oversampling, iterations, time and excess in that pass."""

    oversample: int
    niter: int
    seconds: float
    excess: float


def oversamplings(rank: int, side: int) -> list[int]:
    """{10, r/4, r/2, r}, with r + p <= min(m, n)."""
    wanted = {10, rank // 4, rank // 2, rank}
    return sorted({min(p, side - rank) for p in wanted if p > 0})


def tune(
    method: Callable[[int, int], torch.Tensor],
    excess: Callable[[torch.Tensor], float],
    grid: list[int],
    target: float,
) -> Tuned | None:
    """Fastest (p, niter) of one pass whose excess is <= target; None where none reaches it.

    For each p, largest first, niter grows until the target is met or the call is slower than the
    best so far.
    """
    best, limit = None, math.inf
    for oversample in sorted(grid, reverse=True):
        for niter in range(1, MAX_ITERATIONS + 1):
            seconds, low = timed(lambda p=oversample, k=niter: method(p, k), SETTLE)
            if seconds > limit:
                break
            found = excess(low)
            if found <= target:
                best, limit = Tuned(oversample, niter, seconds, found), seconds
                break
    return best
