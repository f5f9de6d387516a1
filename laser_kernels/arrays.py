"""Arrays of other libraries: into a tensor over the same memory and back, on the stream their library works on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def is_plain(a: np.ndarray) -> bool:
    """Whether torch can work on the memory of `a`: it knows neither read-only memory, nor negative strides, nor foreign
    byte order.
    """
    return a.flags.writeable and a.dtype.isnative and all(s >= 0 for s in a.strides)


def to_tensor(a: Any) -> Tensor | None:
    """A detached tensor over the memory of `a`; a copy where torch cannot view it; None for what is no array."""
    if isinstance(a, Tensor):
        return a.detach()
    if isinstance(a, np.ndarray):
        return torch.from_numpy(a if is_plain(a) else np.array(a, dtype=a.dtype.newbyteorder("="), order="C"))
    return torch.from_dlpack(a) if hasattr(a, "__dlpack__") else None


def library(a: Any) -> str:
    """Of an array: "torch", "numpy", "cupy", ...; results go back to it."""
    known = "torch" if isinstance(a, Tensor) else "numpy" if isinstance(a, np.ndarray) else None
    return known or type(a).__module__.partition(".")[0]


def back_to(a: Any) -> Callable[[Tensor], Any]:
    """What turns a result into the kind of array that `a` is: NumPy's, CuPy's, any array-API library's, or torch's."""
    if isinstance(a, np.ndarray):
        return Tensor.numpy
    if not isinstance(a, Tensor) and hasattr(a, "__array_namespace__"):
        return a.__array_namespace__().from_dlpack
    return lambda tensor: tensor


def _stream_of(a: Any) -> AbstractContextManager[Any]:
    first = a[0] if isinstance(a, (list, tuple)) and a else a
    if library(first) != "cupy":
        return nullcontext()
    cupy = sys.modules["cupy"]
    device = f"cuda:{first.device.id}"
    with first.device:
        handle = cupy.cuda.get_current_stream().ptr
    # 0 is the default stream; ExternalStream would take it for "any".
    stream = torch.cuda.ExternalStream(handle, device=device) if handle else torch.cuda.default_stream(device)
    return torch.cuda.stream(stream)


def on_its_stream(function: F) -> F:
    """Runs function(A, ...) on CuPy's current stream where A is CuPy's, so that both libraries see one order of work."""

    @functools.wraps(function)
    def wrapped(A: Any, *args: Any, **kwargs: Any) -> Any:
        with _stream_of(A):
            return function(A, *args, **kwargs)

    return wrapped  # type: ignore[return-value]
