"""What excess a drop-in accepts where the signature it imitates has no word for it."""

from __future__ import annotations

import math

# The library's own default.
DEFAULT_TOL = 1e-3
# The finest that a wish in iterations gets. On the families of laser_kernels.testing and on LLM-like matrices
# torch.svd_lowrank with niter=16 leaves an excess of 1e-5...3e-3, mostly above 1e-4; this tol at most 5e-5.
FINEST_TOL = 1e-4

# What each open patch asks for, in the order of their opening. As patches do, it holds in every thread.
asked: dict[object, float] = {}


def accepted(iterations: int | None = None) -> float:
    """The tol for a caller who asked for so many subspace iterations (None: for an exact SVD).

    The innermost patch says, 1e-3 where there is none. Iterations are a wish for accuracy: the tol that as many
    multiplications by A^T A reach on LLM-like spectra (the inverse of dispatch.expected_multiplies), if that is finer.
    """
    tol = next(reversed(asked.values()), DEFAULT_TOL)
    if iterations is None:
        return tol
    return min(tol, max(FINEST_TOL, math.pow(10, -(max(iterations, 0) + 1) / 2.5)))
