"""The door: whatever a caller passes becomes buckets of (b, m, n) tensors of one shape and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laser_kernels.arrays import back_to, library, to_tensor
from laser_kernels.rank import Rule, resolve_rank

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Matrices of a list are copied to lie together, no more than this at a time: a device that holds a model and its results
# has no room for the model again. Larger batches gain nothing (128 bfloat16 matrices of 4096x4096 are as many bytes).
STACK_BYTES = 4 << 30


class Bucket(NamedTuple):
    """Matrices of one shape and dtype that are reduced in one call.

    Attributes:
        tensor: (b, m, n), unit stride in the last dimension; a view of the caller's memory where that is possible.
        ranks: the resolved rank of each.
        positions: where each matrix stood in the caller's input.
        keys: the sketch key of each.
    """

    tensor: Tensor
    ranks: list[int]
    positions: list[int]
    keys: list[int]

    @property
    def rank(self) -> int:
        """The largest."""
        return max(self.ranks)


class Group(NamedTuple):
    """What will be a Bucket: its matrices, together already or not."""

    matrices: Tensor | list[Tensor]
    ranks: list[int]
    positions: list[int]
    keys: list[int]

    def bucket(self) -> Bucket:
        if isinstance(self.matrices, Tensor):
            whole = self.matrices
        else:
            whole = self.matrices[0].unsqueeze(0) if len(self.matrices) == 1 else torch.stack(self.matrices)
        return Bucket(unit_stride(whole), self.ranks, self.positions, self.keys)


class Canonical:
    """The caller's input.

    Attributes:
        groups: what is worked on, in order.
        size: how many matrices there are.
        form: "matrix" (2-D), "stack" (3-D, in one group) or "list" (anything else).
        back: makes a result the caller's kind of array.
    """

    def __init__(self, groups: list[Group], size: int, form: str, back: Callable[[Tensor], Any]):
        self.groups, self.size, self.form, self.back = groups, size, form, back
        copied = sum(sum(m.nbytes for m in group.matrices) for group in groups) if form == "list" else 0
        self._kept = [group.bucket() for group in groups] if copied <= STACK_BYTES else None

    @property
    def buckets(self) -> Iterable[Bucket]:
        """The groups as buckets; one after another where all would be too much."""
        return self._kept if self._kept is not None else (group.bucket() for group in self.groups)


def as_tensor(a: Any, where: str, name: str = "A") -> Tensor:
    """A detached tensor over the caller's memory, with its dtype checked."""
    if isinstance(a, np.ndarray) and a.dtype.kind not in "fiucb":
        raise TypeError(f"[laser_kernels::{where}] {name} must hold floating-point numbers; got NumPy {a.dtype}")
    t = to_tensor(a)
    if t is None:
        raise TypeError(
            f"[laser_kernels::{where}] {name} must be a torch tensor, a NumPy array, an array with DLPack, or a list of "
            f"them; got {type(a).__name__}"
        )
    if t.device.type == "meta" or t.layout != torch.strided:
        what = "is on the meta device and has no values" if t.device.type == "meta" else f"is {str(t.layout)[6:]}"
        raise TypeError(f"[laser_kernels::{where}] {name} must be a dense tensor; {name} {what}")
    if t.dtype not in DTYPES:
        hint = "complex is not supported" if t.dtype.is_complex else "convert it first"
        raise TypeError(
            f"[laser_kernels::{where}] {name} must be float32, float64, bfloat16 or float16; got {str(t.dtype)[6:]}: {hint}"
        )
    return t


def unit_stride(t: Tensor) -> Tensor:
    """`t` itself where its last dimension is dense and no two rows overlap, else a contiguous copy."""
    return t if t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1] else t.contiguous()


def per_matrix(value: Any, count: int, name: str, where: str) -> list[Any]:
    """`value` once per matrix: a sequence is taken as one value each."""
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (Sequence, np.ndarray, Tensor)) and not isinstance(value, str):
        values = list(value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value)
        if len(values) != count:
            raise ValueError(
                f"[laser_kernels::{where}] {name} must hold one value per matrix ({count}); got {len(values)}"
            )
        return values
    return [value] * count


