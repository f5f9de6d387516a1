"""What reducing a whole model would take, from the time per matrix of each of its shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from laser_kernels.bench.rows import Row, method


@dataclass
class Total:
    """Seconds for `matrices` matrices of a model by one method; `shapes` of them were measured."""

    method: str
    rank: str
    seconds: float = 0.0
    matrices: int = 0
    shapes: int = 0


def totals(rows: Iterable[Row]) -> list[Total]:
    """Per rank and method: the sum over shapes of (matrices of that shape) x (seconds per matrix).

    Methods that lack a shape (no result, or more than the accepted excess) are left out, save LASER's own call.
    """
    found: dict[tuple[str, str], Total] = {}
    most: dict[str, int] = {}
    for row in rows:
        details = row.get("details")
        if not isinstance(details, dict) or not details.get("count"):
            continue
        asked = details["rank"]
        rank = f"{asked:.0%}" if isinstance(asked, float) else str(asked)
        total = found.setdefault((rank, method(row)), Total(method(row), rank))
        if row["seconds"]:
            total.seconds += details["count"] * row["seconds"] / row["batch"]
            total.matrices += details["count"]
            total.shapes += 1
        most[rank] = max(most.get(rank, 0), total.shapes)
    return [total for total in found.values() if total.shapes == most[total.rank]]
