"""The compiled ops: which implementation runs, their fake kernels, and the names of what they report.

Schemas are registered once, in python/ops_cpu.cpp. Where the library is missing, or a tensor lies on a device it has no
kernels for, `backend` answers with reference.py, whose functions take the same arguments.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from laser_kernels import _ext, reference

COMPILED = _ext.load()
COMPILED_CUDA = COMPILED and _ext.load_cuda()


# Columns of the (b, 7) float64 certificate that low_rank and truncated_svd return (csrc/core/request.hpp).
CERTIFICATE = ("status", "norm", "unrounded", "residual", "bound", "iterations", "projected")


@functools.cache
def _warn_no_kernels(device: str) -> None:
    warnings.warn(
        f"laser_kernels: this build has no {device} kernels; the plain torch reference runs there",
        RuntimeWarning,
        stacklevel=4,
    )


def backend(device: torch.device) -> Any:
    """The namespace that holds low_rank, truncated_svd and the other ops for tensors on `device`."""
    if COMPILED and (device.type in ("cpu", "meta") or (device.type == "cuda" and COMPILED_CUDA)):
        return torch.ops.laser_kernels
    if COMPILED:
        _warn_no_kernels(device.type)
    return reference


@functools.cache
def capability(device: torch.device) -> str:
    """What dispatch.rates tells devices of one type apart by: "bf16" for a CPU that multiplies bfloat16; "9.0" and the
    like for a GPU; else ""."""
    if device.type == "cuda":
        if not torch.cuda.is_available():  # asked about, not used
            return "9.0"
        return ".".join(map(str, torch.cuda.get_device_capability(device)))
    return "bf16" if device.type == "cpu" and _ext.multiplies_bfloat16() else ""


def _factor_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _certificate(weight: Tensor) -> Tensor:
    return weight.new_empty((weight.shape[0], len(CERTIFICATE)), dtype=torch.float64)


if COMPILED:

    @torch.library.register_fake("laser_kernels::prepare")
    def _(weight: Tensor) -> Tensor:
        return weight.new_empty((weight.shape[0], 2), dtype=torch.float64)

    @torch.library.register_fake("laser_kernels::sketch")
    def _(weight: Tensor, block: int, seed: int, keys: list[int]) -> Tensor:
        b, m, n = weight.shape
        return weight.new_empty((b, min(m, n), block), dtype=torch.float32)

    @torch.library.register_fake("laser_kernels::gram")
    def _(weight: Tensor) -> Tensor:
        b, m, n = weight.shape
        return weight.new_empty((b, min(m, n), min(m, n)))

    @torch.library.register_fake("laser_kernels::orthonormalize")
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @torch.library.register_fake("laser_kernels::small_eigh")
    def _(h: Tensor) -> tuple[Tensor, Tensor]:
        return h.new_empty(h.shape[:2], dtype=torch.float64), torch.empty_like(h)

    @torch.library.register_fake("laser_kernels::count_eigenvalues")
    def _(h: Tensor, above: list[float]) -> Tensor:
        return h.new_empty((h.shape[0], 2), dtype=torch.float64)

    @torch.library.register_fake("laser_kernels::reconstruct")
    def _(left: Tensor, right: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        return weight.new_empty((weight.shape[0], 2), dtype=torch.float64)

    @torch.library.register_fake("laser_kernels::low_rank")
    def _(weight: Tensor, out: Tensor, ranks: list[int], *_route: Any) -> Tensor:
        return _certificate(weight)

    @torch.library.register_fake("laser_kernels::low_rank_at")
    def _(weight: Tensor, out: Tensor, *_at: Any) -> Tensor:
        return _certificate(weight)

    @torch.library.register_fake("laser_kernels::truncated_svd")
    def _(weight: Tensor, ranks: list[int], *_route: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, m, n = weight.shape
        rank = max(ranks)
        dtype = _factor_dtype(weight)
        return (
            weight.new_empty((b, m, rank), dtype=dtype),
            weight.new_empty((b, rank), dtype=dtype),
            weight.new_empty((b, rank, n), dtype=dtype),
            _certificate(weight),
        )
