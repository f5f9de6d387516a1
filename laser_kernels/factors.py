"""A weight as two factors, B (m, r) and A (r, n): how they are made, measured, named and laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from laser_kernels.info import Info


def shrinks(rows: int, cols: int, rank: int) -> bool:
    """Whether factors of this rank hold fewer numbers than the matrix."""
    return rank * (rows + cols) < rows * cols


def factor_names(weight: str) -> tuple[str, str]:
    """What the factors of the tensor `weight` are called, A first, as safetensors orders them: the parameters of a
    LowRankLinear in its module's place."""
    module = weight.removesuffix("weight")
    return module + "A", module + "B"


def factor_shapes(rows: int, cols: int, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of A and B, in the order of their names."""
    return (rank, cols), (rows, rank)


def factor(
    weight: Tensor, rank: int, *, tol: float | None, seed: int, key: int | Sequence[int]
) -> tuple[Tensor, Tensor, list[Info]]:
    """B = U sqrt(S) and A = sqrt(S) Vh of weights (b, m, n), in their dtype: B A is A_r but for the rounding of both.

    Guarantee: Info.excess_bound as for truncated_svd, before the factors are rounded. Info.residual is ||W - B A|| of the
    rounded factors, multiplied in float32 (float64 for float32 and float64 weights); Info.rounding what the rounding
    added. Rounding B and A to unit roundoff u moves B A by at most (2 u + u^2) |B| |A|, entry by entry.

    Why sqrt(S) on both sides: columns of B and rows of A then have the same length, so that neither leaves the range of
    float16 where the weight does not, and the rounding of each direction is in proportion to its singular value.
    """
    import torch

    from laser_kernels.api import truncated_svd

    svd, infos = truncated_svd(weight, rank, tol=tol, seed=seed, key=key, return_info=True)
    root = svd.S.sqrt()
    b, a = (svd.U * root.unsqueeze(-2)).to(weight.dtype), (root.unsqueeze(-1) * svd.Vh).to(weight.dtype)
    # Half-precision factors are exact in float32, and their own rounding far above that of its sums.
    wide = torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else torch.float64
    norms = []
    for w, left, right in zip(weight, b, a, strict=True):  # one at a time: it takes a matrix in `wide`
        rest = (left.to(wide) @ right.to(wide)).sub_(w)
        norms.append(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in (rest, w)]))
    found = torch.stack(norms).tolist()  # the one time that the host waits for a device
    return b, a, [measured(info, gap, norm, info.residual) for info, (gap, norm) in zip(infos, found, strict=True)]


def measured(info: Info, residual: float, norm: float, unrounded: float) -> Info:
    """`info` with the residual of rounded factors."""
    relative = residual / norm if norm else 0.0
    return replace(info, residual=residual, relative_residual=relative, rounding=residual - unrounded)


def pack(b: Tensor, a: Tensor, place: Tensor) -> None:
    """Lay the factors of each matrix at the beginning of its place: A, and B behind it. `place` (b, m, n) is dense."""
    flat, split, end = place.view(len(place), -1), a[0].numel(), a[0].numel() + b[0].numel()
    flat[:, :split] = a.flatten(1)
    flat[:, split:end] = b.flatten(1)


def unpack(place: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors B and A that `pack` laid into a dense (m, n), as views."""
    (rows, cols), flat = place.shape, place.view(-1)
    return flat[rank * cols : rank * (rows + cols)].view(rows, rank), flat[: rank * cols].view(rank, cols)
