"""One process in which the methods of one library run: a crash, a hang or exhausted memory ends here.

Started by team.py with (descriptor of a pipe, library, device). It says ("ready", version of the library); then
messages over the pipe, each answered:
("load", files, checked), ("call", Task). An answer is an Answer, or (kind, text) of what went wrong.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laser_kernels.bench.peers import OURS, Peer, multiply, ours, peers
from laser_kernels.bench.timing import SETTLE

L2_FLUSH = 1 << 28  # bytes; more than any L2 cache


@dataclass(frozen=True)
class Task:
    """One call: method, what of, and whether to look at its memory and launches (not timed then)."""

    method: str
    op: str
    rank: int
    tol: float
    number: int  # of the input
    setting: dict[str, int] = field(default_factory=dict)
    most: int = 1 << 30  # matrices a method that must loop works on
    look: bool = False
    inner: int = 1  # calls in a row that are timed together, after one that is not


@dataclass(frozen=True)
class Answer:
    """What a call took and gave."""

    seconds: float
    batch: int
    residuals: dict[int, float]  # of the checked matrices, float64
    route: str | None = None
    iterations: int | None = None
    peak_bytes: int | None = None
    launches: int | None = None


def method(name: str) -> Peer:
    """The method of that name, ours included."""
    if name.startswith(OURS):
        return ours(name[len(OURS) :].strip(" []") or "auto")
    return peers()[name]


class Memory:
    """Peak memory of a call above what was there before: resident memory (Linux), or torch's allocator on CUDA."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before: int | None = torch.cuda.memory_allocated()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")
        except OSError:
            self.before = None

    @staticmethod
    def _status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])

    def peak(self, library: str) -> int | None:
        if self.cuda:
            after = torch.cuda.max_memory_allocated() if library in ("torch", OURS) else None
        else:
            after = None if self.before is None else self._status("VmHWM")
        return None if after is None or self.before is None else max(0, after - self.before)


def _launches(call: Callable[[], Any]) -> int:
    """Kernels that one call starts."""
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        torch.cuda.synchronize()
    return sum(1 for event in profile.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA)


class Worker:
    """State of the process: the device and the inputs of the current problem."""

    def __init__(self, library: str, device: str):
        self.library, self.device = library, device
        self.flush = torch.empty(L2_FLUSH, dtype=torch.uint8, device="cuda") if device == "cuda" else None
        self.inputs: list[Tensor] = []
        self.checked: list[int] = []

    def load(self, files: list[str], checked: list[int]) -> None:
        from safetensors.torch import load_file

        self.inputs.clear()
        gc.collect()
        self.inputs = [load_file(file)["a"].clone().to(self.device) for file in files]
        self.checked = checked

    def _timed(self, call: Callable[[], Any], wait: Callable[[Any], Any], inner: int) -> tuple[float, Any]:
        """After a rest; on CUDA between two events, with a cold L2 cache."""
        time.sleep(SETTLE)
        if self.flush is None:
            value = wait(call()) if inner > 1 else None
            start = time.perf_counter()
            for _ in range(inner):
                value = wait(call())
            return (time.perf_counter() - start) / inner, value
        self.flush.zero_()
        torch.cuda.synchronize()
        if self.library not in ("torch", OURS):  # its own stream
            start = time.perf_counter()
            value = wait(call())
            return time.perf_counter() - start, value
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        value = call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, value

    def call(self, task: Task) -> Answer:
        peer, stack = method(task.method), self.inputs[task.number]
        mine = peer.library == OURS
        count = len(stack) if peer.batched else min(task.most, len(stack))
        whole = peer.batched and len(stack) > 1
        native = [peer.take(stack)] if whole else [peer.take(stack[i]) for i in range(count)]
        extra: dict[str, Any] = {"tol": task.tol} if mine else dict(task.setting)
        torch.manual_seed(task.number)

        def one(a: Any) -> Any:
            method = peer.dense if task.op == "low_rank" else peer.svd
            return method(a, task.rank, seed=task.number, **extra)

        def run() -> list[Any]:
            return [one(a) for a in native]

        if task.look and self.device == "cuda" and peer.library in ("torch", OURS):
            launches = _launches(run)
        else:
            launches = None
        memory = Memory(self.device) if task.look else None
        if memory is None or memory.cuda:
            seconds, results = self._timed(run, peer.wait, task.inner)
        else:  # what earlier calls left with this thread would not be seen
            with ThreadPoolExecutor(1) as new:
                seconds, results = new.submit(self._timed, run, peer.wait, task.inner).result()
        peak = memory.peak(peer.library) if memory else None
        infos: list[Any] = []
        if mine:
            infos = [info for _, info in results]
            infos = infos[0] if whole else infos
            results = [value for value, _ in results]
        residuals = {}
        for i in self.checked:
            if i < count:
                residuals[i] = self._residual(peer, task.op, stack[i], results[0] if whole else results[i], i, whole)
        return Answer(
            seconds,
            count,
            residuals,
            "+".join(sorted({info.route for info in infos})) if mine else None,
            max(info.iterations for info in infos) if mine else None,
            peak,
            launches,
        )

    def _residual(self, peer: Peer, op: str, a: Tensor, result: Any, i: int, whole: bool) -> float:
        """||A - A_r|| in float64."""
        if op == "low_rank":
            low = peer.give(result)[i] if whole else peer.give(result)
        else:
            u, s, vh = (peer.give(x)[i] if whole else peer.give(x) for x in result)
            low = multiply(u.double(), s.double(), vh.double())
        if low.shape != a.shape:
            raise ArithmeticError(f"a result of shape {tuple(low.shape)} for {tuple(a.shape)}")
        return torch.linalg.vector_norm(a.double() - low.to(a.device).double()).item()


def kind(error: BaseException) -> str:
    """An exception as a row's status."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(error).lower():
        return "out of memory"
    if isinstance(error, NotImplementedError):
        return "unsupported"
    return "FAILED" if isinstance(error, ArithmeticError) else "error"


def serve(pipe: Connection, library: str, device: str) -> None:
    """Answers until the pipe is closed."""
    try:
        version = getattr(importlib.import_module(library), "__version__", "unknown")
        worker = Worker(library, device)
    except Exception as error:
        pipe.send(("error", f"{library}: {error}"))
        return
    gc.freeze()  # what the libraries hold is not searched again after every call
    pipe.send(("ready", version))
    verbs: dict[str, Callable[..., Any]] = {"load": worker.load, "call": worker.call}
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = verbs[what](*arguments)
        except Exception as error:
            answer = (kind(error), (str(error).splitlines() or [type(error).__name__])[0][:200])
        gc.collect()
        pipe.send(answer)


def main() -> None:
    oom = Path("/proc/self/oom_score_adj")
    if oom.exists():
        oom.write_text("1000")  # if memory runs out, this process goes and not the one that keeps the results
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    serve(Connection(int(sys.argv[1])), sys.argv[2], sys.argv[3])
