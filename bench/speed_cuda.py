"""Time to dense rank-r approximations on a CUDA device against its peers, and of the fused reconstruction.

    python bench/speed_cuda.py [--cases rank10 llama2-7b ...] [--after CASE] [--budget 220] [--out FILE]
    python bench/speed_cuda.py --dry-run     (on the CPU, tiny sizes: tries the script, measures nothing)

Task: bf16 weights that lie on the device, LLM-like (weights.py), to dense bf16 A_r. Ours is `lk.low_rank` at tol=1e-3.
Peers include casts and product; `tuned` is the fastest setting found in hindsight with excess <= 1e-3 on that matrix.
  reconstruct  one (U s) Vh of 4096x4096, rank 410, with its residual, against torch: scale, matmul, cast, subtract, norm
  llama2-7b    the 224 matrices of Llama-2-7B's shapes at rank 10 %, against LASER's call on one layer's seven
  experts      4096 matrices 768x2048 at rank 10 %, against a Python loop of LASER's call over 64 of them
  smollm2      SmolLM2's own matrices at rank 10 %
  rank10       32 matrices 4096x4096 at rank 10 %       cusolver  the same, gesvdr, gesvdp, gesvdaStridedBatched
  rank50       8 matrices 4096x4096 at rank 50 %, and one alone, with eigh
  rank1        32 matrices 4096x4096 at rank 1 %        svd       the same and at 50 %, torch.linalg.svd
  ranks        32 matrices 4096x4096, each at its own rank, 1 % to 20 %, against a call for each
Times are CUDA events, medians with p10-p90 of interleaved repetitions; compared per matrix, since peers that loop run on
some matrices of the batch (their row's batch says how many). No time stands without its excess: the worst of the
checked results against float64 optima. bound_share: max(bytes / copy rate, flops / bf16 product rate), both measured in
the same run, over the time (weights.Task.floor). A wrong answer of ours prints FAILED and has no time; exit code 3. A case
that hangs, or loses the device, ends the process with another code: begin again with --after CASE.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cuda_peers
import torch
from cuda_compare import AGREEMENT, LASER, OURS, TARGET, Bench, Peers, loop, say, single
from cuda_timing import Method, alive, clocks, measure, reason
from weights import Task, Weights, llama2_7b, llm_like, smollm2_matrices

import laser_kernels as lk
from laser_kernels.bench.cusolver import NotReachable
from laser_kernels.bench.peers import gram_eigh, laser
from laser_kernels.ops import COMPILED

# Products of bf16 slices in the fused reconstruction: two slices per factor, without low x low.
SLICE_PRODUCTS = 3
ROUNDING_SLACK = 0.1  # error of a reconstruction over that of the exact product rounded once, minus 1


def rank10(bench: Bench) -> None:
    task, peers = Task(bench.square, 0.1), Peers()
    peers[LASER + ", loop"] = loop(task, laser, 8, comparable=False)
    peers.add_tuned(bench, task, 1, 15)
    peers["gram + torch.linalg.eigh"] = single(task, gram_eigh, limit=TARGET)
    bench.compare("low_rank", task, peers, 30, peers.unreachable)


def rank1(bench: Bench) -> None:
    task, peers = Task(bench.square, 0.01), Peers()
    peers[LASER + ", loop"] = loop(task, laser, 8, comparable=False)
    peers.add_tuned(bench, task, 1, 10)
    bench.compare("low_rank", task, peers, 30, peers.unreachable)


def ranks(bench: Bench) -> None:
    """Which of them share a call is dispatch.share_ranks's choice, by the model."""
    count = len(bench.square)
    task = Task(bench.square, [0.01 + 0.19 * i / (count - 1) for i in range(count)])
    alone = loop(task, partial(lk.low_rank, tol=TARGET), count, comparable=False)
    bench.compare("low_rank of several ranks", task, {OURS + ", a call for each": alone}, 20, {})


def svd(bench: Bench) -> None:
    """One driver after another, gesvdj and the default, which takes it, last: the slow ones cost nobody's figure."""
    one_percent, half = Task(bench.square, 0.01), Task(bench.few, 0.5)
    for task, driver in (one_percent, "gesvd"), (one_percent, "gesvda"), (half, None), (one_percent, "gesvdj"):
        method = single(task, cuda_peers.linalg_svd, driver, limit=TARGET)
        bench.compare("low_rank", task, {f"torch.linalg.svd driver={driver}": method}, 20, {})


def rank50(bench: Bench) -> None:
    task, peers = Task(bench.few, 0.5), Peers()
    peers["gram + torch.linalg.eigh"] = single(task, gram_eigh, limit=TARGET)
    bench.compare("low_rank", task, peers, 40, peers.unreachable)
    bench.compare("low_rank", Task(Weights(task.matrices[:1], (0,)), 0.5), Peers(), 5, {})


