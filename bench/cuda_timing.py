"""Times of calls on a CUDA device: events, warm-up, interleaved rounds, budgets; and its two ceilings.

On a CPU the same code runs with a wall clock, so that the scripts can be tried without a GPU.
"""

from __future__ import annotations

import math
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from laser_kernels.bench import rows
from laser_kernels.bench.cusolver import NotReachable
from laser_kernels.bench.timing import Samples

BACKLOG, FILLS = 1 << 29, 24  # bytes per fill; the fills take about 3 ms, the time to queue 24 short calls


class OutOfTime(RuntimeError):
    """A budget ended before there was a result."""


class Timer:
    """Seconds per call, and the last result.

    One call: events around it, host work included, because the device waits for it. Several (`inner`): queued behind a
    backlog of fills, so that the device never waits for Python; the fills also empty the L2 cache. `waited`: it did all
    the same.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cuda = device.type == "cuda"
        self.waited = False
        self._backlog = torch.empty(BACKLOG, dtype=torch.uint8, device=device) if self.cuda else None

    def __call__(self, call: Callable[[int], Any], index: int = 0, inner: int = 1) -> tuple[float, Any]:
        """Runs call(index), call(index + 1), ... `inner` times."""
        value = None
        if not self.cuda:
            start = time.perf_counter()
            for i in range(inner):
                value = call(index + i)
            return (time.perf_counter() - start) / inner, value
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if inner > 1:
            for _ in range(FILLS):
                self._backlog.zero_()
        begin.record()
        for i in range(inner):
            value = call(index + i)
        end.record()
        self.waited = inner > 1 and begin.query()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / inner, value

    def synchronized(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, then a wait for the device: for wall clocks."""

        def run(*arguments: Any) -> Any:
            value = call(*arguments)
            if self.cuda:
                torch.cuda.synchronize()
            return value

        return run


@dataclass
class Method:
    """One way to do a task.

    Attributes:
        call: takes the number of the repetition, which chooses among several inputs.
        judge: (repetition, result) -> excess; NaN is wrong. Raises ArithmeticError where the result contradicts itself.
        batch: matrices that one call works on; times are compared per matrix.
        limit: an excess above it is a wrong answer; infinite where nothing is promised.
        comparable: counts for the ratio to the best peer.
    """

    call: Callable[[int], Any]
    judge: Callable[[int, Any], float]
    batch: int = 1
    limit: float = math.inf
    comparable: bool = True


@dataclass
class Outcome:
    """What became of a method: times, the worst excess seen, or why there is none."""

    samples: Samples = field(default_factory=Samples)
    excess: float | None = None
    status: str = "ok"
    peak_bytes: int | None = None
    spent: float = 0.0
    note: str = ""

    def see(self, excess: float, limit: float) -> None:
        """Takes note of a result's excess; NaN counts as wrong."""
        self.excess = excess if self.excess is None or not excess <= self.excess else self.excess
        if not self.excess <= limit:
            self.status = "FAILED"


