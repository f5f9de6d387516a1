"""Float32 products in float32 on a CPU, whatever `torch.set_float32_matmul_precision` and `torch.backends` allow to the
rest of the process: where they allow bfloat16 or TF32, and the processor has that, no certificate would be about the
products that ran. On a GPU, csrc/cuda/products.hpp sees to it (ExactMath)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

EXACT = ("ieee", "none")


class Change(NamedTuple):
    """For the last call that leaves to undo."""

    own: str  # the setting that it found; "none": it follows torch.backends.fp32_precision
    legacy: str | None  # what torch.get_float32_matmul_precision() says since; None where that refuses to answer


_lock = threading.Lock()
_inside = 0  # calls that need exact products
_change: Change | None = None


def _setting() -> Any:
    backends: Any = torch.backends
    return backends.mkldnn.matmul


def _legacy() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the old and the new settings contradict each other
        return None


def _make_exact() -> None:
    global _change
    setting = _setting()
    allowed = setting.fp32_precision
    if allowed in EXACT:
        return
    setting.fp32_precision = "none"  # what is read is what holds, be it this one's own or inherited
    own = "none" if setting.fp32_precision == allowed else allowed
    setting.fp32_precision = "ieee"
    _change = Change(own, _legacy())


def _restore() -> None:
    global _change
    if _change is not None:
        untouched = _setting().fp32_precision == "ieee" and _legacy() == _change.legacy
        if untouched:  # else somebody has set it meanwhile, and that holds
            _setting().fp32_precision = _change.own
        _change = None


@contextlib.contextmanager
def exact_math(device: str) -> Iterator[None]:
    """Products of float32 operands on a "cpu" are float32 ones inside; other devices are left alone.

    The setting is the process's: other threads multiply exactly too meanwhile, and should set nothing. If one does, that
    holds until the next call enters.
    """
    global _inside
    if device != "cpu":
        yield
        return
    with _lock:
        _make_exact()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore()
