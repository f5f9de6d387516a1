"""Markdown tables of rows: the README's headline, whole jobs, and every method on every problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from laser_kernels.bench.peers import peers
from laser_kernels.bench.rows import Row, method

LASER = "LASER's svd_lowrank"
JOBS = ("reduce_checkpoint", "low_rank experts", "low_rank call overhead")


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's form."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds(value: float) -> str:
    """Three digits, in the unit that reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def error(value: float) -> str:
    """An excess; what float64 cannot tell from zero is said so."""
    return f"{value:.1e}" if value >= 1e-9 else "< 1e-9"


def ratio(value: float) -> str:
    """Time of a peer / ours: two digits, three near 1."""
    return f"{value:.2f}x" if value < 2 else f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def problems(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of one problem each, ours first; the last run of a problem counts."""
    runs: list[list[Row]] = []
    for row in rows:
        if row["peer"] is None:
            runs.append([])
        if runs:
            runs[-1].append(row)
    last: dict[str, list[Row]] = {}
    for run in runs:
        ours = run[0]
        names = ("op", "shape", "rank", "batch", "dtype", "device", "tol")
        last[str([*(ours.get(name) for name in names), ours["details"]["source"]])] = run
    return list(last.values())


def named(row: Row) -> str:
    """A problem in few words."""
    m, n = row["shape"]
    asked, source = row["details"]["rank"], row["details"]["source"]
    words = [f"{row['batch']} x {m}x{n}" if row["batch"] > 1 else f"{m}x{n}"]
    words += [f"{asked:.0%}" if isinstance(asked, float) else f"rank {asked}"]
    words += [row["dtype"]] * (row["dtype"] != "float32") + [source] * (source != "llm-like")
    words += [f"tol {row['tol']:g}"] * (row["tol"] != 1e-3) + ["factors"] * (row["op"] == "truncated_svd")
    return ", ".join(words)


def _best(run: Sequence[Row], exact: bool) -> Row | None:
    """The fastest peer that reaches the asked excess, exact or tuned."""
    known = peers()
    good = [r for r in run[1:] if r["seconds"] and r["details"]["reaches"] and method(r) != LASER]
    chosen = [r for r in good if known[method(r)].exact == exact]
    return min(chosen, key=_each) if chosen else None


def _each(row: Row) -> float:
    """Seconds per matrix: a peer that must loop was run on a part of the batch."""
    return float(row["seconds"] / row["batch"])


def headline(rows: Iterable[Row]) -> str:
    """Ours beside the best tuned peer, the best exact one and LASER's own call; dense float32 at the default tol."""
    body = []
    for run in problems(rows):
        ours = run[0]
        if (ours["op"], ours["dtype"], ours["tol"], ours["details"]["source"]) != (
            "low_rank",
            "float32",
            1e-3,
            "llm-like",
        ):
            continue
        if ours["batch"] > 1 or min(ours["shape"]) < 2048:
            continue
        cells = [named(ours), seconds(ours["seconds"]) if ours["seconds"] else ours["status"], error(ours["excess"])]
        for peer in (_best(run, exact=False), _best(run, exact=True)):
            cells.append("none" if peer is None else f"{ratio(_each(peer) / _each(ours))} ({method(peer)})")
        laser = next((r for r in run if method(r) == LASER and r["seconds"]), None)
        cells.append("" if laser is None else f"{ratio(_each(laser) / _each(ours))} at {error(laser['excess'])}")
        body.append(cells)
    return markdown(["matrix, rank", "ours", "excess", "best tuned peer", "best exact peer", "LASER's call"], body)


def jobs(rows: Iterable[Row]) -> str:
    """What bench/checkpoint_speed.py and bench/experts.py measure. The last row of a kind counts."""
    last = {(row["op"], row["peer"]): row for row in rows if row["op"].startswith(JOBS)}
    body = []
    for (op, peer), row in last.items():
        if not row["seconds"]:
            continue
        shape = row["shape"] if isinstance(row["shape"], str) else "x".join(map(str, row["shape"]))
        what = f"{op.partition(' tol=')[0]}: {shape}" + (f" x {row['batch']}" if row["batch"] > 1 else "")
        how = peer or "ours" + (f", tol {op.partition(' tol=')[2]}" if " tol=" in op else "")
        against = "" if row["ratio_best_peer"] is None else ratio(row["ratio_best_peer"])
        body.append([what, how, seconds(row["seconds"]), error(row["excess"]), against])
    return markdown(["job", "method", "time", "excess", "best peer / ours"], sorted(body, key=lambda cells: cells[0]))


def methods(rows: Iterable[Row]) -> str:
    """A line per problem: our time and excess, and every peer's time / ours; the status of one that has no time."""
    runs = problems(rows)
    columns = list(dict.fromkeys(method(row) for run in runs for row in run[1:]))
    body = []
    for run in runs:
        ours, cells = run[0], dict.fromkeys(columns, "")
        for row in run[1:]:
            cells[method(row)] = row["status"]
            if row["seconds"] and ours["seconds"]:
                missed = "" if row["details"]["reaches"] else f" at {error(row['excess'])}"
                cells[method(row)] = ratio(_each(row) / _each(ours)) + missed
        time = f"{seconds(_each(ours))}, {ours['route']}" if ours["seconds"] else ours["status"]
        body.append([named(ours), time, "" if ours["excess"] is None else error(ours["excess"]), *cells.values()])
    return markdown(["problem", "ours, per matrix", "excess", *columns], body)


def provenance(rows: Iterable[Row]) -> str:
    """Where the figures come from, in a sentence."""
    seen: dict[str, dict[str, Any]] = {key: {} for key in ("machine", "torch", "commit", "command")}
    for row in rows:
        versions = row["versions"] or {}
        machine = f"{row['gpu'] or versions.get('cpu') or row['device']}, {row['threads']} threads"
        for key, value in zip(seen, (machine, versions.get("torch"), row["commit"], row["command"]), strict=True):
            seen[key][value] = None
    machine, torch, commit, command = (", ".join(str(v) for v in values) for values in seen.values())
    commands = ", ".join(
        f"`{c}`" for c in dict.fromkeys(re.sub(r" --(?:out|html) \S+", "", c) for c in seen["command"])
    )
    return f"Measured on {machine} with torch {torch}, commit {commit}, by {commands if command else 'hand'}."


TABLES = {"headline": headline, "jobs": jobs, "methods": methods}
