"""Signal above what noise alone would show: the edge of the Marchenko-Pastur law, and laserRMT's heuristic of that name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laser_kernels.rank import Rule
from laser_kernels.ranks import checks
from laser_kernels.ranks.crossing import Above, Crossing
from laser_kernels.ranks.own import spectrum


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


def edge(std: float, shape: tuple[int, int]) -> float:
    """The largest singular value of (m, n) noise of standard deviation `std`, for large m, n: std (sqrt m + sqrt n)."""
    return std * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def estimated_edge(values: Tensor, shape: tuple[int, int]) -> float:
    """`edge` of the noise whose median singular value is that of `values` (Gavish, Donoho 2014)."""
    longer = max(shape)
    median = marchenko_pastur_median(min(shape) / longer) * math.sqrt(longer)
    return edge(values.median().item() / median, shape)


def laserrmt_threshold(values: Tensor, shape: tuple[int, int]) -> float:
    """laserRMT's and Spectrum's threshold: IQR(s) / 1.349 (1 + sqrt beta), beta = min / max. In the dtype of `values`.

    No edge of the Marchenko-Pastur law: the spread of singular values, not of entries, is taken for the noise.

    References:
        cognitivecomputations/laserRMT, rmt_laser_snr.py; cognitivecomputations/spectrum, spectrum.py.
    """
    spread = torch.quantile(values, 0.75) - torch.quantile(values, 0.25)
    beta = min(shape) / max(shape)
    return (spread / 1.349 * math.sqrt((1 + math.sqrt(beta)) ** 2)).item()


@dataclass(frozen=True)
class MarchenkoPastur(Rule):
    """Keeps the singular values above the largest that noise alone would have: std (sqrt m + sqrt n).

    Args:
        std: standard deviation of the noise in the entries. None: estimated from the median singular value (Gavish,
            Donoho 2014), which takes the whole spectrum.
        kind: "edge", or "laserrmt": above laserRMT's threshold instead (`laserrmt_threshold`).
    """

    std: float | None = None
    kind: str = "edge"
    name: ClassVar[str] = "marchenko_pastur"

    def __post_init__(self) -> None:
        checks.one_of(self, self.kind, ("edge", "laserrmt"), "for kind one of")
        if self.std is not None:
            checks.number(self, self.std, 0, above=True, what="a standard deviation > 0, or None")
            if self.kind == "laserrmt":
                raise ValueError(
                    f"[laser_kernels] MarchenkoPastur takes std only for kind 'edge': laserRMT estimates; got {self.std!r}"
                )

    def crossing(self, shape: tuple[int, int]) -> Crossing | None:
        return None if self.std is None else Above(absolute=edge(self.std, shape))

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values)
        size = shape or (len(s), len(s))
        if self.kind == "laserrmt":
            return int((s > laserrmt_threshold(s, size)).sum())
        return int((s > (estimated_edge(s, size) if self.std is None else edge(self.std, size))).sum())
