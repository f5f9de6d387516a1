"""How one problem is measured: optima, first calls, tuning, interleaved rounds, rows. No time without its error."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from laser_kernels.bench.matrices import load
from laser_kernels.bench.optimum import Optimum
from laser_kernels.bench.peers import OURS, Peer, oversamplings
from laser_kernels.bench.problem import Problem
from laser_kernels.bench.rates import Rates
from laser_kernels.bench.rows import Row, row, versions
from laser_kernels.bench.suites import Suite
from laser_kernels.bench.team import Lost, Team
from laser_kernels.bench.timing import Samples, rotated, spread
from laser_kernels.bench.tuning import tune
from laser_kernels.bench.worker import Answer, Task

GIVE_UP = 4.0  # a method this many times slower than ours in its first call is not repeated
PATIENT = 1.0  # ... unless a call takes less than this many seconds
# A shorter call is repeated until this many seconds are full: threads that the rest put to sleep take 10 ms to wake.
SHORT = 0.1
CHECKED = 3  # matrices of a batch whose optimum is computed: first, middle, last


@dataclass
class Outcome:
    """What became of one method on one problem."""

    peer: Peer
    setting: dict[str, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    residual: float = 0.0  # worst, relative to ||A||
    excess: float = -math.inf
    reaches: bool = True
    first: Answer | None = None
    batch: int = 1
    inner: int = 1
    status: str = "ok"
    why: str = ""

    @property
    def label(self) -> str:
        """Name and setting."""
        return self.peer.name + "".join(f" {'p' if k == 'oversample' else k}={v}" for k, v in self.setting.items())

    @property
    def each(self) -> float:
        """Seconds per matrix."""
        return self.samples.median / self.batch


class Measured:
    """A problem's inputs, on disk for the processes, and their optima."""

    def __init__(self, problem: Problem, device: str, folder: Path):
        inputs = 1 if problem.source == "checkpoint" else problem.inputs
        self.checked = sorted({i * (problem.batch - 1) // (CHECKED - 1) for i in range(CHECKED)})
        self.files, self.optima = [], dict[tuple[int, int], Optimum]()
        for number in range(inputs):
            stack = load(problem, number, torch.device(device))
            for i in self.checked:
                self.optima[number, i] = Optimum.of(stack[i], [problem.resolved])[problem.resolved]
            self.files.append(folder / f"{number}.safetensors")
            save_file({"a": stack.cpu().contiguous()}, self.files[-1])


class Bench:
    """Measures problems on one device, with the given methods; ours come first."""

    def __init__(self, team: Team, methods: Sequence[Peer], rates: Rates, suite: Suite, say: Callable[[str], None]):
        self.team, self.methods, self.rates, self.options, self.say = team, methods, rates, suite.options, say
        self.suite = suite.name

    def run(self, problem: Problem) -> list[Row]:
        """Rows of all methods."""
        self.say(f"{problem}, excess <= {problem.tol:g}")
        with tempfile.TemporaryDirectory(prefix="laser-bench-") as folder:
            measured = Measured(problem, self.team.device, Path(folder))
            self.team.inputs(measured.files, measured.checked)
            outcomes = [Outcome(peer) for peer in self.methods]
            for outcome in outcomes:
                self._attempt(outcome, partial(self._first, problem, measured, outcome, outcomes[0]))
            self._rounds(problem, measured, outcomes)
        return self._rows(problem, outcomes)

    @staticmethod
    def _attempt(outcome: Outcome, work: Callable[[], Any]) -> None:
        """What goes wrong costs this method only."""
        try:
            work()
        except Lost as lost:
            outcome.status, outcome.why = lost.status, lost.why

    def _call(self, problem: Problem, measured: Measured, o: Outcome, number: int, look: bool = False) -> Answer:
        task = Task(
            o.peer.name, problem.op, problem.resolved, problem.tol, number, o.setting, self.options.loop, look, o.inner
        )
        answer = self.team.call(o.peer.library, task, self.options.limit)
        o.batch = answer.batch
        return answer

    def _judge(self, problem: Problem, measured: Measured, o: Outcome, number: int, answer: Answer) -> None:
        """Takes note of the errors; a wrong answer raises."""
        for i, residual in answer.residuals.items():
            optimum = measured.optima[number, i]
            o.residual = max(o.residual, residual / optimum.norm if optimum.norm > 0 else residual)
            o.excess = max(o.excess, optimum.excess(residual))
            fits = optimum.reaches(residual, problem.tol, problem.dtype)
            o.reaches &= fits
            promised = o.peer.exact or o.peer.library == OURS
            if not math.isfinite(residual) or optimum.impossible(residual) or (promised and not fits):
                raise Lost("FAILED", f"residual {residual:.6g}, optimum {optimum.tail:.6g}")

    def _first(self, problem: Problem, measured: Measured, o: Outcome, ours: Outcome) -> None:
        """Finds the setting, warms up, looks at memory and launches."""
        if o.peer.tuned:
            self._tune(problem, measured, o)
        self._judge(problem, measured, o, 0, self._call(problem, measured, o, 0))
        o.first = self._call(problem, measured, o, 0, look=True)
        slow = o.first.seconds / o.batch > GIVE_UP * (ours.first.seconds / ours.batch if ours.first else math.inf)
        if slow and o.first.seconds > PATIENT:
            o.samples.seconds.append(o.first.seconds)
        if self.team.device == "cpu":
            o.inner = max(1, math.ceil(SHORT / o.first.seconds))

    def _tune(self, problem: Problem, measured: Measured, o: Outcome) -> None:
        def attempt(setting: dict[str, int]) -> tuple[float, bool]:
            o.setting, seconds = setting, math.inf
            for number in range(len(measured.files)):
                answer = self._call(problem, measured, o, number)
                seconds = min(seconds, answer.seconds)
                if not all(
                    measured.optima[number, i].reaches(residual, problem.tol, problem.dtype)
                    for i, residual in answer.residuals.items()
                ):
                    return seconds, False
            return seconds, True

        grid = oversamplings(problem.resolved, min(problem.rows, problem.cols))
        o.setting = {"oversample": grid[-1] if grid else 0, "niter": 1}
        self._call(problem, measured, o, 0)  # first call: libraries load, which is not tuning
        stop = time.monotonic() + self.options.tuning
        found = tune(attempt, grid or [0], lambda: time.monotonic() > stop)
        if found is None:
            o.setting = {}
            raise Lost("untuned", f"no setting found with excess <= {problem.tol:g} in {self.options.tuning:g} s")
        o.setting = found

    def _rounds(self, problem: Problem, measured: Measured, outcomes: list[Outcome]) -> None:
        running = {o.peer.name: o for o in outcomes if o.status == "ok" and not o.samples.seconds}
        for turn in range(self.options.repeats):
            number = turn % len(measured.files)
            for name in rotated(list(running), turn):
                o = running[name]

                def once(o: Outcome = o, number: int = number) -> None:
                    answer = self._call(problem, measured, o, number)
                    self._judge(problem, measured, o, number, answer)
                    o.samples.seconds.append(answer.seconds)

                if o.status == "ok":
                    self._attempt(o, once)

    def _rows(self, problem: Problem, outcomes: list[Outcome]) -> list[Row]:
        bound = self.rates.bound(problem) / problem.batch
        mine = [o for o in outcomes if o.peer.library == OURS]
        rivals = [o for o in outcomes if o not in mine and o.status == "ok" and o.reaches]
        best = min(rivals, key=lambda o: o.each) if rivals else None
        rows = []
        for o in outcomes:
            ok, answer = o.status == "ok", o.first
            ratio = best.each / o.each if ok and best and o in mine else None
            if ok:
                share = bound / o.each
                versus = f"  {o.each / mine[0].each:6.2f}x ours" if o not in mine and mine[0].status == "ok" else ""
                versus += "" if o.reaches else "  (misses the excess)"
                self.say(
                    f"    {o.label:<42} {o.samples.median:9.4f} s ({spread(o.samples)})  excess {o.excess:8.1e}"
                    f"  {share:4.0%} of bound{versus}"
                )
            else:
                self.say(f"    {o.label:<42} {o.status} {o.why}")
            details: dict[str, Any] = {"suite": self.suite, "problem": problem.name or None, "source": problem.source}
            details |= {"method": o.peer.name, "rank": problem.rank, "count": problem.count or None}
            details |= {"samples": len(o.samples.seconds), "launches": answer.launches if answer else None}
            details |= {"reaches": o.reaches if ok else None, "why": o.why or None}
            details |= {"best_peer": best.label if ratio and best else None, "setting": o.setting or None}
            rows.append(
                row(
                    o.samples if ok else None,
                    op=problem.op,
                    route=answer.route if answer else None,
                    peer=None if o.peer.library == OURS else o.label,
                    shape=[problem.rows, problem.cols],
                    rank=problem.resolved,
                    batch=o.batch if ok else problem.batch,
                    dtype=problem.dtype,
                    device=self.team.device,
                    gpu=torch.cuda.get_device_name() if self.team.device == "cuda" else None,
                    excess=o.excess if math.isfinite(o.excess) else None,
                    residual=o.residual if math.isfinite(o.excess) else None,
                    iterations=answer.iterations if answer else None,
                    bound_share=bound / o.each if ok else None,
                    ratio_best_peer=ratio,
                    peak_bytes=answer.peak_bytes if answer else None,
                    status=o.status,
                    versions=versions() | {o.peer.library: self.team.versions.get(o.peer.library)},
                    tol=problem.tol,
                    details=details,
                )
            )
        return rows
