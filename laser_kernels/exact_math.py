"""Float32 products in float32, whatever `torch.set_float32_matmul_precision` allows to the rest of the process: where it
allows bfloat16 or TF32, and the hardware has it, no certificate would be about the products that ran."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

EXACT = ("ieee", "none")

_lock = threading.Lock()
_inside: collections.Counter[str] = collections.Counter()  # calls that need it, by device type
_before: dict[str, str] = {}  # what the first of them found and the last one restores


def _setting(device: str) -> Any:
    """What decides it for a device type, with an attribute fp32_precision; None: nothing does."""
    backends: Any = torch.backends
    return {"cpu": backends.mkldnn.matmul, "cuda": backends.cuda.matmul}.get(device)


@contextlib.contextmanager
def exact_math(device: str) -> Iterator[None]:
    """Products of float32 operands on `device` ("cpu", "cuda") are float32 ones; on leaving, what they were before.

    The setting is the process's: meanwhile other threads multiply exactly too. What they set meanwhile is lost.
    """
    setting = _setting(device)
    with _lock:
        changed = setting is not None and (device in _before or setting.fp32_precision not in EXACT)
        if changed:
            if device not in _before:
                _before[device] = setting.fp32_precision
                setting.fp32_precision = "ieee"
            _inside[device] += 1
    try:
        yield
    finally:
        if changed:
            with _lock:
                _inside[device] -= 1
                if not _inside[device]:
                    setting.fp32_precision = _before.pop(device)
