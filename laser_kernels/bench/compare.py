"""Regressions between two results files, beyond the spread and the drift of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from laser_kernels.bench.rows import Row, method


def key(row: Row) -> tuple[str, ...]:
    """What must agree for two rows to measure the same."""
    details = row.get("details")
    source = details.get("source") if isinstance(details, dict) else None
    names = ("op", "shape", "rank", "batch", "dtype", "device", "tol")
    return (*(str(row.get(name)) for name in names), str(source), method(row))


def compare(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(report, regressions). The last row of a key counts.

    Drift is the median ratio of the peers' times, which no change of ours moves. Ours is slower where p10 / drift of the
    new file is above p90 of the old one, and worse where it was ok and is not, or its excess left the accepted one.
    """
    before, after = ({key(row): row for row in rows} for rows in (old, new))
    both = [k for k in before if k in after]
    timed = [k for k in both if before[k]["seconds"] and after[k]["seconds"]]
    peers = [after[k]["seconds"] / before[k]["seconds"] for k in timed if before[k]["peer"]]
    drift = statistics.median(peers) if peers else 1.0
    report, worse = [f"{len(both)} rows in both files; drift of the peers {drift:.2f}x"], []
    for k in both:
        a, b = before[k], after[k]
        if a["peer"]:
            continue
        what = f"{a['op']} {a['shape']} rank {a['rank']} batch {a['batch']} {a['dtype']} {a['device']}"
        if a["status"] == "ok" and b["status"] != "ok":
            worse.append(f"{what}: was ok, is {b['status']}")
            continue
        if k in timed:
            ratio = b["seconds"] / a["seconds"] / drift
            report.append(f"{what}: {a['seconds']:.4g} s -> {b['seconds']:.4g} s ({ratio:.2f}x without drift)")
            if b["p10"] / drift > a["p90"]:
                worse.append(f"{what}: {ratio:.2f}x slower, beyond the spread")
        tol = b.get("tol")
        if tol and a["excess"] is not None and b["excess"] is not None and a["excess"] <= tol < b["excess"]:
            worse.append(f"{what}: excess {a['excess']:.1e} -> {b['excess']:.1e}, accepted {tol:g}")
    return report, worse