def _check_key(key: Any, where: str) -> int:
    if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= int(key) < 2**63:
        raise ValueError(f"[laser_kernels::{where}] key must be an int in 0..2^63-1; got {key!r}")
    return int(key)


# share(matrix, counts): to each rank of the matrices like this one, of which there are so many, the rank that names the
# group they go with (dispatch.share_ranks).
Share = Callable[[Tensor, Mapping[int, int]], Mapping[int, int]]


def canonicalise(A: Any, rank: Any, key: Any, where: str, share: Share | None = None) -> Canonical:
    """Settles orientation of the input's container, batch, contiguity and dtype once. Without `share`, matrices of
    different ranks never share a group.

    Raises:
        TypeError: not an array, a dtype that is not supported, or a list of several libraries' arrays.
        ValueError: wrong dimensions, an empty matrix, mixed devices, bad rank or key.
    """
    listed = isinstance(A, (list, tuple))
    arrays = [as_tensor(a, where, f"A[{i}]") for i, a in enumerate(A)] if listed else [as_tensor(A, where)]
    if listed and not arrays:
        raise ValueError(f"[laser_kernels::{where}] the list A is empty: pass at least one matrix")
    libraries = sorted({library(a) for a in A}) if listed else []
    if len(libraries) > 1:
        raise TypeError(
            f"[laser_kernels::{where}] all matrices of a list must be of one library, to which the results go back; got "
            f"{' and '.join(libraries)}"
        )
    allowed = (2,) if listed else (2, 3)
    for i, t in enumerate(arrays):
        if t.dim() not in allowed:
            expected = "a 2-D matrix" if listed else "(m, n) or (b, m, n)"
            raise ValueError(
                f"[laser_kernels::{where}] A{f'[{i}]' if listed else ''} must be {expected}; got {t.dim()}-D"
            )
        if t.numel() == 0:
            raise ValueError(f"[laser_kernels::{where}] A{f'[{i}]' if listed else ''} is empty: shape {tuple(t.shape)}")
    devices = sorted({str(t.device) for t in arrays})
    if len(devices) > 1:
        raise ValueError(
            f"[laser_kernels::{where}] all matrices must be on one device; got {' and '.join(devices)}: move them first"
        )
    back = back_to(A[0] if listed else A)
    form = "list" if listed else "matrix" if arrays[0].dim() == 2 else "stack"
    matrices = arrays if form != "stack" else list(arrays[0].unbind(0))
    count = len(matrices)
    keys = [_check_key(k, where) for k in per_matrix(key, count, "key", where)]
    ranks = [
        r.of(t) if isinstance(r, Rule) else resolve_rank(r, *t.shape)
        for r, t in zip(per_matrix(rank, count, "rank", where), matrices, strict=True)
    ]

    like: dict[tuple, list[int]] = {}
    for i, t in enumerate(matrices):
        like.setdefault((t.shape, t.dtype), []).append(i)
    together: dict[tuple, list[int]] = {}
    for kind, members in like.items():
        counts = Counter(ranks[i] for i in members)
        shared = share(matrices[members[0]], counts) if share and len(counts) > 1 else {r: r for r in counts}
        for i in members:
            together.setdefault((kind, shared[ranks[i]]), []).append(i)
    if form != "list" and len(together) == 1:
        whole = unit_stride(arrays[0] if form == "stack" else arrays[0].unsqueeze(0))
        return Canonical([Group(whole, ranks, list(range(count)), keys)], count, form, back)
    groups = []
    for members in together.values():
        step = max(1, STACK_BYTES // matrices[members[0]].nbytes)
        for first in range(0, len(members), step):
            some = members[first : first + step]
            groups.append(Group([matrices[i] for i in some], [ranks[i] for i in some], some, [keys[i] for i in some]))
    return Canonical(groups, count, "list", back)
