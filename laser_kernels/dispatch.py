"""Which route a problem takes: one pure function, and the constants behind it.

| route      | when                                                        | how                                          |
|------------|-------------------------------------------------------------|----------------------------------------------|
| randomized | cheapest at this rank, tol and shape                        | subspace iteration on A or on A^T A          |
| spectral   | middle rank where products are much faster than an          | projector onto the subspace from products    |
|            | eigensolver: GPUs                                           | and a Cholesky factorization, then as above  |
| gram_eigh  | large rank, small matrix, or randomized did not converge    | A^T A and a symmetric eigensolver            |
| full_svd   | asked for, or nothing cheaper can certify (tiny tails)      | LAPACK gesdd, always in float64             |
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from laser_kernels.status import Status

ROUTES = ("randomized", "spectral", "gram_eigh", "full_svd")

# tol = 0 promises excess <= 1e-6; the routes certify against that figure, in float64.
EXACT_TOL = 1e-6


class Problem(NamedTuple):
    """What is asked: `batch` matrices of (rows, cols), each to `rank`; dtype and device as strings."""

    rows: int
    cols: int
    rank: int
    dtype: str = "float32"
    tol: float | None = 1e-3
    device: str = "cpu"
    batch: int = 1
    capability: str = ""  # of the device: ops.capability


class Route(NamedTuple):
    """What runs.

    Attributes:
        name: "randomized", "spectral", "gram_eigh" or "full_svd".
        block: columns of the randomized basis, rank + oversample; rank for the exact routes.
        gram: randomized: iterate on A^T A, formed once, instead of on A and A^T.
        wide: work in float64 instead of float32.
        half: randomized and spectral: early products take operands rounded to bfloat16; the certificate allows for that.
        seconds: estimated time for the whole batch (Rates).
        reason: why, in words.
    """

    name: str
    block: int
    gram: bool
    wide: bool
    half: bool
    seconds: float
    reason: str


class Rates(NamedTuple):
    """Costs of the building blocks. Source: DEVNOTES.md, "Cost model": CPU measured, CUDA a model of flops and bytes."""

    flops: float  # products with the weight, as good as float32, all threads, per second
    bytes: float  # per second, for products so thin that reading A bounds them
    block_flops: float  # products among blocks, float32, per second
    gram: float  # time of A^T A / time of a product of as many flops at `flops`
    gram_whole: int  # side up to which A^T A is formed whole, beyond it by halves; 0: whole always
    eigh_cubic: float  # seconds of a symmetric eigensolver: cubic n^3 + square n^2 + latency n, float32
    eigh_square: float
    eigh_latency: float
    svd: float  # seconds of a full SVD per m n^2, float32
    call: float  # seconds per call of a library function, whatever its size
    wide: float  # float64 / float32 time
    half: float  # rate of products of bfloat16 operands / of `flops`; 0 where there is no gain
    look_every: int  # multiplications between two Rayleigh-Ritz steps, at least
    batched: bool  # latency and calls are paid once per batch, not once per matrix
    sliced: float = 0  # products among blocks of SLICED columns and more, as good as float32: six of bfloat16 slices


_CPU = Rates(
    flops=1.4e11,
    bytes=9e9,
    block_flops=1.4e11,
    gram=1.05,
    gram_whole=128,  # kGramWhole of python/products_aten.cpp
    eigh_cubic=5e-11,
    eigh_square=2e-8,
    eigh_latency=0,
    svd=2.2e-10,
    call=3e-6,
    wide=2.2,
    half=0,
    look_every=1,
    batched=False,
)


def _gpu(half: float, flops: float, copied: float, wide: float) -> Rates:
    """A model, not a measurement: from the rates of bfloat16 and float32 products (flop/s) and of copies (B/s)."""
    return Rates(
        flops=flops,
        bytes=copied,
        block_flops=flops,
        gram=1.0,
        gram_whole=0,
        eigh_cubic=9 / (0.04 * flops),
        eigh_square=0,
        eigh_latency=2e-5,
        svd=20 / (0.01 * flops),
        call=5e-6,
        wide=wide,
        half=half / flops,
        look_every=4,
        batched=True,
    )


RATES = {
    ("cpu", ""): _CPU,
    ("cpu", "bf16"): _CPU._replace(half=2.1),
    ("cuda", "8.0"): _gpu(2.2e14, 1.5e13, 1.8e12, 2.0),  # A100
    ("cuda", "9.0"): _gpu(7e14, 5e13, 4.3e12, 2.0),  # H200
    ("cuda", "10.0"): _gpu(1.6e15, 6e13, 7.2e12, 2.0),  # B200
    ("cuda", "12.0"): _gpu(1.5e14, 8e13, 1.6e12, 64.0),  # RTX 5090
}

# On a GPU a weight is one to three bfloat16 slices, float32 ones from SLICED on (kSlicedSide of
# csrc/cuda/linalg_cuda.cpp): bfloat16 products that stand for one with a block in full precision, and for A^T A.
SLICED = 512
_SLICE_PRODUCTS = {"bfloat16": (3, 1), "float16": (5, 4), "float32": (6, 6)}

# Matrices of fewer elements gain nothing from half precision: what it costs per call weighs more.
HALF_ELEMENTS = 1 << 16


def rates_of(problem: Problem) -> Rates:
    """The row of RATES; a GPU that has none is taken for a Hopper, another device for a CPU."""
    fallback = RATES["cuda", "9.0"] if problem.device == "cuda" else _CPU
    rates = RATES.get((problem.device, problem.capability), fallback)
    sliced = problem.tol != 0 and (problem.dtype != "float32" or min(problem.rows, problem.cols) >= SLICED)
    if problem.device == "cuda" and problem.dtype in _SLICE_PRODUCTS and sliced:
        full, gram = _SLICE_PRODUCTS[problem.dtype]
        rounded = rates.flops * rates.half
        return rates._replace(flops=rounded / full, half=float(full), gram=gram / full, sliced=rounded / 6)
    return rates


def _block_flops(width: int, rates: Rates) -> float:
    """Rate of products among blocks of this many columns: of slices from SLICED on, whether that is faster or not."""
    return rates.sliced if width >= SLICED and rates.sliced else rates.block_flops


def _eigh_seconds(n: int, rates: Rates, batch: int) -> float:
    """Per matrix of the batch."""
    shared = batch if rates.batched else 1
    return rates.eigh_cubic * n**3 + rates.eigh_square * n**2 + rates.eigh_latency * n / shared


def _gram_seconds(m: int, n: int, rates: Rates) -> float:
    """Per matrix."""
    formed = (1 + rates.gram_whole / n) / 2 if 0 < rates.gram_whole < n else 1.0
    return max(rates.gram * formed * 2.0 * m * n * n / rates.flops, 4.0 * m * n / rates.bytes)


# Below this side a look costs more than the multiplications that a wider block saves.
WIDE_SIDE = 1024


def _widened(side: int, tol: float | None, device: str) -> bool:
    """Whether the block is r + r/3: where that was measured, on CPUs at 1e-3 <= tol < 1e-2."""
    return side >= WIDE_SIDE and device != "cuda" and tol is not None and 1e-3 <= tol < 1e-2


# Of the side: a larger block is all of it (`default_block`).
WHOLE = 0.75


def default_block(rank: int, side: int, tol: float | None, device: str = "cpu") -> int:
    """rank + p, rounded up to a multiple of 16, the width that BLAS multiplies fastest (DEVNOTES.md, "Cost model").

    p takes the least time where it is at least rank/10 and 6 for tol >= 1e-2; rank/8 and 6 below a side of 1024, where what
    a look costs weighs more; else rank/3 and 10, or rank/4 and 20 for tol < 1e-3, without a tol, and on a GPU, where no
    other was measured and thin products cost what reading A costs. Beyond WHOLE of the side the block is all of it: from
    the few directions outside nothing could be estimated.
    """
    if tol is not None and tol >= 1e-2:
        share, least = 10, 6
    elif side < WIDE_SIDE:
        share, least = 8, 6
    elif _widened(side, tol, device):
        share, least = 3, 10
    else:
        share, least = 4, 20
    block = -(-(rank + max(least, rank // share)) // 16) * 16
    return block if block <= WHOLE * side else side


def expected_multiplies(tol: float | None, max_iter: int, share: float = 0.0) -> int:
    """Multiplications by A^T A until the certificate holds: 5, 8, 10 at 1e-2, 1e-3, 1e-4 on LLM-like spectra; fewer on
    a widened block, where the rank is a large `share` of the side (DEVNOTES.md, "Cost model").
    """
    if tol is None:
        return max_iter
    return max(1, min(max_iter, max(2, round(2.5 * math.log10(1 / max(tol, 1e-12)) * (1 - 1.3 * share)))))


def _randomized_seconds(
    m: int, n: int, block: int, rank: int, multiplies: int, gram: bool, half: bool, rates: Rates, batch: int
) -> float:
    """Per matrix of the batch."""

    def product(rows: int, inner: int, cols: int, flops: float = rates.flops) -> float:
        return max(2.0 * rows * inner * cols / flops, 4.0 * rows * inner / rates.bytes)

    # Rayleigh-Ritz steps: filters have degree 1 to 4
    rounds = 1 + (multiplies - 1) / 3 if rates.look_every == 1 else -(-multiplies // rates.look_every)
    if gram:
        full = rounds if half else multiplies + 1
        rounded = rates.flops * (rates.half or 1)
        products = full * product(n, n, block, _block_flops(block, rates))
        products += (multiplies + 1 - full) * product(n, n, block, rounded)
        iterate = _gram_seconds(m, n, rates) + products + product(m, n, rank)
    else:
        full = rounds if half else 2 * multiplies + 2  # half: only one product of each Rayleigh-Ritz step is in full
        iterate = (full + (2 * multiplies + 2 - full) / (rates.half or 1)) * product(m, n, block)
    small = rounds * (12.0 * n * block**2 / _block_flops(block, rates) + _eigh_seconds(block, rates, batch))
    calls = 15 + 20 * rounds + 3 * multiplies
    if rates.batched:  # CholeskyQR is a series of launches, and makes of the block's products what float32 ones cost
        passes = multiplies + rounds
        calls += passes * (20 + 6 * -(-block // CHOLESKY_PANEL))
        small += (passes - 2 * rounds) * 4.0 * n * block**2 / _block_flops(block, rates)
    return iterate + small + calls * rates.call / (batch if rates.batched else 1)


# Columns of a panel of CholeskyQR's factorization: three launches each, in each of two tries (kPanel of
# csrc/cuda/orthonormalize.cuh).
CHOLESKY_PANEL = 64


# SPECTRAL (csrc/core/spectral.cpp): transforms of A^T A until the cut lies in the middle, 64 thin products each for the
# moments; quintics of three products; the top-up's block, and its multiplications. Typical of what bench/spectral.py
# measures. Calls: 1700 counted by running the driver with one search on 4096x4096 at 50 %, less the 189 that recur saves.
SPECTRAL_SEARCHES = 2
SPECTRAL_MOMENTS = 64
SPECTRAL_QUINTICS = 4
SPECTRAL_TOP_UP = 128
SPECTRAL_MULTIPLIES = 8
SPECTRAL_CALLS = 1500
SPECTRAL_GROUP = 8  # matrices that go together: 14 of 4096x4096 in an eighth of 141 GB
# Below this share of n the model's difference to RANDOMIZED is not to be trusted before a GPU has measured it.
SPECTRAL_LEAST = 0.25


def _spectral_seconds(m: int, n: int, rank: int, half: bool, rates: Rates, batch: int) -> float:
    """Per matrix of the batch."""
    share = rank / n
    rounded = SPECTRAL_SEARCHES + 3 * SPECTRAL_QUINTICS + share
    full = 2 / 3 * SPECTRAL_SEARCHES + 2.5 * share + 10.5 * share**2 + 4 * share**3  # rough ones count half
    halves = rates.flops * (rates.half if half else 1.0)
    products = 2.0 * n**3 * (rounded / halves + full / _block_flops(rank, rates))
    moments = SPECTRAL_SEARCHES * SPECTRAL_MOMENTS * (2.0 if half else 4.0) * n * n / rates.bytes
    block = min(n, SPECTRAL_TOP_UP)
    together = min(batch, SPECTRAL_GROUP)
    top_up = _randomized_seconds(n, n, block, min(rank, block), SPECTRAL_MULTIPLIES, True, False, rates, together)
    weights = _gram_seconds(m, n, rates) + 2.0 * m * n * rank / rates.flops
    return products + moments + top_up + weights + SPECTRAL_CALLS * rates.call / (together if rates.batched else 1)


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, route: str = "auto", oversample: int | None = None, max_iter: int = 64) -> Route:
    """The route for a problem: the cheapest by the cost model, or the one asked for. Pure; touches no data.

    Raises:
        ValueError: unknown route, or a negative oversample.
    """
    if route != "auto" and route not in ROUTES:
        raise ValueError(f"[laser_kernels] route must be auto, {', '.join(ROUTES)}; got {route!r}")
    if oversample is not None and oversample < 0:
        raise ValueError(f"[laser_kernels] oversample must be >= 0; got {oversample}")
    m, n = max(problem.rows, problem.cols), min(problem.rows, problem.cols)
    r = problem.rank
    wide = problem.dtype == "float64" or problem.tol == 0
    rates = rates_of(problem)
    scale = problem.batch * (rates.wide if wide else 1.0)
    block = default_block(r, n, problem.tol, problem.device) if oversample is None else min(n, r + oversample)
    multiplies = expected_multiplies(problem.tol, max_iter, r / n if _widened(n, problem.tol, problem.device) else 0.0)
    may_half = rates.half > 0 and not wide and problem.tol is not None and m * n >= HALF_ELEMENTS

    def randomized(gram: bool) -> Route:
        seconds = scale * _randomized_seconds(m, n, block, r, multiplies, gram, may_half, rates, problem.batch)
        on = "A^T A, formed once" if gram else "A and A^T"
        reason = f"about {multiplies} multiplications by A^T A on a block of {block} columns, through {on}"
        reason += ", early products in bfloat16" if may_half else ""
        return Route("randomized", block, gram, wide, may_half, seconds, reason)

    gram_eigh = Route(
        "gram_eigh",
        r,
        True,
        wide,
        False,
        scale
        * (
            _gram_seconds(m, n, rates)
            + 2.0 * m * n * r / rates.flops
            + _eigh_seconds(n, rates, problem.batch)
            + 15 * rates.call / (problem.batch if rates.batched else 1)
        ),
        f"A^T A and a {n}x{n} symmetric eigensolver",
    )
    rounds = problem.device == "cuda" and not wide  # on a CPU that multiplies bfloat16 it was not measured
    spectral = Route(
        "spectral",
        r,
        True,
        wide,
        rounds,
        scale * _spectral_seconds(m, n, r, rounds, rates, problem.batch),
        f"a projector from products of {n}x{n} matrices, the rest by randomized",
    )
    full_svd = Route(
        "full_svd", r, False, True, False, problem.batch * rates.wide * rates.svd * m * n * n, "a dense SVD in float64"
    )
    candidates = {"randomized": min(randomized(False), randomized(True), key=lambda x: x.seconds)}
    candidates["spectral"] = spectral
    candidates["gram_eigh"] = gram_eigh
    candidates["full_svd"] = full_svd
    if route != "auto":
        chosen = candidates[route]
        return chosen._replace(reason="asked for: " + chosen.reason)
    if r == n:
        return full_svd._replace(reason="all singular values are asked for: " + full_svd.reason)
    if problem.tol == 0:
        return gram_eigh._replace(reason="tol=0: float64, " + gram_eigh.reason)
    if problem.tol is None:
        return candidates["randomized"]._replace(
            reason="tol=None, nothing to certify: " + candidates["randomized"].reason
        )
    automatic = [candidates["randomized"], gram_eigh] + [spectral] * (r >= SPECTRAL_LEAST * n)
    best = min(automatic, key=lambda x: x.seconds)
    return best._replace(reason="cheapest by the cost model: " + best.reason)


# Ranks in one such part of an octave, or between two multiples of it, are not told apart: that bounds the search, and a
# block's width is a multiple of 16 anyway (`default_block`).
SHARED_STEP = 16


def share_ranks(problem: Problem, counts: Mapping[int, int], route_of: Callable[[Problem], Route]) -> dict[int, int]:
    """With which largest rank the matrices of each rank go, so that the batches take the least time in all. Pure.

    Where batches share what each call costs (Rates.batched), a matrix of a smaller rank costs less beside those of a larger
    one than in a call of its own. A batch runs on the route of its largest rank: ranks that would take another stay out.

    Args:
        problem: what the matrices have in common; its rank and batch do not count.
        counts: how many matrices have each rank.
        route_of: `choose` with the caller's options.

    Returns:
        Rank -> largest rank of its batch.
    """
    if not rates_of(problem).batched or len(counts) == 1:
        return {rank: rank for rank in counts}

    def route(rank: int, batch: int = 1) -> Route:
        return route_of(problem._replace(rank=rank, batch=batch))

    ranks = sorted(counts)
    steps = [list(r) for _, r in itertools.groupby(ranks, key=lambda r: (route(r).name, _step_above(r)))]
    least: list[tuple[float, int]] = [(0.0, 0)]  # of the first so many steps: seconds, and where the last batch begins
    for end in range(1, len(steps) + 1):
        top, batch, best = steps[end - 1][-1], 0, (math.inf, end - 1)
        for begin in range(end - 1, -1, -1):
            batch += sum(counts[rank] for rank in steps[begin])
            together = route(top, batch)
            if begin < end - 1 and route(steps[begin][0], batch).name != together.name:
                continue
            best = min(best, (least[begin][0] + together.seconds, begin))
        least.append(best)
    shared: dict[int, int] = {}
    end = len(steps)
    while end > 0:
        begin = least[end][1]
        shared.update({rank: steps[end - 1][-1] for step in steps[begin:end] for rank in step})
        end = begin
    return shared


def _step_above(rank: int) -> int:
    step = max(SHARED_STEP, (1 << rank.bit_length()) // (2 * SHARED_STEP))
    return -(-rank // step) * step


def escalate(problem: Problem, route: Route, status: Status) -> Route | None:
    """Where a matrix goes whose certificate failed on `route`; None after the last resort. Pure."""
    if route.name == "full_svd":
        return None
    full = choose(problem, "full_svd")._replace(reason="no cheaper route could certify")
    if route.name == "gram_eigh":
        return full if route.wide else route._replace(wide=True, reason="float32 cannot certify this tail: float64")
    exact = choose(problem, "gram_eigh")
    if status == Status.NOT_CONVERGED:
        return exact._replace(wide=route.wide, reason="the iteration did not converge")
    if route.wide:
        return exact._replace(wide=True, reason="the iteration cannot certify it in float64: " + exact.reason)
    # float32 cannot tell: whichever is cheaper in float64
    wide = problem._replace(dtype="float64")
    better = route if choose(wide, route.name).seconds <= choose(wide, "gram_eigh").seconds else exact
    return better._replace(wide=True, half=False, reason="float32 cannot certify this tail: float64")
