"""LASER's own function."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from laser_kernels.api import low_rank
from laser_kernels.compat.accuracy import accepted


def do_low_rank(weight: Tensor, k: float, debug: bool = False, niter: int = 2) -> nn.Parameter:
    """The rank-int(min(m, n) k) approximation of a weight (m, n), dense, as a Parameter of the weight's dtype.

    Guarantees: LASER's rank, float trap included: its callers pass k = (10 - rate) * 0.1, and int() of the binary product
    may be one short (rate 9.9 of 1000 columns gives 9). Residual at most (1 + tol) of the optimum as low_rank states it,
    where LASER's sketch without oversampling is 1 to 10 % above. k that gives rank 0 gives the zero matrix, as an empty
    factorization does in LASER; rank min(m, n) gives the weight. Not guaranteed: LASER's random numbers.

    Args:
        weight: (m, n) float32, float64, bfloat16 or float16; not changed.
        k: the fraction of the rank to keep, >= 0. Above 1 it counts as 1, with a warning.
        debug: print shape, dtype and rank.
        niter: 2 or 20 in LASER; a wish for accuracy (compat.accuracy.accepted): tol is 1e-3 up to 6, 1e-4 from 9 on.

    Raises:
        ValueError: weight is not 2-D, or k is negative or not finite. NonFiniteError: NaN or Inf in the weight.

    References:
        pratyushasharma/laser, src/laser/matrix_utils.py.
    """
    if weight.ndim != 2:
        raise ValueError(
            f"[laser_kernels::do_low_rank] weight must be 2-D; got shape {tuple(weight.shape)}: "
            "pass one matrix at a time, or a stack to laser_kernels.low_rank"
        )
    if not 0 <= k < float("inf"):
        raise ValueError(f"[laser_kernels::do_low_rank] k must be a fraction >= 0 of the rank to keep; got {k!r}")
    side = min(weight.shape)
    rank = int(side * k)
    if rank > side:
        warnings.warn(
            f"[laser_kernels::do_low_rank] k={k!r} asks for rank {rank} of a {tuple(weight.shape)} weight: "
            f"{side} is taken",
            stacklevel=2,
        )
        rank = side
    if debug:
        print(f"do_low_rank: shape {tuple(weight.shape)}, {weight.dtype}, rank {rank} of {side}")
    if rank == 0:
        return nn.Parameter(torch.zeros_like(weight))
    return nn.Parameter(low_rank(weight, rank, tol=accepted(niter)))
