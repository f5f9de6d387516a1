"""The truncated SVD of a product that is never formed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laser_kernels.api import SVD
from laser_kernels.arrays import back_to
from laser_kernels.canonical import as_tensor
from laser_kernels.errors import NonFiniteError
from laser_kernels.rank import Rule, clamped, resolve_rank


def svd_product(B: Any, A: Any, rank: Any = None) -> Any:
    """The leading `rank` singular triples of a product, which is never formed: B A ~ U diag(S) Vh.

    B = Q1 R1 and A^T = Q2 R2 (Householder QR), then R1 R2^T = Uc diag(S) Vc^T, at most k x k, and U = Q1 Uc, V = Q2 Vc:
    O((m + n) k^2 + k^3) operations, O((m + n) k) memory. All of it in float64, so that factors which cancel in the
    product cost nothing: errors are eps ||B|| ||A|| of float64.

    Guarantees: as truncated_svd's with tol = 0, for any rank, deficient and zero factors included.

    Args:
        B: (m, k) or (b, m, k); float32, float64, bfloat16 or float16, torch or NumPy.
        A: (k, n) or (b, k, n).
        rank: None: all min(m, k, n); an int; a float in (0, 1] = fraction of min(m, k, n), the most that the product can
            have; or a rule (ranks), which sees all min(m, n) singular values.

    Returns:
        SVD(U (..., m, r), S (..., r), Vh (..., r, n)) in float32 (float64 where B or A is); a list of them where a
        A rule gives the matrices of a batch different ranks.

    Raises:
        TypeError, ValueError: dtype, shape or rank; singular values that float32 cannot hold. NonFiniteError: NaN or Inf,
        naming the matrices.

    References:
        Chan: An improved algorithm for computing the singular value decomposition (1982): an SVD after a QR.
    """
    left, right = as_tensor(B, "svd_product", "B"), as_tensor(A, "svd_product", "A")
    _check_factors(left, right)
    dtype = torch.float64 if torch.float64 in (left.dtype, right.dtype) else torch.float32
    single = left.dim() == 2
    wide_left, wide_right = (t.double().unsqueeze(0) if single else t.double() for t in (left, right))
    bad = ~(wide_left.isfinite().flatten(1).all(1) & wide_right.isfinite().flatten(1).all(1))
    if bad.any():
        raise NonFiniteError(bad.nonzero().flatten().tolist(), "svd_product")
    q1, r1 = torch.linalg.qr(wide_left)
    q2, r2 = torch.linalg.qr(wide_right.mT)
    core = r1 @ r2.mT
    uc, s, vch = torch.linalg.svd(core, full_matrices=False)
    if not s.to(dtype).isfinite().all():
        raise ValueError(
            f"[laser_kernels::svd_product] singular values up to {s.max().item():.3g} exceed float32: "
            "scale B or A down, or pass them as float64"
        )
    ranks = [rank_of_product(rank, values, (left.shape[-2], right.shape[-1])) for values in s]
    back = back_to(B)

    def leading(i: slice, r: int) -> SVD:
        u, vh = q1[i] @ uc[i, :, :r], vch[i, :r] @ q2[i].mT
        largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
        sign = torch.where(largest < 0, -1.0, 1.0).to(u)
        found = (u * sign, s[i, :r], vh * sign.mT)
        return SVD(*(back((t[0] if single else t).to(dtype)) for t in found))

    if len(set(ranks)) == 1:
        return leading(slice(None), ranks[0])
    return [SVD(*(t[0] for t in leading(slice(i, i + 1), r))) for i, r in enumerate(ranks)]


def _check_factors(left: Tensor, right: Tensor) -> None:
    shapes = f"got {tuple(left.shape)} and {tuple(right.shape)}"
    where = "[laser_kernels::svd_product]"
    if left.dim() not in (2, 3) or right.dim() != left.dim():
        raise ValueError(f"{where} B and A must be (m, k) and (k, n), or (b, m, k) and (b, k, n); {shapes}")
    if left.shape[-1] != right.shape[-2] or left.shape[:-2] != right.shape[:-2]:
        raise ValueError(f"{where} the columns of B must be as many as the rows of A, and batches equal; {shapes}")
    if left.numel() == 0 or right.numel() == 0:
        raise ValueError(f"{where} B and A must not be empty; {shapes}")
    if left.device != right.device:
        raise ValueError(f"{where} B and A must be on one device; got {left.device} and {right.device}: move one")


def rank_of_product(rank: Any, values: Tensor, shape: tuple[int, int]) -> int:
    """What `rank` asks of an (m, n) product with these singular values: at most k, the others of the product are zero."""
    side = values.shape[0]
    if isinstance(rank, Rule):
        whole = torch.nn.functional.pad(values, (0, min(shape) - side))
        return clamped(rank, rank.count(whole, shape), side, side)
    try:
        return side if rank is None else resolve_rank(rank, side, side)
    except ValueError as error:
        raise ValueError(f"{error} (the core of a {shape[0]}x{shape[1]} product)") from None
