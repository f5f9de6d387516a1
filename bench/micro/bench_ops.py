"""Every op alone and whole calls, with pytest-benchmark: `make bench`.

    make bench                                  saved in .benchmarks
    make bench BENCH="--benchmark-compare"      beside the last saved run

Each answer is checked against float64 first, and the error goes into extra_info, so that it is saved and shown.
"""

import math

import pytest
import torch

import laser_kernels as lk
from laser_kernels import testing
from laser_kernels.bench.matrices import synthetic
from laser_kernels.bench.optimum import Optimum

L = torch.ops.laser_kernels
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"1 x 2048x2048": (1, 2048, 2048), "64 x 576x192": (64, 576, 192)}
RANK = {2048: 204, 192: 19}  # a tenth
BLOCK = {2048: 256, 192: 32}  # dispatch.default_block


@pytest.fixture(params=SHAPES)
def stack(request):
    """(b, m, n) float32, LLM-like, m >= n."""
    return synthetic("llm-like", *SHAPES[request.param], dtype=torch.float32, seed=0, device=DEVICE)


@pytest.fixture
def timed(benchmark):
    """Times `call`, whose error was found beforehand."""

    def run(call, **error):
        benchmark.extra_info.update({what: float(value) for what, value in error.items()})
        if DEVICE.type == "cuda":
            return benchmark(lambda: (call(), torch.cuda.synchronize()))
        return benchmark(call)

    return run


def relative(got, exact):
    """||got - exact|| / ||exact||."""
    return torch.linalg.vector_norm(got.double() - exact.double()) / torch.linalg.vector_norm(exact.double())


def block_of(stack):
    """(b, n, l): A^T times a random block, as the driver orthonormalizes it."""
    omega = L.sketch(stack, BLOCK[stack.shape[2]], 0, [0] * len(stack))
    return stack.mT @ (stack @ omega)


def test_prepare(stack, timed):
    error = relative(L.prepare(stack)[:, 0], torch.linalg.vector_norm(stack.double(), dim=(1, 2)))
    assert error < 1e-12  # a float64 sum
    timed(lambda: L.prepare(stack), error=error)


def test_sketch(stack, timed):
    keys, block = list(range(len(stack))), BLOCK[stack.shape[2]]
    whole, alone = L.sketch(stack, block, 0, keys), L.sketch(stack[-1:], block, 0, keys[-1:])
    assert torch.equal(whole[-1:], alone)
    timed(lambda: L.sketch(stack, block, 0, keys))


def test_gram(stack, timed):
    error = relative(L.gram(stack), stack.mT.double() @ stack.double())
    assert error < 1e-5
    timed(lambda: L.gram(stack), error=error)


def test_orthonormalize(stack, timed):
    x = block_of(stack)
    q = L.orthonormalize(x)
    loss = (q.mT @ q - torch.eye(q.shape[2], device=DEVICE)).abs().max()
    assert loss <= testing.orthonormality_bound(torch.float32, q.shape[2])
    timed(lambda: L.orthonormalize(x), loss=loss)


def test_small_eigh(stack, timed):
    x = L.orthonormalize(block_of(stack))
    h = x.mT @ L.gram(stack) @ x
    h = (h + h.mT) / 2
    values, vectors = L.small_eigh(h)
    error = relative((vectors.double() * values[:, None]) @ vectors.mT.double(), h)
    assert error < 1e-5
    timed(lambda: L.small_eigh(h), error=error)


def test_reconstruct(stack, timed):
    n, r = stack.shape[2], RANK[stack.shape[2]]
    right = L.orthonormalize(block_of(stack))[:, :, :r].contiguous()
    left, out = stack @ right, torch.empty_like(stack)
    L.reconstruct(left, right, stack, out)
    error = relative(out, left.double() @ right.mT.double())
    assert error < 1e-6 * math.sqrt(n)
    timed(lambda: L.reconstruct(left, right, stack, out), error=error)


@pytest.mark.parametrize("call", [lk.low_rank, lk.truncated_svd])
def test_whole_call(stack, timed, call):
    rank = RANK[stack.shape[2]]
    found = call(stack, rank)[0] if call is lk.low_rank else [part[0] for part in call(stack, rank)]
    low = found if call is lk.low_rank else (found[0] * found[1]) @ found[2]
    excess = Optimum.of(stack[0], [rank])[rank].excess(testing.residual(stack[0], low))
    assert excess <= 1e-3
    timed(lambda: call(stack, rank), excess=excess)
