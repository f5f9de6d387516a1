"""Wall times in this process: samples, their quantiles, interleaved repetitions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

# Rest before a timed call: the threads of another library's BLAS spin for tens of milliseconds
# after its last product (OpenBLAS waits 2^26 cycles) and would take a core from this call.
SETTLE = 0.05


@dataclass
class Samples:
    """Wall times of one method, in seconds."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """The sample at `share` of the sorted ones (nearest rank)."""
        return sorted(self.seconds)[round(share * (len(self.seconds) - 1))]


def spread(samples: Samples) -> str:
    """p10-p90 in seconds, as text."""
    return f"{samples.quantile(0.1):.4f}-{samples.quantile(0.9):.4f}"


def timed(call: Callable[[], T], settle: float = 0.0) -> tuple[float, T]:
    """Wall time of one call and its result, after `settle` seconds of rest."""
    time.sleep(settle)
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def rotated(names: list[str], turn: int) -> list[str]:
    """The names, starting `turn` further: no method always runs after the same one's heat."""
    if not names:
        return []
    return names[turn % len(names) :] + names[: turn % len(names)]


def interleaved(
    calls: dict[str, Callable[[], Any]],
    repeats: int,
    *,
    reference: str | None = None,
    give_up: float = 20.0,
    settle: float = SETTLE,
    inspect: Callable[[str, Any], None] | None = None,
) -> dict[str, Samples]:
    """Run every call once per round for `repeats` rounds, each round starting one further.

    A call slower than `give_up` times `reference` in both of the first two rounds (one may be bad
    luck on a shared machine) is not repeated further.
    `inspect(name, value)` sees every result, outside the timing.
    """
    samples = {name: Samples() for name in calls}
    order = list(calls)
    for turn in range(repeats):
        for name in rotated(order, turn):
            seconds, value = timed(calls[name], settle)
            samples[name].seconds.append(seconds)
            if inspect is not None:
                inspect(name, value)
        if turn == 1 and reference is not None:
            limit = give_up * min(samples[reference].seconds)
            order = [name for name in order if min(samples[name].seconds) <= limit]
    return samples
