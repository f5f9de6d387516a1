"""The truncated SVD that is best for the inputs a weight sees, instead of for all inputs alike."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laser_kernels.api import truncated_svd
from laser_kernels.arrays import back_to
from laser_kernels.canonical import as_tensor
from laser_kernels.ranks import Rule


class WeightedSVD(NamedTuple):
    """W ~ B A. B (m, r) with orthonormal columns, A (r, n).

    S (r), float64: the leading singular values of W R. error: ||(W - B A) R||_F of the factors as
    returned, measured in float64. relative_error: error / ||W R||_F, 0 where that is 0.
    """

    B: Any
    A: Any
    S: Any
    error: float
    relative_error: float


def weighted_svd(
    W: Any, rank: Any, *, right: Any, tol: float | None = 1e-3, seed: int = 0, key: int = 0
) -> WeightedSVD:
    """Factors of rank r with the least weighted error ||(W - B A) R||_F.

    With inputs x of covariance C = E[x x^T] and R = C^(1/2) that error is the root mean square of (W - B A) x: what the
    layer's output loses. The optimum is known: U, the leading left singular vectors of W R, give B = U and A = U^T W, and
    the error is the tail of the singular values of W R (Eckart-Young). Written so, nothing is divided by R: the usual
    A = S V^T R^-1 is the same matrix where R is invertible, and breaks where it is not. Any H with H H^T = C serves in
    place of R: the Cholesky factor, or, where C is only semidefinite, Q Lambda^(1/2) of its eigenvectors, without
    eigenvalues up to n eps lambda_max, which are rounding.

    Guarantees: error <= (1 + tol) sqrt(sum_{i>r} sigma_i(W R)^2) + c eps ||W||_F ||R||_2 (c = 32; eps is float32's, or
    float64's for float64 W), for any R, singular ones included; a covariance adds sqrt(n eps) ||W||_F ||R||_2 of float64,
    what the roots of its eigenvalues know of the small ones. Where R gives an input no weight, A is still U^T W there.
    Same bits as truncated_svd promises. Not guaranteed: that U's columns outside the range of R mean anything (zero R).

    Args:
        W: (m, n); dtypes as for truncated_svd, torch or NumPy. For weights on the rows pass W^T, and transpose B A.
        rank: as for truncated_svd, of W R: an int, a fraction of min(m, n), or a rule.
        right: (n,) numbers >= 0: R = diag(right) (ASVD's scales; zeros: inputs that do not count); or (n, n) symmetric
            positive semidefinite: the covariance C, R = C^(1/2) (SVD-LLM, CorDA, EoRA). Best in float64; not divided by the
            number of samples is as good, since only ratios count.
        tol, seed, key: as for truncated_svd, of W R.

    Raises:
        TypeError, ValueError: shapes or dtypes; `right` negative, asymmetric, indefinite (an eigenvalue below
        -n eps lambda_max of its dtype) or not finite. NonFiniteError: NaN or Inf in W.

    References:
        Yuan et al.: ASVD, arXiv 2312.05821. Wang et al.: SVD-LLM, arXiv 2403.07378. Liu et al.: EoRA, arXiv 2410.21271.
        Yang et al.: CorDA, arXiv 2406.05223.
    """
    weight = as_tensor(W, "weighted_svd", "W")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"[laser_kernels::weighted_svd] W must be one (m, n) matrix; got shape {tuple(weight.shape)}")
    given = as_tensor(right, "weighted_svd", "right").to(weight.device)
    wide = weight.double()
    half = _half(given, weight.shape[1])
    seen = wide * half if half.dim() == 1 else wide @ half
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    top = seen.abs().max().item()
    exponent = math.frexp(top)[1] if 0 < top < math.inf else 0  # float32 holds W R whatever its unit
    scaled = torch.ldexp(seen, torch.tensor(-exponent, device=seen.device)).to(dtype)
    if isinstance(rank, Rule):
        rank = rank.of(seen)
    u, s, _ = truncated_svd(scaled, rank, tol=tol, seed=seed, key=key)
    b, a = u, (u.double().mT @ wide).to(dtype)
    kept = a.double() * half if half.dim() == 1 else a.double() @ half
    error = torch.linalg.vector_norm(seen - b.double() @ kept).item()
    whole = torch.linalg.vector_norm(seen).item()
    s = torch.ldexp(s.double(), torch.tensor(exponent, device=s.device))
    back = back_to(W)
    return WeightedSVD(back(b), back(a), back(s), error, error / whole if whole > 0 else 0.0)


def _half(right: Tensor, n: int) -> Tensor:
    """H with H H^T = R R^T in float64: (n,) for a diagonal, else (n, n)."""
    where, given = "[laser_kernels::weighted_svd] right", right.double()
    if right.shape not in ((n,), (n, n)):
        raise ValueError(
            f"{where} must be ({n},) scales or a ({n}, {n}) covariance for W's columns; got {tuple(right.shape)}"
        )
    if not given.isfinite().all():
        raise ValueError(f"{where} holds NaN or Inf: collect it again, in float64")
    if given.dim() == 1:
        if (given < 0).any():
            raise ValueError(f"{where}: scales must be >= 0; got {given.min().item():.3g}")
        return given
    eps = torch.finfo(right.dtype).eps
    if (given - given.mT).abs().max() > n * eps * given.abs().max():
        raise ValueError(f"{where} must be symmetric: average it with its transpose if that is what it should be")
    given = (given + given.mT) / 2
    factor, failed = torch.linalg.cholesky_ex(given)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(given)
    largest = values[-1].clamp_min(0)
    if values[0] < -n * eps * largest or (largest == 0 and values[0] < 0):
        raise ValueError(
            f"{where} must be positive semidefinite; its eigenvalues reach from {values[0].item():.3g} to "
            f"{values[-1].item():.3g}: a covariance is X^T X, collected without rounding to 16 bits"
        )
    rounding = n * torch.finfo(torch.float64).eps * largest
    return vectors * torch.where(values > rounding, values, 0).sqrt()
