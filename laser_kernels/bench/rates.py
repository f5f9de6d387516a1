"""What this machine was measured to do in this run: products and copies per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from laser_kernels.bench.problem import Problem

REPEATS = 5
SIDE = {"cpu": 2048, "cuda": 8192}
BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Least seconds of a few calls: a ceiling, not a typical time."""
    found = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


@dataclass
class Rates:
    """Ceilings of one device, measured when first asked for."""

    device: torch.device

    def __post_init__(self) -> None:
        self._products: dict[str, float] = {}
        count = BYTES[self.device.type]
        source = torch.ones(count, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy = 2 * count / _best(lambda: target.copy_(source), self.device)  # bytes per second, read and written

    def product(self, dtype: str) -> float:
        """Flops per second of a large product; 16-bit types count as float32 on a CPU, where that is what runs."""
        if self.device.type == "cpu" and dtype != "float64":
            dtype = "float32"
        if dtype not in self._products:
            side = SIDE[self.device.type]
            left, right = (torch.randn(side, side, device=self.device).to(getattr(torch, dtype)) for _ in range(2))
            self._products[dtype] = 2 * side**3 / _best(lambda: left @ right, self.device)
        return self._products[dtype]

    def bound(self, problem: Problem) -> float:
        """Seconds that the least work of a problem takes (Problem.floor)."""
        moved, flops = problem.floor()
        return max(moved / self.copy, flops / self.product(problem.dtype))
