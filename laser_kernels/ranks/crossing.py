"""Where a descending spectrum crosses a line, told from bounds on its leading values."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 1 << 40  # more values than any matrix has


@dataclass(frozen=True)
class Leading:
    """Bounds on the leading squares s_1^2 >= ... >= s_r^2 of a spectrum and on their sums, all (r,) float64.

    energy: the sum of all squares, ||A||_F^2. whole: there are no others.
    """

    low: Tensor
    high: Tensor
    low_sum: Tensor
    high_sum: Tensor
    energy: float
    whole: bool = False

    @property
    def side(self) -> int:
        return len(self.low)


class Crossing(abc.ABC):
    """A line that the spectrum crosses once."""

    @abc.abstractmethod
    def bracket(self, known: Leading) -> tuple[int, int | None]:
        """The least and the largest number of values up to the crossing; None: it may lie beyond the known ones."""

    @abc.abstractmethod
    def estimate(self, known: Leading) -> tuple[int, bool]:
        """About how many values up to the crossing; whether the known ones reach it (else: at least so many, a guess)."""

    @abc.abstractmethod
    def wanted(self, known: Leading) -> float:
        """How narrow the bounds must be to tell, roughly, in units of s^2."""

    def in_units(self, unit: float) -> Crossing:
        """The same line for values divided by `unit`."""
        return self


def _first(reached: Tensor) -> int | None:
    """Position, from 1, of the first True."""
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else None


@dataclass(frozen=True)
class Share(Crossing):
    """The first k with s_1^2 + ... + s_k^2 >= share ||A||_F^2."""

    share: float

    def bracket(self, known: Leading) -> tuple[int, int | None]:
        target = self.share * known.energy
        least = _first(known.high_sum >= target)
        most = _first(known.low_sum >= target)
        if known.whole:
            return least or known.side, most or known.side
        return least or known.side + 1, most

    def estimate(self, known: Leading) -> tuple[int, bool]:
        reached = _first(known.low_sum >= self.share * known.energy)
        if reached is not None:
            return reached, True
        missing = self.share * known.energy - known.low_sum[-1].item()
        return known.side + 1 + int(missing / max(known.low[-1].item(), missing / MOST)), False

    def wanted(self, known: Leading) -> float:
        return known.low[self.estimate(known)[0] - 1].item() / 50  # leaves one cut in 25 to the exact spectrum


@dataclass(frozen=True)
class Above(Crossing):
    """The number of s > max(absolute, relative s_1)."""

    absolute: float = 0.0
    relative: float = 0.0

    def _level(self, square: Tensor) -> float:
        return max(self.absolute**2, self.relative**2 * square.clamp_min(0).item())

    def bracket(self, known: Leading) -> tuple[int, int | None]:
        least = int((known.low > self._level(known.high[0])).sum())
        most = int((known.high > self._level(known.low[0])).sum())
        return least, most if most < known.side or known.whole else None

    def estimate(self, known: Leading) -> tuple[int, bool]:
        count = int((known.low > self._level(known.low[0])).sum())
        return count, count < known.side

    def wanted(self, known: Leading) -> float:
        return (known.low - self._level(known.low[0])).abs().min().item() / 2

    def in_units(self, unit: float) -> Above:
        return Above(self.absolute / unit, self.relative)


def exactly(values: Tensor, energy: float, slack: float) -> Leading:
    """A whole spectrum of squares, each known up to `slack`."""
    sums, doubt = values.cumsum(0), slack * torch.arange(1, len(values) + 1, device=values.device)
    return Leading(values - slack, values + slack, sums - doubt, sums + doubt, energy, whole=True)
