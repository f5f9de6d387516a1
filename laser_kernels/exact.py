"""All singular values of one matrix in float64: from A^T A where that can tell, by LAPACK's SVD where it cannot.

An eigensolver's values of A^T A cost a small part of what LAPACK's SVD takes in float64, and are known to n eps s_1^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 23  # 64 MiB of float64: what is converted at a time
RESOLVED = 1e-8  # least square, relative to the largest, that `singular_values` takes from A^T A: known to n eps / 1e-8


class Squares(NamedTuple):
    """squares: (n,) float64, the s_i^2 / unit^2, descending, each to `slack`. energy: ||A||_F^2 / unit^2, to rounding."""

    squares: Tensor
    slack: float
    energy: float
    unit: float


def _tall(a: Tensor) -> Tensor:
    return a if a.shape[0] >= a.shape[1] else a.mT


def unit_of(a: Tensor) -> float:
    """The largest |entry|, by which a matrix is divided so that squares stay in range; 1 for a zero matrix."""
    return a.abs().max().double().item() or 1.0


def squares(a: Tensor) -> Squares:
    """Squares of the singular values of a finite (m, n), from A^T A formed in float64 by blocks of rows."""
    tall, unit = _tall(a), unit_of(a)
    n = tall.shape[1]
    gram = torch.zeros(n, n, dtype=torch.float64, device=a.device)
    for block in tall.split(max(1, BLOCK_ELEMENTS // n)):
        wide = block.double() / unit
        gram.addmm_(wide.mT, wide)
    values = torch.linalg.eigvalsh(gram).flip(0)
    # Weyl, and LAPACK's p(n) eps ||G|| with p(n) = n (Anderson et al., LAPACK Users' Guide, 3rd ed., section 4.7)
    slack = n * torch.finfo(torch.float64).eps * values[0].clamp_min(0).item()
    return Squares(values.clamp_min(0), slack, gram.trace().item(), unit)


def energy(a: Tensor, unit: float) -> float:
    """||A||_F^2 / unit^2 in float64, by blocks of rows."""
    blocks = _tall(a).split(max(1, BLOCK_ELEMENTS // min(a.shape)))
    return sum((block.double() / unit).square().sum().item() for block in blocks)


def by_svd(a: Tensor) -> Tensor:
    """Singular values of (m, n), descending, by LAPACK in float64: each to n eps s_1."""
    unit = unit_of(a)
    return torch.linalg.svdvals(_tall(a).double() / unit) * unit


def singular_values(a: Tensor) -> Tensor:
    """(min(m, n),) float64, descending: from A^T A up to a condition of 1e4, by LAPACK's SVD beyond."""
    found = squares(a)
    if found.squares[-1] > RESOLVED * found.squares[0]:
        return found.squares.sqrt() * found.unit
    return by_svd(a)
