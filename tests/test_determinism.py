"""Same input, same bits; a different grouping, the same result within tolerance."""

import torch

import laser_kernels as lk
from laser_kernels.testing import llm_like, norm, optimal_residual, residual

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
