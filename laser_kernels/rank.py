"""What a `rank` argument means: a count, or a fraction of the short side."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal


def resolve_rank(rank: int | float, rows: int, cols: int) -> int:
    """The number of singular triples that `rank` asks of a (rows, cols) matrix.

    An integer is taken as it is and must lie in 1..min(rows, cols). A float in (0, 1] is a fraction of
    min(rows, cols): floor(Decimal(repr(rank)) * min(rows, cols)), at least 1, so that 0.7 of 10 is 7 (binary
    floating point would say 6).

    Raises:
        TypeError: `rank` is not a number (bool counts as none).
        ValueError: `rank` is out of range or not finite.
    """
    side = min(rows, cols)
    if isinstance(rank, bool) or not isinstance(rank, numbers.Real):
        raise TypeError(f"[laser_kernels] rank must be an int or a float; got {rank!r} ({type(rank).__name__})")
    if isinstance(rank, numbers.Integral):
        if not 1 <= int(rank) <= side:
            raise ValueError(
                f"[laser_kernels] rank must be in 1..min(m, n) = {side} for a {rows}x{cols} matrix; got {int(rank)}"
            )
        return int(rank)
    fraction = float(rank)
    if not (math.isfinite(fraction) and 0.0 < fraction <= 1.0):
        raise ValueError(
            f"[laser_kernels] a float rank is a fraction in (0, 1] of min(m, n); got {rank!r}: "
            "pass an int for a number of singular values"
        )
    return max(1, int(Decimal(repr(fraction)) * side))
