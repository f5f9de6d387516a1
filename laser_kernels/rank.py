"""What a `rank` argument means: a count, a fraction of the short side, or a rule (laser_kernels.ranks)."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from laser_kernels.caller import warn

if TYPE_CHECKING:
    from laser_kernels.ranks.crossing import Crossing


class Rule(abc.ABC):
    """A rank rule: a frozen value that finds the rank of each matrix it is given.

    Rules differ in what they need, and only that much is computed: a shape (`of_shape`), the leading singular values and
    the exact energy (`crossing`), or the whole spectrum.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        """The rank for all singular values of a matrix, descending, before any clamp. Pure, in the dtype of `values`.

        Args:
            values: (min(m, n),) singular values, descending.
            shape: (m, n), which some rules need. Default: square.
        """

    def of_shape(self, rows: int, cols: int) -> int | None:
        """The rank for any (rows, cols) matrix, before any clamp; None where its values decide."""
        return None

    def crossing(self, shape: tuple[int, int]) -> Crossing | None:
        """What the leading values must reach, if they are enough to decide; None: the whole spectrum is needed."""
        return None

    def finish(self, count: int, shape: tuple[int, int], sigma_1: float) -> int:
        """The rank, before any clamp, from the number of values up to the crossing; never falls as `count` grows."""
        return count

    def found(self, a: Tensor) -> int:
        """The rank for a (m, n), before any clamp. 1 where `a` is not finite: whoever reduces it refuses it by name."""
        given = self.of_shape(*a.shape)
        if given is not None:
            return given
        if not torch.isfinite(a).all():
            return 1
        from laser_kernels.ranks.search import find  # uses truncated_svd, whose door asks rules

        return find(a, self)

    def of(self, a: Tensor) -> int:
        """The rank for a (m, n): what is found, clamped to 1..min(m, n) with a warning."""
        return clamped(self, self.found(a), *a.shape)

    @property
    def spec(self) -> str:
        """The text from which `ranks.from_spec` makes an equal rule: "energy:share=0.9"."""
        fields = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        values = ",".join(f"{key}={value}" for key, value in fields if value is not None)
        return f"{self.name}:{values}" if values else self.name


def clamp(rule: Rule, found: int, rows: int, cols: int) -> tuple[int, str | None]:
    """`found` within 1..min(rows, cols), and a sentence where that changes it."""
    rank = max(1, min(found, rows, cols))
    return rank, None if rank == found else f"{rule} gives rank {found} for a {(rows, cols)} matrix: {rank} is taken"


def clamped(rule: Rule, found: int, rows: int, cols: int) -> int:
    """`clamp`, its sentence as a warning."""
    rank, said = clamp(rule, found, rows, cols)
    if said:
        warn(f"[laser_kernels] {said}")
    return rank


def resolve_rank(rank: int | float | Rule, rows: int, cols: int) -> int:
    """The number of singular triples that `rank` asks of a (rows, cols) matrix.

    An integer is taken as it is and must lie in 1..min(rows, cols). A float in (0, 1] is a fraction of
    min(rows, cols): floor(Decimal(repr(rank)) * min(rows, cols)), at least 1, so that 0.7 of 10 is 7 (binary
    floating point would say 6). A rule that needs only the shape answers, clamped.

    Raises:
        TypeError: `rank` is not a number (bool counts as none), or a rule that needs the matrix itself.
        ValueError: `rank` is out of range or not finite.
    """
    side = min(rows, cols)
    if isinstance(rank, Rule):
        found = rank.of_shape(rows, cols)
        if found is None:
            raise TypeError(
                f"[laser_kernels] {rank} finds a rank from a matrix's singular values, and only a shape is known here: "
                "pass a number, or first the matrix to rule.of(matrix)"
            )
        return clamped(rank, found, rows, cols)
    if isinstance(rank, bool) or not isinstance(rank, numbers.Real):
        raise TypeError(
            f"[laser_kernels] rank must be an int, a float or a rule of laser_kernels.ranks; got {rank!r} "
            f"({type(rank).__name__})"
        )
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