def cusolver(bench: Bench) -> None:
    task, peers, few = Task(bench.square, 0.1), Peers(), min(4, bench.sizes.batch)
    stack, rank = bench.square.matrices[:few], task.ranks[0]

    def gesvdr() -> tuple[str, Method]:
        solver = cuda_peers.TunedCuSolver(bench.device)
        setting = solver.tuned_gesvdr(stack[0], rank, partial(task.excess, 0), TARGET, bench.timer, bench.left(15))
        return " p={} niters={}".format(*setting), single(task, solver.gesvdr, *setting)

    def gesvdp() -> tuple[str, Method]:
        return "", single(task, cuda_peers.TunedCuSolver(bench.device).gesvdp)

    def gesvda() -> tuple[str, Method]:
        solver = cuda_peers.TunedCuSolver(bench.device)
        return "", Method(lambda i: solver.gesvda(stack, rank), lambda i, lows: task.worst(lows), few)

    for label, make in {"gesvdr": gesvdr, "gesvdp": gesvdp, "gesvdaStridedBatched": gesvda}.items():
        peers.prepare(f"cuSOLVER {label}", make)
    bench.compare("low_rank", task, peers, 45, peers.unreachable)


def llama(bench: Bench) -> None:
    task = Task(Weights(llama2_7b(*bench.sizes.llama, bench.device), (0, 4, 6, -1)), 0.1)
    peers = {LASER + ", loop over one layer": loop(task, laser, 7, comparable=False)}
    bench.compare("low_rank llama2-7b", task, peers, 30, {})


def experts(bench: Bench) -> None:
    count, rows, cols = bench.sizes.experts
    some = bench.sizes.loop
    task, peers = Task(Weights(llm_like(count, rows, cols, 4, bench.device), (*range(4), -1)), 0.1), Peers()
    peers[f"{LASER}, loop over {some}"] = loop(task, laser, some, comparable=False)
    peers.add_tuned(bench, task, some, 8)
    bench.compare("low_rank experts", task, peers, 30, peers.unreachable)


