"""The Eckart-Young optimum of a matrix in float64, and how far a result may be from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Below this share of the energy the tail is taken from an SVD: squares of a float64 Gram matrix are exact to eps64.
GRAM_SHARE = 1e-9
FLOOR = 32.0  # the contract's c in residual <= (1 + tol) tail + c eps ||A||
UNIT_ROUNDOFF = {"bfloat16": 2.0**-9, "float16": 2.0**-11}


@dataclass(frozen=True)
class Optimum:
    """What rank r can reach on one matrix."""

    norm: float
    tail: float

    @classmethod
    def of(cls, matrix: Tensor, ranks: list[int]) -> dict[int, Optimum]:
        """For each rank; one decomposition."""
        a = matrix.double()
        a = a if a.shape[0] >= a.shape[1] else a.mT
        squares = torch.linalg.eigvalsh(a.mT @ a).clamp_min(0).flip(0)
        total = squares.sum().item()
        if any(0 < rank < len(squares) and squares[rank:].sum().item() < GRAM_SHARE * total for rank in ranks):
            squares = torch.linalg.svdvals(a).square()
        return {rank: cls(math.sqrt(total), math.sqrt(squares[rank:].sum().item())) for rank in ranks}

    def excess(self, residual: float) -> float:
        """residual / tail - 1; where the tail is zero: 0 at the rounding floor of float32, else infinite."""
        if self.tail > 0:
            return residual / self.tail - 1
        return 0.0 if residual <= FLOOR * torch.finfo(torch.float32).eps * self.norm else math.inf

    def reaches(self, residual: float, tol: float, dtype: str) -> bool:
        """Whether `residual` is what the contract allows for a result stored in `dtype`.

        Rounding A_r to 16 bits adds at most the unit roundoff of every entry, independent of what is missing already.
        """
        eps = torch.finfo(torch.float64 if dtype == "float64" else torch.float32).eps
        kept = math.sqrt(max(0.0, self.norm**2 - self.tail**2))
        allowed = (1 + tol) * self.tail + FLOOR * eps * self.norm
        return residual <= math.hypot(allowed, UNIT_ROUNDOFF.get(dtype, 0.0) * kept)

    def impossible(self, residual: float) -> bool:
        """Whether no rank-r matrix, rounded or not, can be this good, or no sane method this bad."""
        slack = FLOOR * torch.finfo(torch.float32).eps * self.norm
        return not (0.99 * self.tail - slack <= residual <= 1.01 * self.norm + slack)
