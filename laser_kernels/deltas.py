"""The truncated SVD of a difference of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from laser_kernels.api import SVD, truncated_svd
from laser_kernels.arrays import back_to
from laser_kernels.canonical import as_tensor, per_matrix
from laser_kernels.errors import NonFiniteError
from laser_kernels.info import Info

# Elements of differences that are held at a time (256 MiB in float32); one matrix may be larger.
CHUNK = 1 << 26


def svd_delta(
    W1: Any,
    W0: Any,
    rank: Any,
    *,
    tol: float | None = 1e-3,
    seed: int = 0,
    key: int | Sequence[int] = 0,
    return_info: bool = False,
) -> Any:
    """The leading `rank` singular triples of a difference of weights: W1 - W0 ~ U diag(S) Vh.

    Numbers of 16 bits are subtracted in float32 (float64 where W1 or W0 is): in 16 bits their difference would be rounded
    again wherever one is more than twice the other (Sterbenz). At most max(256 MiB, one matrix) of differences exist at a
    time.

    Guarantees: those of truncated_svd for the rounded difference. Not guaranteed: bits that the fine-tuning itself lost
    when it was stored in 16 bits.

    Args:
        W1, W0: (m, n), (b, m, n), or lists of matrices of any shapes, equal in pairs; dtypes as for truncated_svd, which
            may differ from each other.
        rank, tol, seed, key, return_info: as for truncated_svd.

    Returns:
        As truncated_svd of the difference.

    Raises:
        As truncated_svd; ValueError where W1 and W0 differ in shape, number or device.
    """
    tuned, base = _matrices(W1, "W1"), _matrices(W0, "W0")
    listed, stacked = isinstance(W1, (list, tuple)), not isinstance(W1, (list, tuple)) and W1.ndim == 3
    if len(tuned) != len(base) or not tuned:
        raise ValueError(
            f"[laser_kernels::svd_delta] W1 and W0 must hold equally many matrices, at least one; got {len(tuned)} and "
            f"{len(base)}"
        )
    for i, (one, other) in enumerate(zip(tuned, base, strict=True)):
        if one.shape != other.shape or one.device != other.device:
            raise ValueError(
                f"[laser_kernels::svd_delta] W1 and W0 must be equal in shape and device; matrix {i} has "
                f"{tuple(one.shape)} on {one.device} and {tuple(other.shape)} on {other.device}"
            )
    ranks, keys = (per_matrix(v, len(tuned), name, "svd_delta") for v, name in ((rank, "rank"), (key, "key")))
    found: list[SVD] = []
    infos: list[Info] = []
    for part in chunks([t.numel() for t in tuned]):
        deltas = [difference(one, other) for one, other in zip(tuned[part], base[part], strict=True)]
        try:
            svds, some = truncated_svd(deltas, ranks[part], tol=tol, seed=seed, key=keys[part], return_info=True)
        except NonFiniteError as error:
            raise NonFiniteError([part.start + i for i in error.indices], "svd_delta") from None
        found += svds
        infos += some
    back = back_to(W1[0] if listed else W1)
    result: Any = [SVD(*map(back, svd)) for svd in found]
    if stacked and len({svd.S.shape for svd in found}) == 1:
        result = SVD(*(back(torch.stack(parts)) for parts in zip(*found, strict=True)))
    elif not listed and not stacked:
        result = result[0]
    return (result, infos if listed or stacked else infos[0]) if return_info else result


def _matrices(W: Any, name: str) -> list[Tensor]:
    if isinstance(W, (list, tuple)):
        matrices = [as_tensor(w, "svd_delta", f"{name}[{i}]") for i, w in enumerate(W)]
    else:
        whole = as_tensor(W, "svd_delta", name)
        matrices = list(whole) if whole.dim() == 3 else [whole]
    for t in matrices:
        if t.dim() != 2:
            raise ValueError(f"[laser_kernels::svd_delta] {name} must be (m, n), (b, m, n) or a list; got {t.dim()}-D")
    return matrices


def chunks(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive matrices of at most CHUNK elements together, or one that is larger."""
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > CHUNK:
            yield slice(start, i)
            start, held = i, 0
        held += size
    yield slice(start, len(sizes))


def difference(one: Tensor, other: Tensor) -> Tensor:
    """one - other in float32, float64 where either is."""
    dtype = torch.float64 if torch.float64 in (one.dtype, other.dtype) else torch.float32
    return one.to(dtype) - other.to(dtype)
