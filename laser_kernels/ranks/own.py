"""Rules of our own: what is to be kept, in the words of linear algebra. Values s_1 >= s_2 >= ... of A (m, n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import torch
from torch import Tensor

from laser_kernels.rank import Rule, resolve_rank
from laser_kernels.ranks import checks
from laser_kernels.ranks.crossing import Above, Crossing, Share


class ShapeRule(Rule):
    """A rule that needs only the shape."""

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        found = self.of_shape(*(shape or (len(values), len(values))))
        assert found is not None
        return found


def spectrum(values: Tensor | Sequence[float]) -> Tensor:
    """`values` as a tensor; numbers become float64."""
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)


def first_reaching(part: Tensor, level: Tensor | float) -> int:
    """The number of entries of the ascending `part` up to the first one >= level."""
    return min(len(part), int((part < level).sum()) + 1)


@dataclass(frozen=True)
class Fixed(ShapeRule):
    """Keeps `rank` values of every matrix; fewer, with a warning, where the matrix has fewer."""

    rank: int
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        checks.whole(self, self.rank, "an int >= 1")

    def of_shape(self, rows: int, cols: int) -> int:
        return self.rank


@dataclass(frozen=True)
class Fraction(ShapeRule):
    """Keeps floor(share min(m, n)) values, at least 1: what a float `rank` means."""

    share: float
    name: ClassVar[str] = "fraction"

    def __post_init__(self) -> None:
        checks.number(self, self.share, 0, 1, above=True, what="a share in (0, 1] of the short side")

    def of_shape(self, rows: int, cols: int) -> int:
        return resolve_rank(float(self.share), rows, cols)


@dataclass(frozen=True)
class ParamBudget(ShapeRule):
    """Keeps as many values as two factors (m, k) and (k, n) may hold of `keep` m n numbers: floor(keep m n / (m + n)).

    align: down to a multiple of this (so never beyond the budget), where that leaves any.
    """

    keep: float
    align: int = 1
    name: ClassVar[str] = "param_budget"

    def __post_init__(self) -> None:
        checks.number(self, self.keep, 0, 1, above=True, what="a share in (0, 1] of the matrix's numbers")
        checks.whole(self, self.align, "a multiple >= 1 for the rank (align)")

    def of_shape(self, rows: int, cols: int) -> int:
        count = int(Decimal(repr(self.keep)) * rows * cols / (rows + cols))
        return count // self.align * self.align or count


@dataclass(frozen=True)
class Energy(Rule):
    """The least k whose values hold `share` of the energy: s_1^2 + ... + s_k^2 >= share ||A||_F^2."""

    share: float
    name: ClassVar[str] = "energy"

    def __post_init__(self) -> None:
        checks.number(self, self.share, 0, 1, above=True, what="a share in (0, 1] of ||A||_F^2")

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Share(self.share)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        sums = spectrum(values).square().cumsum(0)
        return first_reaching(sums, self.share * sums[-1])


@dataclass(frozen=True)
class Frobenius(Rule):
    """The least k >= 1 whose truncation is within `residual` of A: ||A - A_k||_F <= residual ||A||_F.

    residual 0.1 is a share of energy of 0.99: Frobenius(e) is Energy(1 - e^2), without its rounding at small e.
    """

    residual: float
    name: ClassVar[str] = "frobenius"

    def __post_init__(self) -> None:
        checks.number(self, self.residual, 0, math.nextafter(1, 0), what="a residual >= 0 and < 1, relative to ||A||_F")

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Share(1 - self.residual**2)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        tails = spectrum(values).square().flip(0).cumsum(0).flip(0)  # tails[k] is what rank k leaves
        return max(1, int((tails > self.residual**2 * tails[0]).sum()))


@dataclass(frozen=True)
class Nuclear(Rule):
    """The least k whose values hold `share` of the nuclear norm: s_1 + ... + s_k >= share (s_1 + s_2 + ...)."""

    share: float
    name: ClassVar[str] = "nuclear"

    def __post_init__(self) -> None:
        checks.number(self, self.share, 0, 1, above=True, what="a share in (0, 1] of the nuclear norm")

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        sums = spectrum(values).cumsum(0)
        return first_reaching(sums, self.share * sums[-1])


@dataclass(frozen=True)
class Ratio(Rule):
    """Keeps the values above `share` of the largest: s > share s_1."""

    share: float
    name: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        checks.number(self, self.share, 0, 1, what="a share in 0..1 of the largest singular value")

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Above(relative=self.share)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values)
        return int((s > self.share * s[0]).sum())


@dataclass(frozen=True)
class Threshold(Rule):
    """Keeps the values above `sigma` (absolute, in the units of the matrix)."""

    sigma: float
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        checks.number(self, self.sigma, 0, what="a singular value >= 0")

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Above(absolute=self.sigma)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        return int((spectrum(values) > self.sigma).sum())


@dataclass(frozen=True)
class Knee(Rule):
    """Keeps the values up to the knee: the point of the curve (i, s_i) farthest below its chord.

    Both axes scaled to 0..1, the value at the knee not kept. A curve that nowhere lies below its chord by more than
    rounding has no knee: all values are kept.

    References:
        Satopaa, Albrecht, Irwin, Raghavan: Finding a "Kneedle" in a Haystack (2011), section III, without smoothing.
    """

    name: ClassVar[str] = "knee"

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values).double()
        along = torch.linspace(0, 1, len(s), dtype=s.dtype, device=s.device)
        below = (1 - along) * (s[0] - s[-1]) - (s - s[-1])
        at = int(below.argmax())
        return at if below[at] > len(s) * torch.finfo(s.dtype).eps * s[0] else len(s)
