"""Other ways to a truncated SVD, each behind one small adapter, and ours.

A Peer's `svd` takes what `take` makes of a torch tensor (outside the timing) and returns U, S, Vh in its own arrays; the
product U diag(S) Vh that a dense result needs, in the peer's arrays and inside the timing, is `multiply`. Libraries
without bfloat16 are given float32, and need not round their result back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

OURS = "laser_kernels"
MAX_ITERATIONS = 16

Setting = dict[str, int]
Svd = Callable[..., Any]


def oversamplings(rank: int, side: int) -> list[int]:
    """{10, r/4, r/2, r}, with r + p <= min(m, n), largest first."""
    wanted = {10, rank // 4, rank // 2, rank}
    return sorted({min(p, side - rank) for p in wanted if p > 0}, reverse=True)


def multiply(u: Any, s: Any, vh: Any) -> Any:
    """U diag(S) Vh in any array library."""
    return (u * s[..., None, :]) @ vh


def _float(a: Tensor) -> Tensor:
    return a if a.dtype in (torch.float32, torch.float64) else a.float()


def as_numpy(a: Tensor) -> Any:
    return _float(a).cpu().numpy()


def from_numpy(x: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(x))


@dataclass(frozen=True)
class Peer:
    """One method.

    Attributes:
        name: what users call it.
        library: the module that must be importable; peers of one library share a process.
        svd: (a, rank, seed, **setting) -> U, S, Vh, cut to rank.
        low_rank: the dense result where that is not `multiply` of the factors.
        devices: where it runs.
        exact: promises the optimum; more excess than asked is a wrong answer.
        tuned: its setting {oversample, niter} is searched for, in hindsight, on the very matrix.
        batched: takes a stack; otherwise the caller loops.
        take, give: torch tensor to the library's array, and back.
        wait: blocks until the result is there, where the library is asynchronous.
    """

    name: str
    library: str
    svd: Svd
    low_rank: Callable[..., Any] | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    exact: bool = False
    tuned: bool = False
    batched: bool = False
    take: Callable[[Tensor], Any] = lambda a: a
    give: Callable[[Any], Tensor] = lambda x: x
    wait: Callable[[Any], Any] = lambda x: x

    def dense(self, a: Any, rank: int, seed: int = 0, **setting: Any) -> Any:
        """A_r in the peer's own arrays; in a's dtype where they are tensors."""
        if self.low_rank is not None:
            return self.low_rank(a, rank, seed=seed, **setting)
        low = multiply(*self.svd(a, rank, seed=seed, **setting))
        return low.to(a.dtype) if isinstance(low, Tensor) else low

    def missing(self, device: str) -> str | None:
        """Why it cannot be used on this device, or None."""
        if device not in self.devices:
            return f"not for {device}"
        top = self.library.partition(".")[0]
        return None if importlib.util.find_spec(top) else f"{top} is not installed"


def _cut(factors: tuple[Any, Any, Any], rank: int) -> tuple[Any, Any, Any]:
    u, s, vh = factors
    return u[..., :rank], s[..., :rank], vh[..., :rank, :]


def _laser(a: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.svd_lowrank(a.float(), q=rank, niter=2)
    return u, s, v.T


def laser(a: Tensor, rank: int, seed: int = 0) -> Tensor:
    """LASER's do_low_rank (pratyushasharma/laser, matrix_utils.py): no oversampling, two iterations, its cast back."""
    u, s, vh = _laser(a, rank)
    return (u @ torch.diag(s) @ vh).to(a.dtype)


def svd_lowrank(a: Tensor, rank: int, seed: int = 0, oversample: int = 0, niter: int = 2) -> tuple[Any, Any, Any]:
    """torch.svd_lowrank with q = r + p, trimmed to r."""
    u, s, v = torch.svd_lowrank(_float(a), q=rank + oversample, niter=niter)
    return _cut((u, s, v.mT), rank)


def pca_lowrank(a: Tensor, rank: int, seed: int = 0, oversample: int = 0, niter: int = 2) -> tuple[Any, Any, Any]:
    """torch.pca_lowrank without centering."""
    u, s, v = torch.pca_lowrank(_float(a), q=rank + oversample, center=False, niter=niter)
    return _cut((u, s, v.mT), rank)


def linalg_svd(a: Tensor, rank: int, seed: int = 0, driver: str | None = None) -> tuple[Any, Any, Any]:
    """torch.linalg.svd: LAPACK gesdd, or one of cuSOLVER's drivers."""
    return _cut(torch.linalg.svd(_float(a), full_matrices=False, driver=driver), rank)


