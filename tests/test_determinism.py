"""Same input, same bits; a different grouping, the same result within tolerance."""

import pytest
import torch

import laser_kernels as lk
from laser_kernels.testing import llm_like, norm, optimal_residual, residual, residual_bound

# 60x50 matrices share a call of the driver (csrc works on small ones in groups); 300x200 are worked on one by one.
SHAPES = [(60, 50), (300, 200)]


def stack(shape):
    return torch.stack([llm_like(*shape, seed) for seed in range(7)])


def test_two_equal_runs_give_equal_bits():
    for shape in SHAPES:
        for route in ("randomized", "gram_eigh", "full_svd"):
            a = stack(shape)
            assert torch.equal(lk.low_rank(a, 5, route=route), lk.low_rank(a, 5, route=route))
            first, second = lk.truncated_svd(a, 5, route=route), lk.truncated_svd(a, 5, route=route)
            assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_batched_equals_looped_within_tolerance():
    for shape in SHAPES:
        a = stack(shape)
        together, infos = lk.low_rank(a, 6, return_info=True, route="randomized")
        for i, matrix in enumerate(a):
            alone, info = lk.low_rank(matrix, 6, return_info=True, route="randomized")
            tail = optimal_residual(matrix, 6)
            assert abs(residual(matrix, together[i]) - residual(matrix, alone)) <= 1e-3 * tail
            # both lie within (2 excess)^(1/2) tail of the truncation
            assert residual(together[i], alone) <= 2 * (2e-3) ** 0.5 * norm(matrix)
            assert infos[i].rank == info.rank


def test_results_do_not_depend_on_the_neighbours():
    a = stack((300, 200))
    other = a.clone()
    other[1:] *= 3
    assert torch.equal(lk.low_rank(a, 6)[0], lk.low_rank(other, 6)[0])


def test_seed_and_key_change_the_sketch_and_little_else():
    a = llm_like(300, 200)
    plain = lk.low_rank(a, 6, route="randomized")
    for options in ({"seed": 1}, {"key": 1}):
        other = lk.low_rank(a, 6, route="randomized", **options)
        assert not torch.equal(plain, other)
        assert abs(residual(a, other) / residual(a, plain) - 1) <= 1e-3


def test_one_thread_agrees_with_many():
    a = stack((300, 200))
    many = lk.low_rank(a, 6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = lk.low_rank(a, 6)
    finally:
        torch.set_num_threads(threads)
    for i, matrix in enumerate(a):
        assert abs(residual(matrix, one[i]) / residual(matrix, many[i]) - 1) <= 1e-3


@pytest.mark.parametrize("shape", [(60, 50), (300, 200)], ids=str)
@pytest.mark.parametrize("route", ["randomized", "spectral", "gram_eigh", "full_svd"])
def test_each_matrix_of_a_batch_has_its_own_scale(route, shape):
    powers = [0, 100, -100, 60, -90]
    a = llm_like(*shape)
    stack = torch.stack([a * 2.0**power for power in powers])
    x, infos = lk.low_rank(stack, 30, route=route, return_info=True)
    for power, one, y, info in zip(powers, stack, x, infos, strict=True):
        assert residual(one, y) <= residual_bound(one, 30, 1e-3)
        assert info.residual == pytest.approx(residual(one, y), rel=1e-3)
        assert info.residual - info.rounding == pytest.approx(infos[0].residual * 2.0**power, rel=1e-3)
        assert info.relative_residual == pytest.approx(infos[0].relative_residual, rel=1e-3)
    _, infos = lk.truncated_svd(stack, 30, route=route, return_info=True)
    for power, info in zip(powers, infos, strict=True):
        assert info.residual == pytest.approx(infos[0].residual * 2.0**power, rel=1e-3)


@pytest.mark.parametrize("shape", [(60, 50), (300, 200)], ids=str)
def test_each_matrix_of_a_batch_has_its_own_key(shape):
    stack = torch.stack([llm_like(*shape)] * 14)  # 60x50: groups of ten
    x = lk.low_rank(stack, 6, route="randomized", key=list(range(14)))
    assert len(x.flatten(1).unique(dim=0)) == 14
    y = lk.low_rank(stack[3], 6, route="randomized", key=12)
    assert torch.allclose(x[12], y, atol=1e-5) and not torch.allclose(x[3], y, atol=1e-5)
