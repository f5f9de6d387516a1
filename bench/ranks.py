"""What a rank rule costs: growing until it is certain, against all singular values. `python bench/ranks.py [side]`.

products: columns multiplied by A^T A while growing (iterations times block); a Gram matrix is worth side / 2 of them, before
its eigenvalues are computed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from laser_kernels import api, exact
from laser_kernels.dispatch import default_block
from laser_kernels.ranks import Energy, Frobenius, Mergekit, Peft, Ratio
from laser_kernels.testing import gaussian, llm_like

RULES = [
    *(Energy(share) for share in (0.05, 0.1, 0.5, 0.9, 0.99)),
    *(Frobenius(0.3), Ratio(0.5), Ratio(0.2), Ratio(0.05), Peft(0.9), Mergekit(16, 0.5)),
]


def delta(side: int) -> torch.Tensor:
    """A fine-tuning difference: 64 directions that decay as i^-0.8, and noise. float32."""
    left, right = gaussian(side, 64, 1, torch.float32), gaussian(64, side, 2, torch.float32)
    return 0.05 * (left * torch.arange(1, 65) ** -0.8) @ right + 1e-3 * gaussian(side, side, 3, torch.float32)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def main(side: int) -> int:
    columns: list[int] = []
    truncated_svd = api.truncated_svd

    def counting(a: torch.Tensor, rank: int, **options: Any) -> Any:
        result, info = truncated_svd(a, rank, **options)
        columns.append(info.iterations * default_block(rank, side, options["tol"]))
        return result, info

    api.truncated_svd = counting  # type: ignore[assignment]
    wrong = 0
    for name, a in (("llm_like", llm_like(side, side)), ("delta", delta(side))):
        values, gram = timed(lambda a=a: exact.singular_values(a))
        _, lapack = timed(lambda a=a: torch.linalg.svdvals(a))
        print(f"{name} {side}x{side}: torch.linalg.svdvals float32 {lapack:.2f} s, ours in float64 {gram:.2f} s")
        for rule in RULES:
            columns.clear()
            rank, seconds = timed(lambda a=a, rule=rule: rule.of(a))
            right = rank == max(1, rule.count(values, (side, side)))
            wrong += not right
            verdict = "" if right else "  WRONG"
            print(
                f"  {rule!s:34} rank {rank:5}  {seconds:5.2f} s  {lapack / seconds:5.1f}x  products {sum(columns)}{verdict}"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048))
