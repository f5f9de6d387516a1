"""The setting of a randomized peer that hindsight would choose: the fastest that reaches the asked excess."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from laser_kernels.bench.peers import MAX_ITERATIONS, Setting


def tune(
    attempt: Callable[[Setting], tuple[float, bool]], grid: Iterable[int], expired: Callable[[], bool]
) -> Setting | None:
    """Fastest (oversample, niter) of one pass; None where none reaches the target in time.

    attempt(setting) -> (seconds, whether it reaches). For each oversampling, largest first, niter grows until the target
    is met or the call is slower than the best so far; it starts where the larger block reached, for a smaller one needs
    at least as many.
    """
    best: Setting | None = None
    limit, fewest = math.inf, 1
    for oversample in sorted(grid, reverse=True):
        for niter in range(fewest, MAX_ITERATIONS + 1):
            if expired():
                return best
            setting = {"oversample": oversample, "niter": niter}
            seconds, reaches = attempt(setting)
            if seconds > limit:
                break
            if reaches:
                best, limit, fewest = setting, seconds, niter
                break
    return best
