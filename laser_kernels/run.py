"""One bucket through its routes: run, read the certificates, redo only what failed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from laser_kernels import ops
from laser_kernels.caller import warn
from laser_kernels.canonical import Bucket
from laser_kernels.dispatch import EXACT_TOL, Problem, Route, choose, escalate, share_ranks
from laser_kernels.errors import NonFiniteError
from laser_kernels.exact_math import exact_math
from laser_kernels.info import Info
from laser_kernels.status import Status


class EscalationWarning(UserWarning):
    """The chosen route could not certify some matrices; they were redone on a more exact one."""


def warn_escalated(labels: Sequence[str]) -> None:
    """One warning that names the tensors whose first route could not certify tol."""
    if labels:
        more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
        warn(
            f"{', '.join(labels[:5])}{more}: redone in float64 or by an exact route, where tol was certified",
            EscalationWarning,
        )


class Options:
    """The keyword arguments that every public function shares, checked once."""

    def __init__(self, tol: float | None, oversample: int | None, max_iter: int, route: str, seed: int):
        if tol is not None and (
            isinstance(tol, bool)
            or not isinstance(tol, (int, float, np.integer, np.floating))
            or not 0 <= tol < float("inf")
        ):
            raise ValueError(f"[laser_kernels] tol must be None or a number >= 0 (the excess you accept); got {tol!r}")
        if oversample is not None and (isinstance(oversample, bool) or not isinstance(oversample, (int, np.integer))):
            raise ValueError(f"[laser_kernels] oversample must be None or an int >= 0; got {oversample!r}")
        if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
            raise ValueError(f"[laser_kernels] max_iter must be an int >= 1; got {max_iter!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ValueError(f"[laser_kernels] seed must be an int in 0..2^63-1; got {seed!r}")
        self.tol = None if tol is None else float(tol)
        self.oversample = None if oversample is None else int(oversample)
        self.max_iter, self.route, self.seed = int(max_iter), route, int(seed)

    def problem(self, weight: Tensor, rank: int, batch: int) -> Problem:
        """What is asked for `batch` matrices like `weight` (..., m, n)."""
        *_, m, n = weight.shape
        device = weight.device
        return Problem(m, n, rank, str(weight.dtype)[6:], self.tol, device.type, batch, ops.capability(device))

    def choose(self, problem: Problem) -> Route:
        return choose(problem, self.route, self.oversample, self.max_iter)

    def share(self, weight: Tensor, counts: Mapping[int, int]) -> Mapping[int, int]:
        """canonical.Share."""
        return share_ranks(self.problem(weight, max(counts), 1), counts, self.choose)

    def arguments(self, path: Route) -> tuple:
        """What the ops take after the ranks, keys excepted."""
        tol = self.tol if self.tol is None or self.tol > 0 else EXACT_TOL
        return path.name, path.block, path.gram, path.wide, path.half, tol, self.max_iter, self.seed


# attempt(backend, weight, todo, path, ranks, keys): runs `path` on weight = the bucket's matrices `todo`, stores the
# results of those it certified, and returns their certificates.
Attempt = Callable[[Any, Tensor, list[int], Route, list[int], list[int]], Tensor]


def run(bucket: Bucket, options: Options, attempt: Attempt, where: str) -> list[Info]:
    """The Info of each matrix of the bucket, in its order.

    Raises:
        NonFiniteError: naming the matrices; nothing was stored.
        RuntimeError: no route could certify a matrix.
    """
    b, m, n = bucket.tensor.shape
    device = bucket.tensor.device.type
    problem = options.problem(bucket.tensor, bucket.rank, b)
    first = path = options.choose(problem)
    backend = ops.backend(bucket.tensor.device)
    infos: dict[int, Info] = {}
    todo = list(range(b))
    while True:
        start = time.perf_counter()
        weight = bucket.tensor if len(todo) == b else bucket.tensor[todo]
        with exact_math(device):
            ranks, keys = [bucket.ranks[i] for i in todo], [bucket.keys[i] for i in todo]
            rows = attempt(backend, weight, todo, path, ranks, keys).tolist()
        seconds = (time.perf_counter() - start) / len(todo)
        failed: dict[int, Status] = {}
        for i, (code, norm, unrounded, residual, bound, iterations, _) in zip(todo, rows, strict=True):
            status = Status(int(code))
            if status not in (Status.OK, Status.UNCERTIFIED):
                failed[i] = status
                continue
            label = "uncertified" if status == Status.UNCERTIFIED else "ok" if path is first else "escalated"
            relative = residual / norm if norm > 0 else 0.0
            infos[i] = Info(
                bucket.ranks[i],
                residual,
                relative,
                bound,
                residual - unrounded,
                int(iterations),
                path.name,
                label,
                seconds,
            )
        if not failed:
            left = [bucket.positions[i] for i, info in infos.items() if not math.isfinite(info.residual)]
            if left:
                warn(
                    f"[laser_kernels::{where}] the low-rank approximation of matrix {_named(left)} has entries "
                    f"beyond the range of {str(bucket.tensor.dtype)[6:]}: they are Inf now; convert the weight first",
                    RuntimeWarning,
                )
            return [infos[i] for i in range(b)]
        bad = [bucket.positions[i] for i, status in failed.items() if status == Status.NON_FINITE]
        if bad:
            raise NonFiniteError(bad, where)
        spoiled = [bucket.positions[i] for i, status in failed.items() if status == Status.SPOILED]
        if spoiled:
            raise RuntimeError(
                f"[laser_kernels::{where}] matrix {spoiled[0]}: the residual of what was written in place is not what "
                "was certified: restore the weight, and please report it"
            )
        # One way for all that failed: the more demanding reason decides.
        onward = escalate(problem, path, max(failed.values()))
        if onward is None:
            worst = min(failed)
            raise RuntimeError(
                f"[laser_kernels::{where}] no route could certify matrix {bucket.positions[worst]} "
                f"({m}x{n}, rank {bucket.ranks[worst]}, tol {options.tol}): please report this matrix"
            )
        if onward.name != path.name:
            _warn(where, path, onward, [bucket.positions[i] for i in failed], options.tol)
        path, todo = onward, list(failed)


def _named(positions: list[int]) -> str:
    return ", ".join(map(str, positions[:5])) + (", ..." if len(positions) > 5 else "")


def _warn(where: str, path: Route, onward: Route, positions: list[int], tol: float | None) -> None:
    warn(
        f"[laser_kernels::{where}] {path.name} could not certify tol={tol} for matrix {_named(positions)}: "
        f"{onward.name} takes over ({onward.reason})",
        EscalationWarning,
    )
