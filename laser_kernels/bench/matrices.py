"""Matrices of the benchmark: families with LLM-like, power-law and Gaussian spectra, and real weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laser_kernels.bench.problem import Problem

CHUNK = 1 << 26  # elements generated at a time


def _orthonormal(x: Tensor) -> Tensor:
    """CholeskyQR of tall Gaussian matrices, which are well conditioned."""
    factor = torch.linalg.cholesky(x.mT @ x)
    return torch.linalg.solve_triangular(factor.mT, x, upper=True, left=False)


def _llm_like(count: int, rows: int, cols: int, made: torch.Generator, device: torch.device) -> Tensor:
    """Gaussian / sqrt(max(m, n)) (Marchenko-Pastur bulk) + spikes 6 i^-0.6 in min(m, n)/8 random directions."""
    short, long = sorted((rows, cols))
    spikes = max(1, short // 8)
    sizes = 6 * torch.arange(1, spikes + 1, device=device) ** -0.6
    left, right = (
        _orthonormal(torch.randn(count, side, spikes, generator=made, device=device)) for side in (rows, cols)
    )
    bulk = torch.randn(count, rows, cols, generator=made, device=device) / math.sqrt(long)
    return torch.baddbmm(bulk, left * sizes, right.mT)


def _power_law(count: int, rows: int, cols: int, made: torch.Generator, device: torch.device) -> Tensor:
    """sigma_i = i^-0.5 in random directions."""
    short = min(rows, cols)
    sizes = torch.arange(1, short + 1, device=device, dtype=torch.float32) ** -0.5
    left, right = (
        torch.linalg.qr(torch.randn(count, side, short, generator=made, device=device)).Q for side in (rows, cols)
    )
    return (left * sizes) @ right.mT


def _gaussian(count: int, rows: int, cols: int, made: torch.Generator, device: torch.device) -> Tensor:
    """Independent normal entries of variance 1 / max(m, n): Marchenko-Pastur, the flattest spectrum weights have."""
    return torch.randn(count, rows, cols, generator=made, device=device) / math.sqrt(max(rows, cols))


FAMILIES: dict[str, Callable[[int, int, int, torch.Generator, torch.device], Tensor]] = {
    "llm-like": _llm_like,
    "power-law": _power_law,
    "gaussian": _gaussian,
}


def synthetic(
    family: str, count: int, rows: int, cols: int, *, dtype: torch.dtype, seed: int, device: torch.device
) -> Tensor:
    """(count, rows, cols) of a family, made on the device in float32 and rounded once to `dtype`."""
    made = torch.Generator(device).manual_seed(seed)
    stack = torch.empty(count, rows, cols, dtype=dtype, device=device)
    for part in stack.split(max(1, CHUNK // (rows * cols))):
        part.copy_(FAMILIES[family](len(part), rows, cols, made, device))
    return stack


def from_checkpoint(folder: str, names: Sequence[str]) -> Tensor:
    """Equal-shaped tensors of a safetensors folder, as one stack on the CPU."""
    from laser_kernels.checkpoint.pipeline import torch_dtype
    from laser_kernels.checkpoint.reader import Reader

    with Reader(folder) as reader:
        loaded = []
        for name in names:
            entry = reader.tensors[name].entry
            loaded.append(torch.frombuffer(reader.read_bytes(name), dtype=torch_dtype(entry.dtype)).view(entry.shape))
    return torch.stack(loaded)


def load(problem: Problem, number: int, device: torch.device) -> Tensor:
    """Input `number` of a problem: (batch, rows, cols)."""
    dtype = getattr(torch, problem.dtype)
    if problem.source == "checkpoint":
        return from_checkpoint(problem.folder, problem.names).to(dtype=dtype, device=device)
    shape = (problem.batch, problem.rows, problem.cols)
    return synthetic(problem.source, *shape, dtype=dtype, seed=number, device=device)
