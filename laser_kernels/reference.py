"""The compiled ops in plain torch, one matrix at a time: the oracle of the tests, and what runs where the extension
could not be built. Same arguments and results as torch.ops.laser_kernels.*; the sketch has the same bits, the rest agrees
within tolerance. The loop is csrc/core/randomized.cpp with filters of degree 1 and Householder QR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from laser_kernels.status import Status

# The same as in csrc (DEVNOTES.md, "Certificate").
SAFETY, NOISE, FLOOR, REACH, SPREAD, GRAM_ERROR, START = 2.5, 4.0, 32.0, 1.0, 0.25, 12.0, 2


def _philox4x32(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Ten rounds on four words of 32 bits, kept in uint64 arrays (Salmon et al. 2011)."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(x, np.uint64) & low for x in counter]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [
            (p1 >> shift) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> shift) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def _popcount(x: np.ndarray) -> np.ndarray:
    return np.unpackbits(x.astype("<u8").view(np.uint8).reshape(*x.shape, 8), axis=-1).sum(-1, dtype=np.int64)


def sketch(weight: Tensor, block: int, seed: int, keys: Sequence[int]) -> Tensor:
    """(b, min(m, n), block) float32 integers in [-32, 32], a pure function of (seed, key, row, column)."""
    side, pairs = min(weight.shape[1:]), (block + 1) // 2
    row, pair = np.meshgrid(np.arange(side, dtype=np.uint64), np.arange(pairs, dtype=np.uint64), indexing="ij")
    high, zero = np.uint64(32), np.zeros_like(row)
    seed %= 1 << 64
    out = []
    for key in keys:
        words = [np.array([w], np.uint64) for w in (key & 0xFFFFFFFF, key >> 32, 0x6C617365, 0x72)]
        mixed = _philox4x32(words, (seed & 0xFFFFFFFF, seed >> 32))
        r = _philox4x32([row, zero, pair, zero], (int(mixed[0][0]), int(mixed[1][0])))
        values = np.stack([_popcount(r[0] << high | r[1]), _popcount(r[2] << high | r[3])], -1) - 32
        out.append(torch.from_numpy(values.reshape(side, 2 * pairs)[:, :block].astype(np.float32)))
    return torch.stack(out).to(weight.device)


def prepare(weight: Tensor) -> Tensor:
    """(b, 2): Frobenius norm and largest magnitude (Inf or NaN if there is one), float64."""
    wide = weight.double()
    top = torch.where(wide.isnan().any(-1).any(-1), math.nan, wide.abs().amax((-2, -1)))
    scale = torch.where((top > 0) & top.isfinite(), top, torch.ones_like(top))
    return torch.stack([torch.linalg.matrix_norm(wide / scale[:, None, None]) * scale, top], -1)


def _perturbation_loss(eigenvalues: Tensor, rank: int, error: float) -> float:
    """Energy that entries of this size in the eigenbasis may cost (certificate.hpp)."""
    gap = eigenvalues[:rank, None] - eigenvalues[None, rank:]
    return torch.where(gap > error, error**2 / gap.clamp_min(1e-300), gap.clamp_min(0)).sum().item()


def _judge_exact(eigenvalues: Tensor, rank: int, norm2: float, error: float, noise: float, floor2: float):
    """(remainder, bound, remainder is known): second-order perturbation loss over the tail (certificate.hpp)."""
    captured = eigenvalues[:rank].clamp_min(0).sum().item()
    loss = _perturbation_loss(eigenvalues, rank, error)
    remainder = max(norm2 - captured, 0.0)
    if remainder + noise <= floor2:
        return remainder, 0.0, True
    tail2 = max(remainder - noise, 0.1 * remainder)
    return remainder, loss / (2 * tail2) if tail2 > 0 else math.inf, remainder > 10 * noise


def _ritz_loss(theta: Tensor, residual: Tensor, rest: Tensor | float, most: float = 1.0) -> Tensor:
    """Energy that Ritz vectors may lack, from their residuals (certificate.hpp)."""
    gap = theta - rest
    return torch.where(gap * most > residual, residual**2 / gap.clamp_min(1e-300), most * residual)


def _missing_energy(theta: Tensor, residual: Tensor, rank: int, n: int, norm2: float, eps: float) -> float:
    """Energy that the leading `rank` of a block of Ritz vectors in n dimensions may lack (certificate.hpp)."""
    block = len(theta)
    if block == n:
        return _perturbation_loss(theta, rank, GRAM_ERROR * eps * theta[0].item()) / SAFETY
    mean = (norm2 - theta.sum().item()) / (n - block)
    rest = max(theta[-1].item(), mean) + REACH * residual[-1].item()
    loss = _ritz_loss(theta, residual, rest, max(1.0, math.sqrt((n - block) / block)))
    traded = (loss[:rank, None] * loss[None, rank:] / max(SPREAD * (n - block), 1.0)).sqrt()
    trades = _ritz_loss(theta[:rank, None], traded, theta[None, rank:] + loss[None, rank:])
    return (loss[:rank].sum() + trades.sum()).item()


def _randomized(
    a: Tensor,
    q: Tensor,
    rank: int,
    tol: float | None,
    max_iter: int,
    norm2: float,
    noise: float,
    floor2: float,
):
    """Basis of the leading right singular vectors of a (m >= n): (V, remainder, bound, multiplies, status)."""
    full = q.shape[1] == a.shape[1]
    multiplies = 0 if full else min(START, max_iter)
    q = torch.linalg.qr(q).Q
    for _ in range(multiplies):
        q = torch.linalg.qr(a.mT @ (a @ q)).Q
    before = math.inf
    while True:
        y = a @ q
        theta, w = torch.linalg.eigh(y.mT @ y)
        theta, w = theta.flip(0).double().clamp_min(0), w.flip(1)
        z, last = q @ w, theta[-1].item()
        x = a.mT @ (y @ w)
        remainder = max(norm2 - theta[:rank].sum().item(), 0.0)
        residual = (x.double() - theta * z.double()).norm(dim=0)
        missing = _missing_energy(theta, residual, rank, a.shape[1], norm2, torch.finfo(a.dtype).eps)
        stalled, before = missing > 0.9 * before, missing
        denominator = 2 * max(remainder - noise - min(missing, remainder), 0.1 * remainder, 1e-300)
        exhausted = remainder + noise <= floor2
        bound = 0.0 if exhausted else (SAFETY * missing + noise) / denominator
        done = multiplies >= max_iter
        if tol is None:
            status = Status.UNCERTIFIED if full or done else None
        elif exhausted or bound <= tol:
            status = Status.OK
        elif full or stalled or noise >= 0.5 * tol * denominator:
            status = Status.PRECISION
        else:
            status = Status.NOT_CONVERGED if done else None
        if status is not None:
            return z[:, :rank], remainder, bound, multiplies, status
        if last > 1e3 * torch.finfo(a.dtype).eps * theta[0].item():
            x = x * (2 / last) - z
        multiplies += 1
        q = torch.linalg.qr(x / x.norm(dim=0).clamp_min(1e-300)).Q


def _each(ranks: int | Sequence[int], count: int) -> list[int]:
    """One rank per matrix, from one for all or one each."""
    given = [ranks] if isinstance(ranks, int) else list(ranks)
    return given * count if len(given) == 1 else given


def _reduce(weight, ranks, route, block, wide, tol, max_iter, seed, keys, write):
    """Runs the route on each matrix and hands (b, U, S, V) in the weight's orientation to `write`; the certificate."""
    dtype = torch.float64 if wide else torch.float32
    eps = torch.finfo(dtype).eps
    floor = FLOOR * torch.finfo(torch.float64 if weight.dtype == torch.float64 else torch.float32).eps
    stats = prepare(weight)
    rows = torch.zeros((len(weight), 7), dtype=torch.float64)
    rows[:, 0] = torch.where(stats[:, 1].isfinite(), 0.0, float(Status.NON_FINITE)).cpu()
    if rows[:, 0].any():
        return rows.to(weight.device)
    for b, (key, rank) in enumerate(zip(keys, _each(ranks, len(weight)), strict=True)):
        top = stats[b, 1].item()
        exponent = 0 if top == 0 else max(-1000, min(1000, math.frexp(top)[1] - 1))
        a = torch.ldexp(weight[b].double(), torch.tensor(-exponent)).to(dtype)
        transposed = a.shape[0] < a.shape[1]
        a = a.mT if transposed else a
        norm2 = (stats[b, 0].item() * 2.0**-exponent) ** 2
        noise, floor2, multiplies = NOISE * eps * norm2, floor**2 * norm2, 0
        if route == "randomized":
            q = sketch(weight[b : b + 1], block, seed, [key])[0].to(dtype)
            v, remainder, bound, multiplies, status = _randomized(a, q, rank, tol, max_iter, norm2, noise, floor2)
            u, s, vh = torch.linalg.svd(a @ v, full_matrices=False)
            v = v @ vh.mT
        else:
            if route in ("gram_eigh", "spectral"):  # products gain nothing here
                values, vectors = torch.linalg.eigh(a.mT @ a)
                values, v = values.flip(0).double(), vectors.flip(1)[:, :rank]
                u, s, vh = torch.linalg.svd(a @ v, full_matrices=False)
                v = v @ vh.mT
            else:
                u, s, vh = torch.linalg.svd(a, full_matrices=False)
                values, (u, s, v) = s.double() ** 2, (u[:, :rank], s[:rank], vh[:rank].mT)
            error = (1 if route == "full_svd" else GRAM_ERROR) * eps * values[0].item()
            remainder, bound, known = _judge_exact(values, rank, norm2, error, noise, floor2)
            last_resort = route == "full_svd" and wide
            status = Status.OK if last_resort or (known and (tol is None or bound <= tol)) else Status.PRECISION
            status = Status.UNCERTIFIED if tol is None else status
        residual = math.ldexp(math.sqrt(remainder), exponent)
        rows[b] = torch.tensor(
            [status, stats[b, 0].item(), residual, residual, bound, multiplies, 0], dtype=torch.float64
        )
        if status in (Status.OK, Status.UNCERTIFIED):
            u, v = (v, u) if transposed else (u, v)
            write(b, u, torch.ldexp(s.double(), torch.tensor(exponent)), v, rows[b])
    return rows.to(weight.device)


