"""Timing and rows for the scripts here: interleaved repetitions, medians with p10-p90, JSONL."""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KEYS = (
    "op", "route", "peer", "shape", "rank", "batch", "dtype", "device", "seconds", "p10", "p90",
    "excess", "residual", "iterations", "bound_share", "ratio_best_peer", "peak_bytes", "threads",
    "gpu", "commit", "versions", "command", "status",
)  # fmt: skip

# Rest before a timed call: the threads of another library's BLAS spin for tens of milliseconds
# after its last product (OpenBLAS waits 2^26 cycles) and would take a core from this call.
SETTLE = 0.05


@dataclass
class Samples:
    """Wall times of one method."""

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


def timed(call: Callable[[], Any], settle: float = 0.0) -> tuple[float, Any]:
    """Wall time of one call and its result, after `settle` seconds of rest."""
    time.sleep(settle)
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


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
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds, value = timed(calls[name], settle)
            samples[name].seconds.append(seconds)
            if inspect is not None:
                inspect(name, value)
        if turn == 1 and reference is not None:
            limit = give_up * min(samples[reference].seconds)
            order = [name for name in order if min(samples[name].seconds) <= limit]
    return samples


def commit() -> str | None:
    """The commit that is checked out, read from .git; None outside a plain checkout."""
    head = ROOT / ".git" / "HEAD"
    if not head.is_file():
        return None
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text[:12]
    loose = ROOT / ".git" / text[5:]
    if loose.is_file():
        return loose.read_text().strip()[:12]
    packed = ROOT / ".git" / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line[:12] for line in lines if line.endswith(text[4:])), None)


def row(samples: Samples | None = None, **values: Any) -> dict[str, Any]:
    """One benchmark row with the keys of every command, the environment filled in.

    A row whose status is FAILED keeps its error and has no time.
    """
    unknown = set(values) - set(KEYS)
    if unknown:
        raise KeyError(f"no such row key: {sorted(unknown)}")
    made: dict[str, Any] = dict.fromkeys(KEYS)
    made |= {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "status": "ok",
    }
    if samples is not None:
        made |= {
            "seconds": samples.median,
            "p10": samples.quantile(0.1),
            "p90": samples.quantile(0.9),
        }
    made |= values
    if made["status"] == "FAILED":
        made |= {"seconds": None, "p10": None, "p90": None, "ratio_best_peer": None}
    return made


def append(file: Path | None, rows: list[dict[str, Any]]) -> None:
    """Append rows to a JSON lines file; nothing where `file` is None."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(made) + "\n" for made in rows)
