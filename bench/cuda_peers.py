"""Other ways from a dense 16-bit matrix on a GPU to its dense rank-r approximation in the same dtype.

torch's methods (laser_kernels/bench/peers.py), and cuSOLVER's gesvdr, gesvdp and
gesvdaStridedBatched in float32 (laser_kernels/bench/cusolver.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from cuda_timing import OutOfTime, Timer
from torch import Tensor

from laser_kernels.bench.cusolver import CuSolver, NotReachable
from laser_kernels.bench.peers import Setting, oversamplings, peers
from laser_kernels.bench.tuning import tune

GESVDR_MOST = 16


def svd_lowrank(matrix: Tensor, rank: int, oversample: int, niter: int) -> Tensor:
    """torch.svd_lowrank with q = r + p, trimmed to r, dense."""
    return peers()["torch.svd_lowrank"].dense(matrix, rank, oversample=oversample, niter=niter)


def linalg_svd(matrix: Tensor, rank: int, driver: str | None) -> Tensor:
    """torch.linalg.svd with one of cuSOLVER's drivers, cut to r, dense."""
    return peers()[" ".join(["torch.linalg.svd", *([driver] if driver else [])])].dense(matrix, rank)


def tuned_svd_lowrank(
    matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, timer: Timer, seconds: float
) -> Setting:
    """The fastest setting of svd_lowrank on this very matrix whose excess is <= target.

    Raises:
        OutOfTime: after `seconds`. NotReachable: no setting of the grid reaches the target.
    """
    stop = time.perf_counter() + seconds

    def attempt(setting: Setting) -> tuple[float, bool]:
        taken, low = min((timer(lambda _: svd_lowrank(matrix, rank, **setting)) for _ in range(2)), key=lambda x: x[0])
        return taken, excess(low) <= target

    grid = oversamplings(rank, min(matrix.shape))
    torch.manual_seed(0)
    svd_lowrank(matrix, rank, grid[0], 1)  # first call: libraries load
    found = tune(attempt, grid, lambda: time.perf_counter() > stop)
    if found is None and time.perf_counter() > stop:
        raise OutOfTime(f"no setting of svd_lowrank was found in {seconds:.0f} s")
    if found is None:
        raise NotReachable(f"no setting of svd_lowrank has excess <= {target:g}")
    return found


class TunedCuSolver(CuSolver):
    """With a search for gesvdr's setting."""

    def tuned_gesvdr(
        self, matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, timer: Timer, seconds: float
    ) -> tuple[int, int]:
        """(oversample, niters), the fastest that reaches the target on this very matrix; where none does in `seconds`,
        the most accurate: twice the rank, as cuSOLVER advises, and GESVDR_MOST iterations.
        """
        stop, room = time.perf_counter() + seconds, min(matrix.shape) - rank - 1
        grid = sorted({max(0, min(p, room)) for p in (rank // 4, rank // 2, rank, 2 * rank)})

        def attempt(setting: Setting) -> tuple[float, bool]:
            taken, low = timer(lambda _: self.gesvdr(matrix, rank, setting["oversample"], setting["niter"]))
            return taken, excess(low) <= target

        self.gesvdr(matrix, rank, grid[0], 1)  # first call: libraries load
        found = tune(attempt, grid, lambda: time.perf_counter() > stop)
        return (found["oversample"], found["niter"]) if found else (grid[-1], GESVDR_MOST)
