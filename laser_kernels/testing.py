"""Matrix families with known spectra, and tolerances as formulas: shared by tests/ and bench/."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The contract's c in residual <= (1 + tol) tail + c eps ||A|| (csrc: kFloor).
FLOOR = 32.0


def eps(dtype: torch.dtype) -> float:
    """Spacing at 1 of the type the result is computed for: float64 for float64, float32 for all narrower ones."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(m: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(m, n) standard normal: the same numbers on every device, where torch's default device says."""
    return torch.randn(m, n, generator=generator(seed), dtype=dtype, device="cpu").to(torch.get_default_device())


def orthonormal(n: int, k: int, seed: int) -> Tensor:
    """(n, k) float64 with orthonormal columns, Haar."""
    return torch.linalg.qr(gaussian(n, k, seed)).Q


def with_spectrum(m: int, n: int, sigma: Tensor, seed: int = 0) -> Tensor:
    """(m, n) float64 with these min(m, n) singular values."""
    k = min(m, n)
    return (orthonormal(m, k, seed) * sigma.double()) @ orthonormal(n, k, seed + 1).mT


def llm_like(m: int, n: int, seed: int = 0) -> Tensor:
    """float32 Gaussian / sqrt(n) plus spikes 6 i^-0.6 in n/8 directions, as weights have them."""
    g = generator(seed)
    side = min(m, n)
    k = max(1, side // 8)
    with torch.device("cpu"):
        bulk = torch.randn(m, n, generator=g) / math.sqrt(side)
        u = torch.linalg.qr(torch.randn(m, k, generator=g)).Q
        v = torch.linalg.qr(torch.randn(n, k, generator=g)).Q
        a = bulk + (u * (6 * torch.arange(1, k + 1) ** -0.6)) @ v.mT
    return a.to(torch.get_default_device())


def _clustered(m: int, n: int, rank: int) -> Tensor:
    k = min(m, n)
    sigma = torch.linspace(3, 2, k, dtype=torch.float64)
    sigma[max(0, rank - 3) : rank + 3] = 2.5  # sigma_r = sigma_{r+1}
    return with_spectrum(m, n, sigma.sort(descending=True).values)


def _one_huge(m: int, n: int) -> Tensor:
    a = gaussian(m, n, 5)
    a[m // 2, n // 3] = 1e6
    return a


def _zero_columns(m: int, n: int) -> Tensor:
    a = gaussian(m, n, 6)
    a[:, :: max(2, n // 5)] = 0
    return a


def _condition(m: int, n: int, kappa: float) -> Tensor:
    return with_spectrum(m, n, torch.logspace(0, -math.log10(kappa), min(m, n), dtype=torch.float64))


# name -> (m, n, rank) -> float64 matrix. `rank` only where the family is built around the cut.
FAMILIES: dict[str, Callable[[int, int, int], Tensor]] = {
    "exact_rank": lambda m, n, r: with_spectrum(m, n, (torch.arange(min(m, n)) < r).double() * 2),
    "condition_1e0": lambda m, n, r: _condition(m, n, 1.0),
    "condition_1e3": lambda m, n, r: _condition(m, n, 1e3),
    "condition_1e6": lambda m, n, r: _condition(m, n, 1e6),
    "power_law": lambda m, n, r: with_spectrum(m, n, torch.arange(1, min(m, n) + 1).double() ** -0.5),
    "spiked": lambda m, n, r: llm_like(m, n).double(),
    "gaussian": lambda m, n, r: gaussian(m, n, 7),
    "clustered": _clustered,
    "zero": lambda m, n, r: torch.zeros(m, n, dtype=torch.float64),
    "zero_columns": lambda m, n, r: _zero_columns(m, n),
    "one_huge": lambda m, n, r: _one_huge(m, n),
    "denormal": lambda m, n, r: gaussian(m, n, 8) * 1e-40,
    "scale_1e30": lambda m, n, r: llm_like(m, n, 1).double() * 1e30,
    "scale_1e-30": lambda m, n, r: llm_like(m, n, 2).double() * 1e-30,
}


def optimal_residual(a: Tensor, rank: int) -> float:
    """The least ||A - X||_F over rank-r X: Eckart-Young, from float64 singular values."""
    s = torch.linalg.svdvals(a.double().cpu())
    return torch.linalg.vector_norm(s[rank:]).item()


def residual(a: Tensor, x: Tensor) -> float:
    """||a - x||_F in float64, safe where squares would leave the range."""
    d = a.double() - x.double()
    top = d.abs().max().item()
    return top * torch.linalg.vector_norm(d / top).item() if top > 0 else 0.0


def norm(a: Tensor) -> float:
    return residual(a, torch.zeros_like(a))


def residual_bound(a: Tensor, rank: int, tol: float) -> float:
    """The contract: what ||A - A_r||_F may be before rounding to A's dtype."""
    return (1 + tol) * optimal_residual(a, rank) + FLOOR * eps(a.dtype) * norm(a)


def orthonormality_bound(dtype: torch.dtype, columns: int) -> float:
    """max |Q^T Q - I| of a basis of `columns` vectors: rounding of inner products and of a triangular solve."""
    return 8 * eps(dtype) * math.sqrt(max(columns, 16))
