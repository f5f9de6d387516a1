"""What several commands print: tables, sizes, reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol


class Report(Protocol):
    """What `show` prints."""

    @property
    def notes(self) -> Sequence[str]: ...

    def summary(self) -> str: ...

    def to_json(self) -> str: ...


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def size(nbytes: int) -> str:
    """1.5 GiB, 12.0 MiB, 40 B."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


def show(report: Report, where: str, as_json: bool) -> None:
    """Notes to stderr; the report, or its summary, to stdout."""
    for note in report.notes:
        print(f"laser-kernels: note: {note}", file=sys.stderr)
    print(report.to_json().rstrip("\n") if as_json else f"{where}: {report.summary()}")