def gram_eigh_svd(a: Tensor, rank: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """A^T A of the short side and torch.linalg.eigh; U = A V / S."""
    if a.shape[-2] < a.shape[-1]:
        v, s, uh = gram_eigh_svd(a.mT, rank)
        return uh.mT, s, v.mT
    a = _float(a)
    found = torch.linalg.eigh(a.mT @ a)
    v, s = found.eigenvectors[..., -rank:].flip(-1), found.eigenvalues[..., -rank:].flip(-1).clamp_min(0).sqrt()
    return (a @ v) / s[..., None, :], s, v.mT


def gram_eigh(a: Tensor, rank: int, seed: int = 0) -> Tensor:
    """The same, straight to (A V) V^T."""
    if a.shape[-2] < a.shape[-1]:
        return gram_eigh(a.mT, rank).mT
    wide = _float(a)
    v = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -rank:]
    return ((wide @ v) @ v.mT).to(a.dtype)


def _sklearn(a: Any, rank: int, seed: int, oversample: int = 10, niter: int = 4) -> tuple[Any, Any, Any]:
    from sklearn.utils.extmath import randomized_svd

    u, s, vh = randomized_svd(a, rank, n_oversamples=oversample, n_iter=niter, random_state=seed)
    return u, s, vh


def _svds(a: Any, rank: int, seed: int, solver: str) -> tuple[Any, Any, Any]:
    import numpy
    from scipy.sparse.linalg import svds

    if rank >= min(a.shape):
        raise NotImplementedError("svds needs rank < min(m, n)")
    start = numpy.random.default_rng(seed).standard_normal(min(a.shape)).astype(a.dtype)
    u, s, vh = svds(a, k=rank, solver=solver, v0=start if solver == "arpack" else None)
    return u[:, ::-1], s[::-1], vh[::-1]


def _numpy_svd(a: Any, rank: int, seed: int) -> tuple[Any, Any, Any]:
    import numpy

    return _cut(numpy.linalg.svd(a, full_matrices=False), rank)


def _jax_take(a: Tensor) -> Any:
    import jax

    device = jax.devices("gpu" if a.is_cuda else "cpu")[0]
    return jax.device_put(as_numpy(a), device)


def _jax_svd(a: Any, rank: int, seed: int) -> tuple[Any, Any, Any]:
    import jax

    return _cut(tuple(jax.numpy.linalg.svd(a, full_matrices=False)), rank)


def _jax_wait(x: Any) -> Any:
    import jax

    return jax.block_until_ready(x)


def _ours_svd(a: Tensor, rank: int, seed: int, tol: float, route: str) -> tuple[Any, Any]:
    import laser_kernels as lk

    return lk.truncated_svd(a, rank, tol=tol, route=route, seed=seed, return_info=True)


def _ours_low_rank(a: Tensor, rank: int, seed: int, tol: float, route: str) -> tuple[Any, Any]:
    import laser_kernels as lk

    return lk.low_rank(a, rank, tol=tol, route=route, seed=seed, return_info=True)


def ours(route: str = "auto") -> Peer:
    """This package, by the route of its own choice or a given one; its results come with their Info."""
    name = OURS if route == "auto" else f"{OURS} [{route}]"
    return Peer(name, OURS, partial(_ours_svd, route=route), partial(_ours_low_rank, route=route), batched=True)


_NUMPY: dict[str, Any] = {"take": as_numpy, "give": from_numpy, "devices": ("cpu",)}
_TORCH = [
    Peer("LASER's svd_lowrank", "torch", _laser, laser),
    Peer("torch.svd_lowrank", "torch", svd_lowrank, tuned=True, batched=True),
    Peer("torch.pca_lowrank", "torch", pca_lowrank, tuned=True, batched=True),
    Peer("torch.linalg.svd", "torch", linalg_svd, exact=True, batched=True),
    Peer("gram + torch.linalg.eigh", "torch", gram_eigh_svd, gram_eigh, exact=True, batched=True),
]
_DRIVERS = [
    Peer(
        f"torch.linalg.svd {d}",
        "torch",
        partial(linalg_svd, driver=d),
        devices=("cuda",),
        exact=d != "gesvda",
        batched=True,
    )
    for d in ("gesvd", "gesvdj", "gesvda")
]
_HOST = [
    Peer("sklearn.randomized_svd", "sklearn", _sklearn, tuned=True, **_NUMPY),
    Peer("scipy.svds arpack", "scipy", partial(_svds, solver="arpack"), exact=True, **_NUMPY),
    Peer("scipy.svds propack", "scipy", partial(_svds, solver="propack"), exact=True, **_NUMPY),
    Peer("numpy.linalg.svd", "numpy", _numpy_svd, exact=True, batched=True, **_NUMPY),
    Peer(
        "jax.numpy.linalg.svd",
        "jax",
        _jax_svd,
        exact=True,
        batched=True,
        take=_jax_take,
        give=from_numpy,
        wait=_jax_wait,
    ),
]


def peers() -> dict[str, Peer]:
    """Every peer there is, by name."""
    from laser_kernels.bench import cuda_peers

    return {peer.name: peer for peer in (*_TORCH, *_DRIVERS, *_HOST, *cuda_peers.PEERS)}
