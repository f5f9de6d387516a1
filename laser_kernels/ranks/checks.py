"""What a rule's parameters must be."""

from __future__ import annotations

import math
from typing import Any


def _refuse(rule: Any, what: str, value: object) -> None:
    raise ValueError(f"[laser_kernels] {type(rule).__name__} takes {what}; got {value!r}")


def number(rule: Any, value: object, low: float, high: float = math.inf, *, what: str, above: bool = False) -> None:
    """`value` is a finite number in low..high (above: not low itself)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        _refuse(rule, what, value)


def whole(rule: Any, value: object, what: str) -> None:
    """`value` is an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse(rule, what, value)


def one_of(rule: Any, value: object, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        _refuse(rule, f"{what} {', '.join(known)}", value)