def smollm2(bench: Bench) -> None:
    matrices, what = smollm2_matrices(bench.sizes.copies, bench.timer.cuda, bench.device)
    task = Task(Weights(matrices, range(0, len(matrices), max(1, len(matrices) // 6))), 0.1)
    peers = {LASER + ", loop": loop(task, laser, bench.sizes.loop, comparable=False)}
    bench.compare(f"low_rank {what}", task, peers, 12, {})


def reconstruct(bench: Bench) -> None:
    """Excess here: error of the rounded product over the error of the exact product rounded once, minus 1."""
    side, rank, sets, device = bench.sizes.square, bench.sizes.fused_rank, bench.sizes.sets, bench.device
    weight = llm_like(sets, side, side, 5, device)
    u, vt = (torch.randn(sets, side, rank, device=device) / math.sqrt(side) for _ in range(2))
    s = 6 * torch.arange(1, rank + 1, device=device) ** -0.6
    left, out = u * s, torch.empty_like(weight)
    exact = left[0].double() @ vt[0].double().T
    rounded = exact.to(weight.dtype).double()
    best = torch.linalg.vector_norm(rounded - exact)
    residual = torch.linalg.vector_norm(weight[0].double() - rounded).item()
    op = getattr(torch.ops.laser_kernels, "reconstruct", None)

    def fused(scaled: bool, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if op is None:
            raise NotReachable("laser_kernels was not compiled")
        j = slice(i % sets, i % sets + 1)
        norms = op(left[j] if scaled else u[j] * s, vt[j], weight[j], out[j])
        return out[j], norms[0, 1]

    def sequence(precision: str, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        j = i % sets
        scaled, right = u[j] * s, vt[j].T
        if precision == "bf16":
            low = scaled.bfloat16() @ right.bfloat16()
        else:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            low = (scaled @ right).to(weight.dtype)
            torch.set_float32_matmul_precision("highest")
        return low, torch.linalg.vector_norm(weight[j] - low, dtype=torch.float32)

    def judge(i: int, value: tuple[torch.Tensor, torch.Tensor]) -> float:
        if i % sets != 0:
            return -1.0
        low, norm = value
        if not abs(norm.item() / residual - 1) <= AGREEMENT:
            raise ArithmeticError(f"residual {norm.item():.6g}, should be {residual:.6g}")
        return (torch.linalg.vector_norm(low.reshape(side, side).double() - exact) / best).item() - 1

    methods = {OURS: Method(partial(fused, True), judge, 1, ROUNDING_SLACK)}
    methods["scale, then " + OURS] = Method(partial(fused, False), judge, 1, ROUNDING_SLACK)
    for precision in ("fp32", "tf32", "bf16"):
        methods[f"torch sequence, {precision} matmul"] = Method(partial(sequence, precision), judge)
    found = measure(
        methods, bench.timer, repeats=3 * bench.sizes.repeats, seconds=bench.left(20), each=4, inner=3 * sets
    )
    mine = found["scale, then " + OURS]
    equal = [
        outcome.samples.median
        for name, outcome in found.items()
        if OURS not in name and outcome.status == "ok" and outcome.excess <= ROUNDING_SLACK
    ]
    moved, flops = 4 * side**2 + 8 * side * rank, 2.0 * side**2 * rank * SLICE_PRODUCTS
    for name, outcome in found.items():
        extra: dict[str, Any] = {}
        if outcome.status == "ok" and name == OURS:
            extra["bound_share"] = bench.ceilings.share(outcome.samples.median, moved, flops)
        if outcome.status == "ok" and outcome is mine and equal:
            extra["ratio_best_peer"] = min(equal) / outcome.samples.median
        bench.row(
            outcome,
            op="reconstruct" if name == OURS else "scale + reconstruct",
            peer=None if OURS in name else name,
            shape=[side, side],
            rank=rank,
            batch=1,
            dtype="bfloat16",
            excess=outcome.excess,
            status=outcome.status,
            **extra,
        )
        say(name, outcome, 1, mine.samples.median if mine.status == "ok" else None, extra)
    bench.failed |= mine.status != "ok"


# In this order: what was promised first, and of that the cheap ones.
CASES: dict[str, tuple[Callable[[Bench], None], str]] = {
    "reconstruct": (reconstruct, ">= 1.5x the torch sequence at equal accuracy, >= 70 % of the bound"),
    "rank10": (rank10, ">= 50x LASER's svd_lowrank, <= 3 ms per matrix"),
    "rank50": (rank50, "<= 15 ms by route spectral, >= 20x gram + eigh"),
    "rank1": (rank1, ">= 10x tuned svd_lowrank"),
    "ranks": (ranks, "no figure set: by the model a third of a call for each"),
    "llama2-7b": (llama, "<= 1.5 s for all (6.7 ms per matrix), aim 0.5 s"),
    "experts": (experts, ">= 100x a Python loop of svd_lowrank"),
    "cusolver": (cusolver, ">= 10x each at equal or better excess"),
    "smollm2": (smollm2, "no figure set"),
    "svd": (svd, ">= 100x torch.linalg.svd, each driver at 1 %, the default at 50 %"),
}
FAILED = 3  # exit code: all cases had their turn, and something of ours failed


def has_cuda_kernels() -> bool:
    """Whether ours would run on the device at all, rather than the plain torch reference."""
    return COMPILED and torch._C._dispatch_has_kernel_for_dispatch_key("laser_kernels::low_rank", "CUDA")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--after", choices=CASES, help="only the cases behind this one")
    parser.add_argument("--budget", type=float, default=220, help="seconds; nothing new is started after them")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny: tries the script, measures nothing")
    parser.add_argument("--out", type=Path, help="append rows to this JSON lines file")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing measured (--dry-run tries the script on the CPU)")
    if not options.dry_run and not has_cuda_kernels():
        raise SystemExit("this build of laser_kernels has no CUDA kernels: build it with LASER_CUDA=ON")
    bench = Bench(options)
    names = list(CASES)
    if options.after:
        names = names[names.index(options.after) + 1 :]
    for name in [name for name in names if name in options.cases]:
        case, goal = CASES[name]
        start = time.perf_counter()
        print(f"{name}: goal {goal}", flush=True)
        bench.watch()
        try:
            if bench.left(math.inf) < 3:
                raise TimeoutError("no time left")
            case(bench)
        except Exception as error:
            status = "skipped: no time left" if isinstance(error, TimeoutError) else reason(error)
            bench.row(None, op=name, status=status)
            bench.failed = True
            print(f"    {status}\n{traceback.format_exc()}" if status.startswith("error") else f"    {status}")
        faulthandler.cancel_dump_traceback_later()
        if name == "ranks":
            bench.release()  # `cusolver` and `svd`, near the end, make them again
        print(
            f"    ({time.perf_counter() - start:.1f} s; {clocks() if bench.timer.cuda else 'on the CPU'})", flush=True
        )
        if not alive(bench.device):
            print(f"    {name}: the CUDA context is lost", flush=True)
            os._exit(1)  # nothing of CUDA can be cleared away any more
    return FAILED if bench.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
