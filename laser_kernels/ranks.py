"""Rank rules: objects that may stand wherever `rank` is, and find each matrix's own.

lk.low_rank(A, Threshold(0.5))              keeps the singular values above 0.5
lk.low_rank(A, MarchenkoPastur(std=0.02))   keeps those that noise of this standard deviation cannot explain
"""

from __future__ import annotations

import abc
import math
import warnings

import torch
from torch import Tensor

from laser_kernels import ops

# count_eigenvalues' own measure of what it could not tell; beyond it the spectrum is computed.
UNRESOLVED = 0.1


def count_above(a: Tensor, sigma: float) -> int:
    """How many singular values of a (m, n) exceed sigma.

    On a GPU by the projector of csrc/core/spectral.cpp (numerics: `trace(P)`), which needs products and a Cholesky
    factorization, no spectrum; where that cannot tell, and on a CPU, from the singular values in float64.
    """
    if a.is_cuda and ops.COMPILED_CUDA and sigma > 0:
        kernels, top = ops.backend(a.device), a.abs().max().double().clamp_min(1e-300).item()
        scaled = (a.double() / top).to(torch.float64 if a.dtype == torch.float64 else torch.float32)
        above, unresolved = kernels.count_eigenvalues(kernels.gram(scaled[None]), [(sigma / top) ** 2])[0].tolist()
        if unresolved <= UNRESOLVED:
            return int(above)
    return int((torch.linalg.svdvals(a.double()) > sigma).sum())


def marchenko_pastur_median(beta: float) -> float:
    """Median singular value of an (m, n) Gaussian matrix of variance 1 / max(m, n), beta = min / max.

    Source: Gavish, Donoho: The optimal hard threshold for singular values is 4/sqrt(3) (2014), section III.E.
    """
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    theta = torch.linspace(0, math.pi, 20001, dtype=torch.float64)  # eigenvalue = middle - radius cos(theta)
    x = ((high + low) / 2 - (high - low) / 2 * theta.cos()).clamp_min(1e-300)
    density = ((high - low) / 2 * theta.sin()) ** 2 / (2 * math.pi * beta * x)
    mass = torch.cumulative_trapezoid(density, theta)
    return math.sqrt(x[1:][torch.searchsorted(mass, mass[-1] / 2)].item())


class Rule(abc.ABC):
    """Finds the rank of a matrix."""

    @abc.abstractmethod
    def count(self, a: Tensor) -> int:
        """The number of singular values to keep, before it is clamped."""

    def of(self, a: Tensor) -> int:
        """The rank for a (m, n): the count, clamped to 1..min(m, n) with a warning."""
        if not torch.isfinite(a).all():
            return 1  # whoever reduces the matrix refuses it by name
        found, side = self.count(a), min(a.shape)
        rank = max(1, min(found, side))
        if rank != found:
            warnings.warn(f"[laser_kernels] {self} gives rank {found} for a {tuple(a.shape)} matrix: {rank} is taken",
                          stacklevel=4)  # fmt: skip
        return rank


class Threshold(Rule):
    """Keeps the singular values above `sigma` (absolute, in the units of the matrix)."""

    def __init__(self, sigma: float):
        if not 0 <= sigma < math.inf:
            raise ValueError(f"[laser_kernels] Threshold takes a singular value >= 0; got {sigma!r}")
        self.sigma = float(sigma)

    def __repr__(self) -> str:
        return f"Threshold({self.sigma:g})"

    def count(self, a: Tensor) -> int:
        return count_above(a, self.sigma)


class MarchenkoPastur(Rule):
    """Keeps the singular values above the largest that noise alone would have: std (sqrt m + sqrt n).

    Args:
        std: standard deviation of the noise in the entries. None: estimated from the median singular value (Gavish,
            Donoho 2014), which takes the whole spectrum.
    """

    def __init__(self, std: float | None = None):
        if std is not None and not 0 < std < math.inf:
            raise ValueError(f"[laser_kernels] MarchenkoPastur takes a standard deviation > 0, or None; got {std!r}")
        self.std = std

    def __repr__(self) -> str:
        return f"MarchenkoPastur(std={self.std})"

    def count(self, a: Tensor) -> int:
        m, n = a.shape
        if self.std is not None:
            return count_above(a, self.std * (math.sqrt(m) + math.sqrt(n)))
        values = torch.linalg.svdvals(a.double())
        median = marchenko_pastur_median(min(m, n) / max(m, n)) * math.sqrt(max(m, n))
        std = values.median().item() / median
        return int((values > std * (math.sqrt(m) + math.sqrt(n))).sum())
