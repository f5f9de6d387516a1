"""How time grows: curves of a method over the side n or the rank, and their exponents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laser_kernels.bench.rows import Row, method

FEWEST = 3  # points that make a curve


@dataclass(frozen=True)
class Curve:
    """Seconds per matrix of one method over `along`: "n" (square matrices, `fixed` rank or share of it) or "rank"."""

    along: str
    fixed: str
    method: str
    points: tuple[tuple[float, float], ...]

    @property
    def exponent(self) -> float:
        """Slope of log time against log size over the upper half of the points, where overheads matter least."""
        return exponent(self.points[-max(FEWEST, (len(self.points) + 1) // 2) :])


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of log y against log x."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def curves(rows: Iterable[Row]) -> list[Curve]:
    """Every curve with enough points among the rows of low_rank and truncated_svd."""
    found: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        details = row.get("details")
        if not row["seconds"] or not isinstance(details, dict) or "rank" not in details:
            continue
        (m, n), asked = row["shape"], details["rank"]
        what = f"{row['op']}, {row['dtype']}, {details['source']}, excess <= {row['tol']:g}"
        each = row["seconds"] / row["batch"]
        if m == n:
            fixed = f"rank {asked:.0%} of n" if isinstance(asked, float) else f"rank {asked}"
            found.setdefault(("n", f"{fixed}; {what}", method(row)), {})[n] = each
        found.setdefault(("rank", f"{m}x{n}; {what}", method(row)), {})[row["rank"]] = each
    return [Curve(*key, tuple(sorted(points.items()))) for key, points in found.items() if len(points) >= FEWEST]
