"""The final product A_r = (A V) V^T in several arithmetics: how far each is from the optimum.

Factors are exact: V from an eigensolver in float64. On a CPU the arithmetics of tensor cores are simulated (products of
bfloat16 numbers are exact in float32, which is also what is summed in), so there is no time; on CUDA the products run on
the hardware and are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from laser_kernels.bench.matrices import load
from laser_kernels.bench.optimum import Optimum
from laser_kernels.bench.problem import Problem
from laser_kernels.bench.rows import Row, row
from laser_kernels.bench.timing import Samples

TF32_DROPPED = 13  # of float32's 23 explicit bits; TF32 keeps 10
REPEATS = 10


def slices(x: Tensor, count: int) -> list[Tensor]:
    """bfloat16 tensors whose sum is x, up to the last one's rounding (Ootomo & Yokota 2022, arXiv 2203.03341)."""
    found, rest = [], x.float()
    for _ in range(count):
        found.append(rest.bfloat16())
        rest = rest - found[-1].float()
    return found


def _sliced(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """All products of slices whose indices add up to less than `count`, smallest first."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        xs, ys = slices(x, count), slices(y, count)
        pairs = sorted(((i, j) for i in range(count) for j in range(count - i)), key=sum, reverse=True)
        total = torch.zeros(x.shape[0], y.shape[1], device=x.device)
        for i, j in pairs:
            total += torch.mm(xs[i], ys[j], out_dtype=torch.float32) if x.is_cuda else xs[i].float() @ ys[j].float()
        return total

    return product


def round_tf32(x: Tensor) -> Tensor:
    """Nearest number with 10 explicit bits, ties away from zero."""
    bits = x.float().contiguous().view(torch.int32)
    half, mask = 1 << (TF32_DROPPED - 1), -(1 << TF32_DROPPED)
    return ((bits + half) & mask).view(torch.float32)


def _tf32(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_cuda:
        return round_tf32(x) @ round_tf32(y)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return x @ y
    finally:
        torch.set_float32_matmul_precision(before)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bf16": _sliced(1),
    "2-slice": _sliced(2),
    "3-slice": _sliced(3),
    "tf32": _tf32,
    "fp32": lambda x, y: x @ y,
}


def _timed(call: Callable[[], Tensor]) -> Samples:
    """CUDA events around single calls, after one that warms up."""
    samples = Samples()
    call()
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        samples.seconds.append(begin.elapsed_time(end) * 1e-3)
    return samples


def run(problem: Problem, suite: str, device: str, say: Callable[[str], None]) -> list[Row]:
    """One row per arithmetic: excess and residual of the result as it is stored; details.error before it is rounded."""
    say(f"{problem}: its final product")
    rows = []
    stack = load(problem, 0, torch.device(device))
    wide = stack.double()
    wide = wide if problem.rows >= problem.cols else wide.mT
    v = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -problem.resolved :]
    exact = [a @ p for a, p in zip(wide, v, strict=True)]
    optima = [Optimum.of(a, [problem.resolved])[problem.resolved] for a in wide]
    for name, product in PRODUCTS.items():
        error, excess, residual = [], [], []
        for a, x, p, optimum in zip(wide, exact, v, optima, strict=True):
            x32, p32 = x.float(), p.mT.float().contiguous()
            low, best = product(x32, p32), x @ p.mT
            error.append((torch.linalg.vector_norm(low.double() - best) / torch.linalg.vector_norm(best)).item())
            residual.append(torch.linalg.vector_norm(a - low.to(stack.dtype).double()).item() / optimum.norm)
            excess.append(optimum.excess(residual[-1] * optimum.norm))
        samples = _timed(lambda f=product, x=x32, y=p32: f(x, y)) if device == "cuda" else None  # type: ignore[misc]
        time = f"{samples.median:9.6f} s  " if samples else ""
        say(f"    {name:<10} {time}excess {max(excess):8.1e}  error of the product {statistics.median(error):.1e}")
        rows.append(
            row(
                samples,
                op="reconstruct",
                route=name,
                shape=[problem.rows, problem.cols],
                rank=problem.resolved,
                batch=problem.batch,
                dtype=problem.dtype,
                device=device,
                gpu=torch.cuda.get_device_name() if device == "cuda" else None,
                excess=max(excess),
                residual=max(residual),
                tol=problem.tol,
                details={
                    "suite": suite, "source": problem.source, "method": name, "rank": problem.rank, "error": max(error)
                },
            )
        )  # fmt: skip
    return rows
