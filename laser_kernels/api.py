"""The public functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laser_kernels import ops
from laser_kernels.arrays import is_plain, library, on_its_stream, to_tensor
from laser_kernels.canonical import DTYPES, Canonical, as_tensor, canonicalise, unit_stride
from laser_kernels.dispatch import Problem, Route
from laser_kernels.dispatch import choose as choose_route
from laser_kernels.errors import NonFiniteError
from laser_kernels.info import Info
from laser_kernels.rank import Rule, resolve_rank
from laser_kernels.run import Options, run


class SVD(NamedTuple):
    """U (..., m, r) and Vh (..., r, n) with orthonormal columns and rows, S (..., r) descending and >= 0."""

    U: Any
    S: Any
    Vh: Any


Rank = int | float | Rule | Sequence[int | float | Rule]


@on_its_stream
def truncated_svd(
    A: Any,
    rank: Rank,
    *,
    tol: float | None = 1e-3,
    oversample: int | None = None,
    max_iter: int = 64,
    route: str = "auto",
    seed: int = 0,
    key: int | Sequence[int] = 0,
    return_info: bool = False,
) -> Any:
    """The leading `rank` singular triples: A ~ U diag(S) Vh.

    Guarantees: U^T U = Vh Vh^T = I to rounding; S descending and >= 0; the largest |entry| of each column of U is
    positive; ||A - U diag(S) Vh||_F <= (1 + tol) tail + c eps ||A||_F, where tail is the best that any rank-r matrix can
    do (Eckart-Young), c = 32, and eps is float32's (float64's for float64 input, where c may be 32 sqrt(min(m, n)) if a
    full SVD had to be the end). Same bits for the same input, device,
    build, thread count and batch. Not guaranteed: single vectors where singular values nearly coincide.

    Args:
        A: (m, n), (b, m, n), or a list of matrices of any shapes; float32, float64, bfloat16 or float16; torch tensors
            or NumPy arrays (which come back as such), strided and transposed views included. Inputs that require grad
            are detached.
        rank: an int, a float in (0, 1] = fraction of min(m, n), or a rule of laser_kernels.ranks, which finds each
            matrix's own; or one of these per matrix.
        tol: the excess, residual / tail - 1, that you accept. 0 computes in float64 to excess <= 1e-6. None: `max_iter`
            multiplications by A^T A and no judgement.
        oversample: extra columns p of the randomized block. Default: dispatch.default_block.
        max_iter: multiplications by A^T A before a more exact route takes over.
        route: "auto", "randomized", "spectral", "gram_eigh" or "full_svd". A given route is tried first and still escalates.
        seed, key: the sketch is a function of these (and row, column) alone; key: one int, or one per matrix.
        return_info: return (result, Info), or (result, list of Info) where A is not a single matrix.

    Returns:
        SVD(U, S, Vh) in float32 (float64 for float64 input): stacked for 3-D input of one rank, a list of SVD for lists
        and for 3-D input of several ranks.

    Raises:
        TypeError, ValueError: bad rank, shape, dtype or option. NonFiniteError: NaN or Inf, naming the matrices.

    References:
        Halko, Martinsson, Tropp (2011), algorithm 4.4. Zhou, Saad, Tiago, Chelikowsky (2006), Chebyshev filter.
    """
    options = Options(tol, oversample, max_iter, route, seed)
    given = canonicalise(A, rank, key, "truncated_svd", options.share)
    results: list[SVD] = []
    infos: list[list[Info]] = []
    for bucket in given.buckets:
        held: list[Tensor] = []

        def attempt(backend, weight, todo, path, ranks, keys, held=held):
            u, s, vh, rows = backend.truncated_svd(weight, ranks, *options.arguments(path), keys)
            if not held:
                held.extend((u, s, vh))
            else:  # an escalation: only these matrices, and none of them may have the largest rank
                r = s.shape[-1]
                held[0][todo, :, :r], held[1][todo, :r], held[2][todo, :r] = u, s, vh
            return rows

        infos.append(run(bucket, options, attempt, "truncated_svd"))
        results.append(SVD(*held))
    result: Any
    if given.form == "matrix":
        result = SVD(*(given.back(t[0]) for t in results[0]))
    elif given.form == "stack" and len(set(given.groups[0].ranks)) == 1:
        result = SVD(*map(given.back, results[0]))
    else:
        split = [
            [SVD(*map(given.back, _leading(*one))) for one in zip(group.ranks, *r, strict=True)]
            for group, r in zip(given.groups, results, strict=True)
        ]
        result = _in_order(given, split)
    return (result, _infos(given, infos)) if return_info else result


@on_its_stream
def low_rank(
    A: Any,
    rank: Rank,
    *,
    tol: float | None = 1e-3,
    oversample: int | None = None,
    max_iter: int = 64,
    route: str = "auto",
    seed: int = 0,
    key: int | Sequence[int] = 0,
    out: Any = None,
    return_info: bool = False,
) -> Any:
    """The rank-r approximation A_r of A, dense, in A's dtype: LASER's replacement for a weight.

    Guarantee: ||A - A_r||_F <= (1 + tol) tail + c eps ||A||_F before the one rounding to A's dtype (see truncated_svd);
    Info.residual is measured on the rounded result. Nothing is written to `out` before the certificate holds.

    Args:
        A, rank, tol, oversample, max_iter, route, seed, key, return_info: as for truncated_svd.
        out: where to write: same shape, dtype and device as A (a list for a list). May be A itself, or a Parameter.

    Returns:
        A_r shaped like A (a list for a list), or `out`.

    Raises:
        As truncated_svd; ValueError where `out` does not match. Where anything is raised for bad input, `out` is as before.

    References:
        Sharma, Ash, Misra: The Truth is in There (LASER), arXiv 2312.13558.
    """
    options = Options(tol, oversample, max_iter, route, seed)
    given = canonicalise(A, rank, key, "low_rank", options.share)
    targets = _targets(A, out)
    if len(given.groups) > 1:
        _check_all_finite(given, "low_rank")  # before the first bucket is written
    results: list[Tensor] = []
    infos: list[list[Info]] = []
    for bucket in given.buckets:
        direct = targets[0] if targets and given.form != "list" and _writable_in_place(targets[0], A) else None
        result = direct.view(bucket.tensor.shape) if direct is not None else torch.empty_like(bucket.tensor)

        def attempt(backend, weight, todo, path, ranks, keys, bucket=bucket, result=result):
            whole = len(todo) == len(bucket.tensor)
            target = result if whole else torch.empty_like(weight)
            rows = backend.low_rank(weight, target, ranks, *options.arguments(path), keys)
            if not whole:
                done = [j for j, status in enumerate(rows[:, 0].tolist()) if status <= 1]  # certified, or nothing asked
                result[[todo[j] for j in done]] = target[done]
            return rows

        infos.append(run(bucket, options, attempt, "low_rank"))
        results.append(result)
        if direct is not None and not direct.is_inference():
            torch.autograd.graph.increment_version(direct)  # autograd does not see the ops write
    ordered: Any
    if given.form == "list":
        ordered = _in_order(given, [list(r) for r in results])
        if targets:
            for target, r in zip(targets if isinstance(out, (list, tuple)) else targets[0], ordered, strict=True):
                target.copy_(r)
        elif not isinstance(A, (list, tuple)):  # 3-D input in several groups: equal shapes after all
            ordered = torch.stack(ordered)
        if out is None:
            ordered = [given.back(r) for r in ordered] if isinstance(ordered, list) else given.back(ordered)
    else:
        ordered = results[0][0] if given.form == "matrix" else results[0]
        if targets and direct is None:
            targets[0].copy_(ordered)
        ordered = given.back(ordered)
    result_or_out = ordered if out is None else out
    return (result_or_out, _infos(given, infos)) if return_info else result_or_out


@on_its_stream
def svdvals(A: Any) -> Any:
    """All singular values, descending, of a matrix, a stack, or a list; float32 (float64 for float64 input).

    LAPACK's values-only SVD, in the working precision: absolute error c eps sigma_1.
    """
    given = canonicalise(A, 1, 0, "svdvals")
    _check_all_finite(given, "svdvals")
    values = []
    for bucket in given.buckets:
        wide = bucket.tensor if bucket.tensor.dtype == torch.float64 else bucket.tensor.float()
        s = torch.linalg.svdvals(wide)
        values.append(s)
    if given.form == "list":
        return _in_order(given, [[given.back(one) for one in v] for v in values])
    return given.back(values[0][0] if given.form == "matrix" else values[0])


def choose(
    shape: Any,
    rank: int | float | Rule,
    *,
    dtype: Any = torch.float32,
    tol: float | None = 1e-3,
    device: str = "cpu",
    batch: int = 1,
    route: str = "auto",
    oversample: int | None = None,
    max_iter: int = 64,
) -> Route:
    """The Route that `truncated_svd` or `low_rank` would take for `batch` matrices of `shape` (or of a tensor's shape).

    A pure function of its arguments: prints, compares, and needs no data; so a rule may only look at the shape.

    Args:
        shape: (m, n) or (b, m, n), or an array, whose dtype and device then count.
        rank, tol, route, oversample, max_iter: as for truncated_svd.
        dtype: float32, float64, bfloat16 or float16, torch's, NumPy's or the name.

    Raises:
        TypeError, ValueError: what truncated_svd refuses.
    """
    options = Options(tol, oversample, max_iter, route, seed=0)
    sizes = shape
    if hasattr(shape, "shape"):
        given = shape if library(shape) in ("torch", "numpy") else to_tensor(shape)  # a view of CuPy's, say
        given = shape if given is None else given
        sizes, dtype, device = given.shape, getattr(given, "dtype", dtype), str(getattr(given, "device", device))
    whole = isinstance(sizes, (tuple, list)) and all(isinstance(size, Integral) and int(size) > 0 for size in sizes)
    if not whole or len(sizes) not in (2, 3):
        raise ValueError(
            f"[laser_kernels::choose] shape must be (m, n), (b, m, n) or an array of such a shape; got {sizes!r:.60}: ask "
            "once for each matrix of a list"
        )
    name = np.dtype(dtype).name if isinstance(dtype, (type, np.dtype)) else str(dtype).removeprefix("torch.")
    if name not in (str(known)[6:] for known in DTYPES):
        raise TypeError(f"[laser_kernels::choose] dtype must be float32, float64, bfloat16 or float16; got {dtype}")
    *batches, m, n = map(int, sizes)
    where = torch.device(device)
    count = batches[0] if batches else batch
    problem = Problem(m, n, resolve_rank(rank, m, n), name, options.tol, where.type, count, ops.capability(where))
    return choose_route(problem, options.route, options.oversample, options.max_iter)


def explain(shape: Any, rank: int | float | Rule, **options: Any) -> str:
    """What `choose` answers, as a sentence: route, block, precision, estimated time, and why."""
    route = choose(shape, rank, **options)
    precision = "float64" if route.wide else "float32"
    return f"{route.name}, {precision}, about {route.seconds * 1e3:.3g} ms: {route.reason}"


def _leading(rank: int, u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of one matrix without what a batch of larger ranks has behind them."""
    return u[:, :rank].contiguous(), s[:rank], vh[:rank]


def _in_order(given: Canonical, per_bucket: list[list[Any]]) -> list[Any]:
    """Results of all buckets at the positions of the caller's matrices."""
    out: list[Any] = [None] * given.size
    for group, items in zip(given.groups, per_bucket, strict=True):
        for position, item in zip(group.positions, items, strict=True):
            out[position] = item
    return out


def _infos(given: Canonical, infos: list[list[Info]]) -> Info | list[Info]:
    return infos[0][0] if given.form == "matrix" else _in_order(given, infos)


def _writable_in_place(target: Tensor, A: Any) -> bool:
    """Whether an op may write there while it reads A: it is A, or has none of A's memory, and no two of its elements are
    one."""
    source = as_tensor(A, "low_rank")
    (first, last), (begin, end) = _addresses(source), _addresses(target)
    same = first == begin and source.stride() == target.stride()
    dense = unit_stride(target) is target and (target.dim() < 3 or target.shape[0] == 1 or target.stride(0) > 0)
    return dense and (same or last <= begin or end <= first)


def _addresses(t: Tensor) -> tuple[int, int]:
    """Of the first byte and of the one behind the last."""
    span = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1
    return t.data_ptr(), t.data_ptr() + span * t.itemsize


def _targets(A: Any, out: Any) -> list[Tensor]:
    """`out` as tensors, checked against A; empty where none was given."""
    if out is None:
        return []
    listed = isinstance(A, (list, tuple))
    if listed != isinstance(out, (list, tuple)) or (listed and len(A) != len(out)):
        raise ValueError("[laser_kernels::low_rank] out must be a list of as many arrays as A where A is a list")
    sources = [as_tensor(a, "low_rank") for a in (A if listed else [A])]
    targets = []
    for source, o in zip(sources, out if listed else [out], strict=True):
        if isinstance(o, np.ndarray) and not is_plain(o):
            raise ValueError(
                "[laser_kernels::low_rank] out must be writable, in native byte order and without negative strides: "
                "leave it out, and copy the result"
            )
        target = as_tensor(o, "low_rank", "out")
        if target.shape != source.shape or target.dtype != source.dtype or target.device != source.device:
            raise ValueError(
                f"[laser_kernels::low_rank] out must match A in shape, dtype and device: {tuple(source.shape)} "
                f"{str(source.dtype)[6:]} on {source.device}; got {tuple(target.shape)} {str(target.dtype)[6:]} on "
                f"{target.device}"
            )
        targets.append(target)
    return targets


def _check_all_finite(given: Canonical, where: str) -> None:
    bad = []
    for bucket in given.buckets:
        top = ops.backend(bucket.tensor.device).prepare(bucket.tensor)[:, 1]
        bad += [p for p, finite in zip(bucket.positions, top.isfinite().tolist(), strict=True) if not finite]
    if bad:
        raise NonFiniteError(sorted(bad), where)
