"""Ours against its peers on one task of speed_cuda.py: the methods, the judgement, the lines and rows."""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cuda_peers
import torch
from cuda_timing import Method, Outcome, Timer, ceilings, measure, reason, row
from weights import Task, Weights, llm_like

import laser_kernels as lk
from laser_kernels.bench.rows import append

TARGET = 1e-3
AGREEMENT = 1e-3  # between info.residual and the residual measured here
HANGS = 100.0  # seconds after which a comparison is taken to hang
OURS, LASER = "laser_kernels", "LASER's svd_lowrank"


@dataclass(frozen=True)
class Sizes:
    """How large the cases are, and the seconds each may take."""

    square: int
    batch: int
    llama: tuple[int, int, int]
    experts: tuple[int, int, int]
    loop: int
    copies: int
    fused_rank: int
    sets: int
    repeats: int


FULL = Sizes(4096, 32, (4096, 11008, 32), (4096, 768, 2048), 64, 64, 410, 8, 7)
DRY = Sizes(48, 3, (32, 86, 2), (6, 24, 64), 3, 1, 5, 2, 1)


class Bench:
    """What the cases share: the device, the budget, the file, and the 32 square matrices."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device("cpu" if options.dry_run else "cuda")
        self.sizes, self.out = DRY if options.dry_run else FULL, options.out
        self.timer, self.stop = Timer(self.device), time.perf_counter() + options.budget
        self.failed, self._square = False, None
        self.ceilings, rows = ceilings(self.timer, options.dry_run)
        append(self.out, rows)

    def left(self, most: float) -> float:
        """Seconds for what comes next."""
        return max(0.0, min(most, self.stop - time.perf_counter()))

    @property
    def square(self) -> Weights:
        if self._square is None:
            side = self.sizes.square
            self._square = Weights(llm_like(self.sizes.batch, side, side, 0, self.device), (0, 1, -1))
        return self._square

    @property
    def few(self) -> Weights:
        """Some of `square`, for what takes long."""
        return Weights(self.square.matrices[: min(8, self.sizes.batch)], (0, -1))

    def release(self) -> None:
        self._square = None

    def watch(self) -> None:
        """Ends the process HANGS seconds from now, unless called again or cancelled."""
        if self.timer.cuda:
            faulthandler.dump_traceback_later(HANGS, exit=True)

    def row(self, outcome: Outcome | None, **values: Any) -> dict[str, Any]:
        """A row, written at once: a run that is stopped keeps what it has measured."""
        samples = outcome.samples if outcome and outcome.status == "ok" and outcome.samples.seconds else None
        made = row(self.device, samples, **values)
        append(self.out, [made])
        return made

    def compare(
        self, op: str, task: Task, peers: dict[str, Method], seconds: float, unreachable: dict[str, str]
    ) -> None:
        """Times ours and the peers on one task; prints and records."""
        self.watch()
        reported: list[list[lk.Info]] = []

        def ours(i: int) -> Any:
            low, infos = lk.low_rank(task.matrices, task.asked, tol=TARGET, return_info=True)
            reported[:] = [infos]
            return low

        def judge(i: int, low: Any) -> float:
            if i == 0 and not task.disagreement(low, [x.residual for x in reported[0]]) <= AGREEMENT:
                raise ArithmeticError("residuals differ from what info says")
            return task.worst(low)

        methods = {OURS: Method(ours, judge, len(task), TARGET)} | peers
        _ = task.weights.squares  # outside everyone's budget
        found = measure(
            methods, self.timer, repeats=self.sizes.repeats, seconds=self.left(seconds), each=seconds / len(methods)
        )
        per_matrix = {
            name: outcome.samples.median / methods[name].batch
            for name, outcome in found.items()
            if outcome.status == "ok"
        }
        mine = per_matrix.get(OURS)
        good = [
            per_matrix[name]
            for name in per_matrix
            if name != OURS and methods[name].comparable and found[name].excess <= 2 * TARGET
        ]  # a tuned peer draws a new sketch in every repetition and may end slightly above the target
        for name, outcome in found.items():
            own, extra = name == OURS, {}
            if own and mine:
                infos = reported[0]
                spectral = all(x.route == "spectral" for x in infos)
                floor = task.floor([x.iterations for x in infos], TARGET, spectral)
                extra = {
                    "route": "+".join(sorted({x.route for x in infos})),
                    "iterations": max(x.iterations for x in infos),
                    "residual": max(x.relative_residual for x in infos),
                    "bound_share": self.ceilings.share(mine * len(task), *floor),
                    "ratio_best_peer": min(good) / mine if good else None,
                }
            self.row(
                outcome,
                op=op,
                peer=None if own else name + outcome.note,
                shape=task.shape,
                rank=task.rank,
                batch=methods[name].batch,
                dtype="bfloat16",
                excess=outcome.excess,
                peak_bytes=outcome.peak_bytes,
                status=outcome.status,
                **extra,
            )
            say(name, outcome, methods[name].batch, mine, extra)
        for name, status in unreachable.items():
            self.row(None, op=op, peer=name, shape=task.shape, dtype="bfloat16", status=status)
            print(f"    {name:<46} {status}")
        self.failed |= found[OURS].status != "ok"


def say(name: str, outcome: Outcome, batch: int, mine: float | None, extra: dict[str, Any]) -> None:
    """One method's line: milliseconds per matrix, p10-p90, excess, ratio."""
    if outcome.status != "ok":
        known = "" if outcome.excess is None else f"  excess {outcome.excess:.1e}"
        print(f"    {name:<46} {outcome.status}{known}", flush=True)
        return
    each = [
        1e3 * x / batch for x in (outcome.samples.median, outcome.samples.quantile(0.1), outcome.samples.quantile(0.9))
    ]
    ratio = f"{each[0] / 1e3 / mine:8.2f}x ours" if mine and name != OURS else ""
    share = f"  {extra['bound_share']:.0%} of bound {extra.get('route', '')}" if "bound_share" in extra else ""
    print(
        f"    {name + outcome.note:<46} {each[0]:10.4f} ms ({each[1]:.4f}-{each[2]:.4f})  excess {outcome.excess:.1e}"
        f"  {ratio}{share}",
        flush=True,
    )


