"""The rank of one matrix by a rule that looks at its values: no more of the spectrum than the rule needs.

1. Grow: truncated SVDs of twice the rank and more, until the values found cross the line. The energy ||A||_F^2 is known
   exactly, so what is captured says what is missing, and the certificate bounds what the captured values lack.
2. Where those bounds leave a doubt: a tighter tol, once; then all values from A^T A in float64, each with its bound; then
   LAPACK's SVD in float64.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from laser_kernels import exact, ops
from laser_kernels.dispatch import Problem, choose
from laser_kernels.rank import Rule
from laser_kernels.ranks.crossing import Above, Crossing, Leading, exactly

FIRST = 16  # the width that BLAS multiplies fastest (dispatch.default_block)
LOOSE = 1e-2  # while growing only the order of magnitude counts
TIGHTEST = 1e-7  # below it float32 products can certify nothing
NOISE = 4.0  # eps ||A||_F^2 that a captured energy may be off: csrc's kNoise
FLOOR = 32.0  # the contract's c: residual <= (1 + bound) tail + c eps ||A||
UNRESOLVED = 0.1  # count_eigenvalues' own measure of what it could not tell; beyond it the values are computed
WORTH = 0.25  # of GRAM_EIGH's time in float64: half of what the values alone take, so that growing in vain costs little
BEYOND = 16  # a 16th more values than the estimate, among which the tighter certificate finds the crossing


def find(a: Tensor, rule: Rule) -> int:
    """The rank that `rule` gives a finite (m, n), before any clamp: the one of its float64 singular values."""
    shape = (a.shape[0], a.shape[1])
    line = rule.crossing(shape)
    if line is None:
        return rule.count(exact.singular_values(a), shape)
    if isinstance(line, Above) and line.relative == 0 and (counted := projected(a, line.absolute)) is not None:
        return rule.finish(counted, shape, math.inf)
    unit = exact.unit_of(a)
    line = line.in_units(unit)
    grown = _grow(a, rule, line, unit)
    if grown is not None:
        return grown
    whole = exact.squares(a)
    told = _told(exactly(whole.squares, whole.energy, whole.slack), rule, line, shape, unit)
    return rule.count(exact.by_svd(a), shape) if told is None else told


def projected(a: Tensor, sigma: float) -> int | None:
    """How many singular values of a (m, n) on a GPU exceed sigma, by the projector of csrc/core/spectral.cpp.

    It needs products and a Cholesky factorization, no spectrum. None where it cannot tell, and elsewhere than on a GPU.
    """
    if not (a.is_cuda and ops.COMPILED_CUDA and sigma > 0):
        return None
    kernels, top = ops.backend(a.device), exact.unit_of(a)
    scaled = (a.double() / top).to(torch.float64 if a.dtype == torch.float64 else torch.float32)
    above, unresolved = kernels.count_eigenvalues(kernels.gram(scaled[None]), [(sigma / top) ** 2])[0].tolist()
    return int(above) if unresolved <= UNRESOLVED else None


def _told(known: Leading, rule: Rule, line: Crossing, shape: tuple[int, int], unit: float) -> int | None:
    """The rank, where both ends of what is possible give the same one."""
    least, most = line.bracket(known)
    top = [math.sqrt(max(0.0, bound[0].item())) * unit for bound in (known.low, known.high)]
    ends = {rule.finish(least, shape, top[0]), rule.finish(min(shape) if most is None else most, shape, top[1])}
    return ends.pop() if len(ends) == 1 else None


def _grow(a: Tensor, rule: Rule, line: Crossing, unit: float) -> int | None:
    """The rank from leading values alone; None where that cannot tell, or costs more than the whole spectrum."""
    shape, side = (a.shape[0], a.shape[1]), min(a.shape)
    energy = exact.energy(a, unit)
    budget = WORTH * _seconds(a, 1, 0.0)
    rank, reached = min(FIRST, side), False
    while not reached:
        budget -= _seconds(a, rank, LOOSE)
        if budget < 0 or rank >= side:
            return None
        known = _leading(a, rank, LOOSE, energy, unit)
        told = _told(known, rule, line, shape, unit)
        if told is not None:
            return told
        count, reached = line.estimate(known)
        rank = min(side, count + 1 + count // BEYOND if reached else max(2 * rank, count))
    left = energy - known.low_sum[max(0, count - 1)].item()
    tol = min(LOOSE, line.wanted(known) / (2 * max(left, 1e-300)))
    if tol < TIGHTEST or budget < _seconds(a, rank, tol):
        return None
    return _told(_leading(a, rank, tol, energy, unit), rule, line, shape, unit)


def _seconds(a: Tensor, rank: int, tol: float) -> float:
    problem = Problem(
        a.shape[0],
        a.shape[1],
        rank,
        str(a.dtype).removeprefix("torch."),
        tol,
        a.device.type,
        1,
        ops.capability(a.device),
    )
    return choose(problem).seconds


def _leading(a: Tensor, rank: int, tol: float, energy: float, unit: float) -> Leading:
    """Bounds from a truncated SVD. Ritz values lie below the true ones, and together lack at most what the rank lacks:

    sum_i (lambda_i - theta_i) = E_r - e_r <= (||A||_F^2 - tail^2) - e_r, with the certificate's bound on the tail.
    """
    from laser_kernels.api import truncated_svd  # whose door asks rules

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who asks for a rank did not choose a route
        svd, info = truncated_svd(a, rank, tol=tol, return_info=True)
    theta = (svd.S.double() / unit).square()
    eps = torch.finfo(svd.S.dtype).eps
    sums, noise = theta.cumsum(0), NOISE * eps * energy
    tail = max(0.0, info.residual / unit - FLOOR * eps * math.sqrt(energy)) / (1 + info.excess_bound)
    lacking = max(0.0, energy - tail**2 - sums[-1].item()) + noise
    return Leading(theta - noise, theta + lacking, sums - noise, sums + lacking, energy, whole=rank == min(a.shape))
