"""LLM-like 16-bit weights on a device, the optimum of a few of them in float64, and the excess of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import smollm2
import torch
from safetensors.torch import load_file
from torch import Tensor

from laser_kernels.bench.matrices import synthetic
from laser_kernels.dispatch import default_block
from laser_kernels.rank import resolve_rank

UNKNOWN = -1.0  # the excess of a matrix whose optimum was not computed


def llm_like(count: int, rows: int, cols: int, seed: int, device: torch.device) -> Tensor:
    """(count, rows, cols) bf16, made on the device."""
    return synthetic("llm-like", count, rows, cols, dtype=torch.bfloat16, seed=seed, device=device)


def llama2_7b(hidden: int, inner: int, layers: int, device: torch.device) -> list[Tensor]:
    """The seven matrices of each layer, in the order of the checkpoint: q, k, v, o, gate, up, down."""
    square = llm_like(4 * layers, hidden, hidden, 1, device)
    tall = llm_like(2 * layers, inner, hidden, 2, device)
    wide = llm_like(layers, hidden, inner, 3, device)
    return [
        matrix
        for layer in range(layers)
        for matrix in (*square[4 * layer : 4 * layer + 4], *tall[2 * layer : 2 * layer + 2], wide[layer])
    ]


def smollm2_matrices(copies: int, whole: bool, device: torch.device) -> tuple[list[Tensor], str]:
    """SmolLM2-135M's 210 matrices if `whole` and the demo model is there, else `copies` of the three in tests/data."""
    if whole and (smollm2.SOURCE / "model.safetensors").exists():
        found, what = list(smollm2.load(smollm2.names()).values()), "SmolLM2-135M"
    else:
        three = load_file(Path(__file__).parents[1] / "tests" / "data" / "smollm2.safetensors")
        found, what = [m for m in three.values() for _ in range(copies)], f"SmolLM2-135M, 3 matrices x {copies}"
    return [matrix.to(device, copy=True) for matrix in found], what


class Weights:
    """Matrices, a stack or a list, and the squared singular values of those at `checked`, in float64."""

    def __init__(self, matrices: Tensor | list[Tensor], checked: Sequence[int]):
        self.matrices = matrices
        self.checked = sorted({i % len(matrices) for i in checked})

    def __len__(self) -> int:
        return len(self.matrices)

    @cached_property
    def squares(self) -> dict[int, Tensor]:
        """Eigenvalues of the Gram matrix of the short side, descending; exact to eps64 sigma_1^2."""
        found = {}
        for i in self.checked:
            a = self.matrices[i].double()
            a = a if a.shape[0] >= a.shape[1] else a.mT
            found[i] = torch.linalg.eigvalsh(a.mT @ a).clamp_min(0).flip(0)
        return found


class Task:
    """Weights to be reduced to a fraction of their short sides, or each to one of its own (`asked`)."""

    def __init__(self, weights: Weights, asked: float | list[float]):
        self.weights, self.asked, self.matrices = weights, asked, weights.matrices
        each = asked if isinstance(asked, list) else [asked] * len(weights)
        self.ranks = [resolve_rank(one, *matrix.shape) for one, matrix in zip(each, weights.matrices, strict=True)]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def shape(self) -> list[list[int]] | list[int]:
        """(m, n), or the list of the different ones."""
        shapes = [list(shape) for shape in dict.fromkeys(tuple(matrix.shape) for matrix in self.matrices)]
        return shapes[0] if len(shapes) == 1 else shapes

    @property
    def rank(self) -> int | float | list[int]:
        """As a row has it: the one rank, the one fraction, or the least and the largest rank."""
        if len(set(self.ranks)) == 1:
            return self.ranks[0]
        return [min(self.ranks), max(self.ranks)] if isinstance(self.asked, list) else self.asked

    def tail(self, i: int) -> float:
        """The optimal residual of checked matrix i."""
        return math.sqrt(self.weights.squares[i][self.ranks[i] :].sum().item())

    def residual(self, i: int, low: Tensor) -> Tensor:
        """||A_i - low||, float64, on the device."""
        return torch.linalg.vector_norm(self.matrices[i].double() - low.double())

    def excess(self, i: int, low: Tensor) -> float:
        """Of matrix i (modulo their number): residual / tail - 1; UNKNOWN where it is not checked; NaN stays NaN."""
        i %= len(self)
        residual = self.residual(i, low).item()
        if i not in self.weights.checked:
            return UNKNOWN if math.isfinite(residual) else math.nan
        return residual / self.tail(i) - 1

    def worst(self, lows: Tensor | Sequence[Tensor]) -> float:
        """The largest excess of the checked ones among the first len(lows) matrices; NaN if one is NaN."""
        found = [self.excess(i, lows[i]) for i in self.weights.checked if i < len(lows)]
        return math.nan if any(map(math.isnan, found)) else max(found)

    def disagreement(self, lows: Tensor | Sequence[Tensor], claimed: Sequence[float]) -> float:
        """Largest relative difference between all measured residuals and those claimed; NaN where one is NaN."""
        measured = torch.stack([self.residual(i, low) for i, low in enumerate(lows)]).cpu()
        stated = torch.tensor(claimed, dtype=torch.float64)
        return ((measured - stated).abs() / measured.clamp_min(1e-300)).max().item()

    def floor(self, iterations: Sequence[int], tol: float, spectral: bool = False) -> tuple[float, float]:
        """(bytes, flops) of what must be done: each weight read once and written once; and the products of the
        iterations that ran on the default block, through A and A^T or the Gram matrix (one half of it), whichever is
        less, and (A V) V^T. Exact routes (0 iterations): the Gram matrix and (A V) V^T, without the eigensolver.
        spectral: the Gram matrix, `iterations` products of n x n matrices, and (A V) V^T."""
        moved = flops = 0.0
        for matrix, rank, count in zip(self.matrices, self.ranks, iterations, strict=True):
            n, m = sorted(matrix.shape)
            block = default_block(rank, n, tol, matrix.device.type)
            through_gram = m * n * n + 2.0 * n * n * block * count
            iterate = min(4.0 * m * n * block * count, through_gram) if count else through_gram
            flops += (m * n * n + 2.0 * n**3 * count if spectral else iterate) + 4.0 * m * n * rank
            moved += 2 * matrix.element_size() * m * n
        return moved, flops
