"""Seams: functions of other libraries that ours can stand in for, and how they are exchanged."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class Seam(NamedTuple):
    """A function and what stands in for it.

    Attributes:
        name: dotted; the last part is what it is called wherever it is bound.
        original, ours: the two.
        owner: the class that it is a method of; None: a function, in whichever modules have it.
    """

    name: str
    original: Callable[..., Any]
    ours: Callable[..., Any]
    owner: type | None = None


def seam(name: str, original: Callable[..., Any], ours: Callable[..., Any], owner: type | None = None) -> Seam:
    """A Seam whose stand-in is an object of its own, so that closing it cannot mistake a user's name for it."""

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    return Seam(name, original, stand_in, owner)


_lock = threading.RLock()
_open: Counter[Seam] = Counter()


def _exchange(seam: Seam, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Binds `new` wherever `old` was bound."""
    name = seam.name.rpartition(".")[2]
    # All modules: `from torch import svd_lowrank` makes a name of its own, perhaps while the seam is open.
    holders = [seam.owner] if seam.owner else [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    for holder in holders:
        if vars(holder).get(name) is old:
            setattr(holder, name, new)


def open_seam(seam: Seam) -> None:
    """Ours stands in from now on, in every thread, until as many close_seam have come.

    Raises:
        RuntimeError: something else has replaced the original already.
    """
    with _lock:
        if _open[seam] == 0:
            path, _, name = seam.name.rpartition(".")
            if vars(seam.owner or sys.modules[path]).get(name) is not seam.original:
                raise RuntimeError(
                    f"[laser_kernels::compat] {seam.name} has been replaced by something else: undo that before patch()"
                )
            _exchange(seam, seam.original, seam.ours)
        _open[seam] += 1


def close_seam(seam: Seam) -> None:
    """Undoes one open_seam; the last restores the original under every name that holds ours."""
    with _lock:
        _open[seam] -= 1
        if _open[seam] == 0:
            _exchange(seam, seam.ours, seam.original)
