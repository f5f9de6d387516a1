"""Matrices that look like LLM weights: spikes on a Gaussian bulk. Their exact spectra, cached."""

from __future__ import annotations

import math
import os

import torch
from smollm2 import CACHE


def llm_like(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Gaussian / sqrt(max(m, n)) + 6 i^-0.6 spikes in min(m, n)/8 random directions; fp32."""
    made = torch.Generator().manual_seed(seed)
    bulk = torch.randn(rows, cols, generator=made) / math.sqrt(max(rows, cols))
    count = max(1, min(rows, cols) // 8)
    left = torch.linalg.qr(torch.randn(rows, count, generator=made)).Q
    right = torch.linalg.qr(torch.randn(cols, count, generator=made)).Q
    return bulk + (left * (6 * torch.arange(1, count + 1) ** -0.6)) @ right.T


def spectrum(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """Exact singular values (float64 LAPACK) of `llm_like(*matrix.shape, seed)`, cached.

    The cached values are used only where their sum of squares is this matrix's.
    """
    rows, cols = matrix.shape
    file = CACHE / f"llm-like-{rows}x{cols}-{seed}.pt"
    energy = matrix.double().square().sum().item()
    if file.exists():
        sigma = torch.load(file, weights_only=True)
        if math.isclose(sigma.square().sum().item(), energy, rel_tol=1e-12):
            return sigma
    sigma = torch.linalg.svdvals(matrix.double())
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    torch.save(sigma, temporary)
    temporary.replace(file)
    return sigma
