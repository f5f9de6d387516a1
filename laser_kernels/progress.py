"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

# Called with (bytes done, bytes in all, name of what was just done); some commands count other things than bytes.
Progress = Callable[[int, int, str], None]

LINE_SECONDS = 30.0


def silent(done: int, total: int, name: str) -> None:
    """No progress."""


class Bar:
    """A tqdm bar over bytes, or over whatever `unit` says."""

    def __init__(self, stream: TextIO, unit: str = "B"):
        from tqdm import tqdm

        self._bar = tqdm(
            file=stream,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit == "B",
            unit_divisor=1024,
            dynamic_ncols=True,
            leave=False,
        )

    def __call__(self, done: int, total: int, name: str) -> None:
        self._bar.total = total
        self._bar.set_postfix_str(name[-40:], refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()


class Lines:
    """A line every half minute."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, name: str) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(f"laser-kernels: {done / max(1, total):.0%} ({name})", file=self._stream, flush=True)


def automatic(stream: TextIO | None = None, unit: str = "B") -> Progress:
    """The bar where `stream` (stderr) is a terminal, lines elsewhere."""
    stream = stream or sys.stderr
    return Bar(stream, unit) if stream.isatty() else Lines(stream)
