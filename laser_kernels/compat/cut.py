"""torch.linalg.svd, cut to the leading triples inside functions that use no others."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laser_kernels.api import truncated_svd
from laser_kernels.compat.accuracy import accepted
from laser_kernels.compat.pytorch import can_take
from laser_kernels.compat.seams import Seam, seam
from laser_kernels.errors import NonFiniteError

_torchs = torch.linalg.svd

# How many triples the function that runs now, in this thread, will use; None: all.
_rank: ContextVar[int | None] = ContextVar("laser_kernels.compat.cut", default=None)


@functools.wraps(_torchs)
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None, out: Any = None) -> Any:
    rank = _rank.get() or 0
    plainly = driver is None and out is None and can_take(A) and A.dim() == 2
    # A half is left to torch, which refuses it.
    if not plainly or A.dtype not in (torch.float32, torch.float64) or not 0 < rank < min(A.shape):
        return _torchs(A, full_matrices, driver=driver, out=out)
    try:
        triples = truncated_svd(A.detach(), rank, tol=accepted())
    except NonFiniteError:
        return _torchs(A, full_matrices)  # in its own words
    return torch.return_types.linalg_svd(triples)  # type: ignore[attr-defined]


FULL_SVD = seam("torch.linalg.svd", _torchs, svd)


class Site(NamedTuple):
    """A function of a library that computes a full SVD and uses its leading triples only.

    Attributes:
        module, name: where it is; name may be "Class.method".
        rank_of: from its arguments by name, how many triples it uses; anything but an int: not known beforehand.
    """

    module: str
    name: str
    rank_of: Callable[[Mapping[str, Any]], Any]


def _cutting(function: Callable[..., Any], rank_of: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def site(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        rank = rank_of(call.arguments)
        token = _rank.set(rank if isinstance(rank, int) else None)
        try:
            with torch.no_grad():  # what sites make is kept as data, not as part of a graph
                return function(*args, **kwargs)
        finally:
            _rank.reset(token)

    return site


def seams_of(sites: Sequence[Site]) -> tuple[Seam, ...]:
    """The seams through which those of the sites that the installed version has are cut, torch.linalg.svd first."""
    found = [FULL_SVD]
    for site in sites:
        *path, name = site.name.split(".")
        try:
            owner: Any = functools.reduce(getattr, path, importlib.import_module(site.module))
            original = vars(owner)[name]
        except (ModuleNotFoundError, AttributeError, KeyError):
            continue
        found.append(
            seam(f"{site.module}.{site.name}", original, _cutting(original, site.rank_of), owner if path else None)
        )
    return tuple(found)