def count_eigenvalues(h, above):
    """(b, 2): eigenvalues of h (b, n, n) above each level, and 0: none is in doubt."""
    counts = (torch.linalg.eigvalsh(h.double()) > torch.tensor(above, device=h.device)[:, None]).sum(1)
    return torch.stack([counts.double(), torch.zeros_like(counts).double()], dim=1)


def low_rank(weight, out, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys) -> Tensor:
    """Writes A_r of each certified matrix to `out` (which may be the weight); returns the (b, 7) certificate."""

    def write(b: int, u: Tensor, s: Tensor, v: Tensor, row: Tensor) -> None:
        product, a = (u.double() * s) @ v.double().mT, weight[b].double()
        rounded = product.to(weight.dtype)
        row[2], row[3] = (
            torch.linalg.matrix_norm(a - product),
            torch.linalg.matrix_norm(a - rounded.double()),
        )
        out[b].copy_(rounded)

    return _reduce(weight, ranks, route, block, wide, tol, max_iter, seed, keys, write)


def low_rank_at(weight, out, rank, locked, sigma, half, max_iter, seed, keys) -> Tensor:
    """`low_rank` without a tolerance: what the cuts would save is nothing here."""
    wide = weight.dtype == torch.float64
    return low_rank(weight, out, rank, "gram_eigh", rank, True, wide, half, None, max_iter, seed, keys)


def truncated_svd(weight, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys):
    """(U (b, m, r), S (b, r), Vh (b, r, n), certificate), r the largest rank, zero beyond a matrix's own; the largest entry
    of each column of U is positive."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    b, m, n = weight.shape
    rank = ranks if isinstance(ranks, int) else max(ranks)
    us, ss, vs = (weight.new_zeros(s, dtype=dtype) for s in ((b, m, rank), (b, rank), (b, rank, n)))

    def write(i: int, u: Tensor, s: Tensor, v: Tensor, _row: Tensor) -> None:
        sign = torch.where(u.gather(0, u.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
        own = len(s)
        us[i, :, :own], ss[i, :own], vs[i, :own] = u * sign, s, (v * sign).mT

    rows = _reduce(weight, ranks, route, block, wide, tol, max_iter, seed, keys, write)
    return us, ss, vs, rows
