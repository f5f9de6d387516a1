"""One decomposition that serves every rank up to its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from laser_kernels.api import SVD, truncated_svd
from laser_kernels.arrays import back_to, on_its_stream
from laser_kernels.canonical import as_tensor
from laser_kernels.info import Info
from laser_kernels.rank import Rule, clamped, resolve_rank


class Factorization:
    """One decomposition that serves every rank up to its own (LASER's sweep over rho: factor once, slice many).

    tol holds for each of them: the energy missing from the leading r' directions is at most what is missing from all r,
    while the optimum only grows as r' shrinks.
    """

    def __init__(self, svd: SVD, info: Info, shape: tuple[int, int], dtype: torch.dtype, back: Callable[[Tensor], Any]):
        self.svd, self.info, self.shape, self.dtype = svd, info, shape, dtype
        self._back = back

    @property
    def rank(self) -> int:
        """The largest rank it serves."""
        return self.info.rank

    def _resolve(self, rank: int | float | Rule) -> int:
        whole = self.rank == min(self.shape)
        if isinstance(rank, Rule) and whole:  # all singular values are here
            values = as_tensor(self.svd.S, "factorize")
            r = clamped(rank, rank.count(values, self.shape), *self.shape)
        else:
            r = resolve_rank(rank, *self.shape)
        if r > self.rank:
            raise ValueError(
                f"[laser_kernels::factorize] this factorization serves ranks up to {self.rank}; got {r}: factorize again"
            )
        return r

    def at(self, rank: int | float | Rule) -> SVD:
        """The leading `rank` triples: views, nothing is computed. Rules that look at values need a whole factorization."""
        r = self._resolve(rank)
        return SVD(self.svd.U[:, :r], self.svd.S[:r], self.svd.Vh[:r])

    def reconstruct(self, rank: int | float | Rule, out: Any = None) -> Any:
        """U diag(S) Vh at `rank` in the input's dtype, rounded once; into `out` if given."""
        u, s, vh = (as_tensor(x, "factorize") for x in self.at(rank))
        product = ((u * s) @ vh).to(self.dtype)
        if out is not None:
            as_tensor(out, "factorize", "out").copy_(product)
            return out
        return self._back(product)

    def __repr__(self) -> str:
        return f"Factorization({self.shape[0]}x{self.shape[1]}, rank {self.rank}, {self.info.route})"


@on_its_stream
def factorize(A: Any, rank: int | float | Rule | None = None, *, tol: float = 1e-3, seed: int = 0) -> Factorization:
    """Decomposes one matrix once, for every rank up to `rank` (None: all, by a full SVD).

    Args:
        A: (m, n), as for truncated_svd. rank, tol, seed: likewise; tol holds for every rank asked later.
    """
    t = as_tensor(A, "factorize")
    if t.dim() != 2:
        raise ValueError(f"[laser_kernels::factorize] A must be one (m, n) matrix; got {t.dim()}-D")
    whole = rank is None
    svd, info = truncated_svd(
        A,
        1.0 if rank is None else rank,
        tol=tol,
        seed=seed,
        route="full_svd" if whole else "auto",
        return_info=True,
    )
    return Factorization(svd, info, (t.shape[0], t.shape[1]), t.dtype, back_to(A))