def reason(error: BaseException) -> str:
    """An exception as a row's status."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = (str(error).splitlines() or [""])[0][:120]
    if isinstance(error, ArithmeticError):
        return "FAILED"
    kind = {NotReachable: "not reachable", OutOfTime: "skipped", NotImplementedError: "unsupported"}.get(type(error))
    return f"{kind or 'error'}: {text}"


def alive(device: torch.device) -> bool:
    """Whether a CUDA device still answers; unused memory goes back to it."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def measure(
    methods: dict[str, Method], timer: Timer, *, repeats: int, seconds: float, each: float, inner: int = 1
) -> dict[str, Outcome]:
    """Times every method `repeats` times, interleaved, each round starting one further, after one call as warm-up.

    A method that has had `each` seconds is not repeated further; one that cannot be repeated at all keeps the time of
    its first call, with a note. After `seconds` in all nothing new is started. What a method raises costs it alone; where
    it costs the device too, the others keep what they have.
    """
    stop = time.perf_counter() + seconds
    outcomes = {name: Outcome() for name in methods}
    lost = False

    def run(name: str, index: int, count: int) -> float | None:
        """One timed call, judged; its seconds, or None where it failed."""
        nonlocal lost
        method, outcome = methods[name], outcomes[name]
        start = time.perf_counter()
        try:
            taken, value = timer(method.call, index, count)
            outcome.see(method.judge(index + count - 1, value), method.limit)
        except Exception as error:
            outcome.status, taken, value = reason(error), None, None
            print(f"    {name}:\n{traceback.format_exc()[-2000:]}", flush=True)
            lost = not alive(timer.device)
        outcome.spent += time.perf_counter() - start
        return taken if outcome.status == "ok" else None

    first: dict[str, float] = {}
    for name, outcome in outcomes.items():
        if lost or time.perf_counter() > stop:
            outcome.status = "skipped: the device was lost" if lost else "skipped: no time left"
            continue
        before = torch.cuda.memory_allocated() if timer.cuda else 0
        if timer.cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = run(name, 0, 1)
        if timer.cuda and not lost:
            outcome.peak_bytes = torch.cuda.max_memory_allocated() - before
        if taken is not None:
            first[name] = taken
    order = list(first)
    for turn in range(repeats):
        for name in order[turn % max(1, len(order)) :] + order[: turn % max(1, len(order))]:
            outcome = outcomes[name]
            likely = outcome.spent / (1 + len(outcome.samples.seconds))
            over = outcome.spent + likely > each or time.perf_counter() + likely > stop
            if lost or over or outcome.status != "ok":
                continue
            taken = run(name, 1 + turn * inner, inner)
            if taken is not None:
                outcome.samples.seconds.append(taken)
                outcome.note = " (the device waited for the host)" if timer.waited else outcome.note
    for name, taken in first.items():
        if outcomes[name].status == "ok" and not outcomes[name].samples.seconds:
            outcomes[name].samples.seconds.append(taken)
            outcomes[name].note = " (first call only)"
    return outcomes


@dataclass(frozen=True)
class Ceilings:
    """What this device was measured to do."""

    copy: float  # bytes per second, read and written ones counted
    product: float  # flops per second of a large bf16 product on random numbers, the library's own

    def share(self, seconds: float, moved: float, flops: float) -> float:
        """The floor of so many bytes and flops, over the time taken."""
        return max(moved / self.copy, flops / self.product) / seconds


def ceilings(timer: Timer, tiny: bool) -> tuple[Ceilings, list[dict[str, Any]]]:
    """Measures both; and their rows."""
    count, side, repeats, inner = (1 << 16, 64, 2, 2) if tiny else (1 << 30, 8192, 7, 10)
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=timer.device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    calls = {
        "copy": lambda i: target.copy_(source),
        "product": lambda i: torch.mm(left, right, out=product),
    }
    methods = {name: Method(call, lambda i, value: 0.0) for name, call in calls.items()}
    found = measure(methods, timer, repeats=repeats, seconds=20, each=10, inner=inner)
    made = Ceilings(2 * count / found["copy"].samples.median, 2 * side**3 / found["product"].samples.median)
    print(f"ceilings: copy {made.copy / 1e12:.2f} TB/s, bf16 product {made.product / 1e12:.0f} TFLOP/s")
    names = {"copy": ("torch copy_", [count], "uint8"), "product": ("cuBLAS", [side, side, side], "bfloat16")}
    rows = []
    for name, (peer, shape, dtype) in names.items():
        rows.append(row(timer.device, found[name].samples, op=f"ceiling: {name}", peer=peer, shape=shape, dtype=dtype))
    return made, rows


def asked(*facts: str) -> str | None:
    """What nvidia-smi says of the first GPU; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(facts)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def clocks() -> str | None:
    """Clocks, power, temperature, and why clocks are lowered, as a bit mask: 0 or 1 (idle) is as should be."""
    return asked("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")


_versions: dict[str, Any] = {}


def versions() -> dict[str, Any]:
    """Python, torch, CUDA and driver; asked once."""
    if not _versions:
        _versions.update(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda)
        _versions["driver"] = asked("driver_version")
    return dict(_versions)


def row(device: torch.device, samples: Samples | None, **values: Any) -> dict[str, Any]:
    """rows.row, with this device and its software; LASER_COMMIT names the commit of a tree without .git."""
    known = {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": versions(),
    }
    return rows.row(samples, **(known | values))
