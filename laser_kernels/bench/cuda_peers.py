"""Peers that exist on CUDA only: CuPy's routines and three of cuSOLVER's. Not run yet: no GPU was there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from laser_kernels.bench.cusolver import CuSolver
from laser_kernels.bench.peers import Peer


def _take(a: Tensor) -> Any:
    import cupy

    return cupy.from_dlpack(a.float())


def _give(x: Any) -> Tensor:
    return torch.from_dlpack(x)


def _wait(x: Any) -> Any:
    import cupy

    cupy.cuda.get_current_stream().synchronize()
    return x


def _cupy_svd(a: Any, rank: int, seed: int) -> tuple[Any, Any, Any]:
    import cupy

    u, s, vh = cupy.linalg.svd(a, full_matrices=False)
    return u[..., :rank], s[..., :rank], vh[..., :rank, :]


def _cupy_gesvda(a: Any, rank: int, seed: int) -> tuple[Any, Any, Any]:
    from cupy import cusolver

    if a.shape[-2] < a.shape[-1]:
        v, s, uh = _cupy_gesvda(a.swapaxes(-1, -2), rank, seed)
        return uh.swapaxes(-1, -2), s, v.swapaxes(-1, -2)
    u, s, v = cusolver.gesvda(a)
    return u[..., :rank], s[..., :rank], v[..., :rank].swapaxes(-1, -2)


@functools.cache
def _solver(device: torch.device) -> CuSolver:
    return CuSolver(device)


def _tall(name: str, a: Tensor, rank: int, *setting: int) -> Tensor:
    """One of CuSolver's routines, which want m >= n."""
    if a.shape[-2] < a.shape[-1]:
        return _tall(name, a.mT.contiguous(), rank, *setting).mT
    return getattr(_solver(a.device), name)(a, rank, *setting)


def _gesvdr(a: Tensor, rank: int, seed: int, oversample: int = 10, niter: int = 2) -> Tensor:
    return _tall("gesvdr", a, rank, min(oversample, min(a.shape) - rank - 1), niter)


def _gesvdp(a: Tensor, rank: int, seed: int) -> Tensor:
    return _tall("gesvdp", a, rank)


def _gesvda(a: Tensor, rank: int, seed: int) -> Tensor:
    return _tall("gesvda", a, rank)


def _dense_only(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("measured for low_rank only")


_CUPY: dict[str, Any] = {"take": _take, "give": _give, "wait": _wait, "devices": ("cuda",), "batched": True}
PEERS = [
    Peer("cupy.linalg.svd", "cupy", _cupy_svd, exact=True, **_CUPY),
    Peer("cupy gesvda", "cupy", _cupy_gesvda, **_CUPY),
    Peer("cuSOLVER gesvdr", "torch", _dense_only, _gesvdr, devices=("cuda",), tuned=True),
    Peer("cuSOLVER gesvdp", "torch", _dense_only, _gesvdp, devices=("cuda",), exact=True),
    Peer("cuSOLVER gesvdaStridedBatched", "torch", _dense_only, _gesvda, devices=("cuda",), batched=True),
]