def single(task: Task, method: Callable[..., torch.Tensor], *arguments: Any, **options: Any) -> Method:
    """One matrix per call, another one each time."""

    def call(i: int) -> torch.Tensor:
        return method(task.matrices[i % len(task)], task.ranks[i % len(task)], *arguments)

    return Method(call, task.excess, **options)


def loop(task: Task, method: Callable[..., torch.Tensor], count: int, *arguments: Any, **options: Any) -> Method:
    """A Python loop over the first `count` matrices."""
    count = min(count, len(task))

    def call(i: int) -> list[torch.Tensor]:
        return [method(task.matrices[j], task.ranks[j], *arguments) for j in range(count)]

    return Method(call, lambda i, lows: task.worst(lows), count, **options)


class Peers(dict[str, Method]):
    """Methods by label; those that cannot even be prepared go to `unreachable` with the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.unreachable: dict[str, str] = {}

    def prepare(self, label: str, make: Callable[[], tuple[str, Method]]) -> None:
        """make() -> (setting, method)."""
        try:
            setting, method = make()
        except Exception as error:
            self.unreachable[label] = reason(error)
        else:
            self[label + setting] = method

    def add_tuned(self, bench: Bench, task: Task, count: int, seconds: float) -> None:
        def make() -> tuple[str, Method]:
            low_excess = partial(task.excess, 0)
            found = cuda_peers.tuned_svd_lowrank(
                task.matrices[0], task.ranks[0], low_excess, TARGET, bench.timer, bench.left(seconds)
            )
            setting = found["oversample"], found["niter"]
            method = cuda_peers.svd_lowrank
            made = single(task, method, *setting) if count == 1 else loop(task, method, count, *setting)
            return " p={} niter={}".format(*setting), made

        self.prepare("tuned svd_lowrank" + (", loop" if count > 1 else ""), make)
