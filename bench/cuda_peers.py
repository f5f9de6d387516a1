"""Other ways from a dense 16-bit matrix on a GPU to its dense rank-r approximation in the same dtype.

torch's methods (from peers.py, between the casts that a 16-bit weight needs), and cuSOLVER's gesvdr, gesvdp and
gesvdaStridedBatched in float32 (laser_kernels/bench/cusolver.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import peers
import torch
from cuda_timing import OutOfTime, Timer
from torch import Tensor

from laser_kernels.bench.cusolver import CuSolver, NotReachable

DRIVERS = (None, "gesvd", "gesvdj", "gesvda")  # of torch.linalg.svd
GESVDR_ITERATIONS = (2, 4, 8, 16)

peers.SETTLE = 0.0  # no other library's threads spin on the device


def laser(matrix: Tensor, rank: int) -> Tensor:
    """LASER's do_low_rank: no oversampling, two iterations, U diag(S) Vh, and its cast back."""
    return peers.laser(matrix, rank).to(matrix.dtype)


def svd_lowrank(matrix: Tensor, rank: int, oversample: int, niter: int) -> Tensor:
    """torch.svd_lowrank in float32 with q = r + p, trimmed to r."""
    return peers.svd_lowrank(matrix.float(), rank, oversample, niter).to(matrix.dtype)


def linalg_svd(matrix: Tensor, rank: int, driver: str | None) -> Tensor:
    """torch.linalg.svd in float32 with one of cuSOLVER's drivers, cut to r."""
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False, driver=driver)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).to(matrix.dtype)


def gram_eigh(matrix: Tensor, rank: int) -> Tensor:
    """A^T A and torch.linalg.eigh in float32, then (A V) V^T."""
    return peers.gram_eigh(matrix.float(), rank).to(matrix.dtype)


def tuned_svd_lowrank(
    matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, timer: Timer, seconds: float
) -> peers.Tuned:
    """The fastest setting of svd_lowrank on this very matrix whose excess is <= target (peers.tune).

    Raises:
        OutOfTime: after `seconds`. NotReachable: no setting of the grid reaches the target.
    """
    stop = time.perf_counter() + seconds

    def method(oversample: int, niter: int) -> Tensor:
        if time.perf_counter() > stop:
            raise OutOfTime(f"no setting of svd_lowrank was found in {seconds:.0f} s")
        return svd_lowrank(matrix, rank, oversample, niter)

    grid = peers.oversamplings(rank, min(matrix.shape))
    torch.manual_seed(0)
    timer.synchronized(method)(grid[0], 1)  # first call: libraries load
    found = peers.tune(timer.synchronized(method), excess, grid, target)
    if found is None:
        raise NotReachable(f"no setting of svd_lowrank has excess <= {target:g}")
    return found


class TunedCuSolver(CuSolver):
    """With a search for gesvdr's setting."""

    def tuned_gesvdr(
        self, matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, seconds: float
    ) -> tuple[int, int]:
        """(oversample, niters): p = 2r as advised, the fewest iterations that reach the target, else the most tried."""
        oversample = max(0, min(2 * rank, min(matrix.shape) - rank - 1))
        stop, niters = time.perf_counter() + seconds, 0
        for niters in GESVDR_ITERATIONS:
            found = excess(self.gesvdr(matrix, rank, oversample, niters))
            if found <= target or time.perf_counter() > stop or not math.isfinite(found):
                break
        return oversample, niters
