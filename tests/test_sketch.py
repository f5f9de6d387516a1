"""Randomness is a function of (seed, key, row, column) alone."""

import torch

from laser_kernels import _core, reference

L = torch.ops.laser_kernels
W = torch.empty(1, 700, 300)


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10."""
    ones = [0xFFFFFFFF] * 4
    assert _core.philox4x32([0] * 4, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _core.philox4x32(ones, ones[0], ones[0]) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert _core.philox4x32(pi, 0xA4093822, 0x299F31D0) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_alone_in_a_batch_and_at_any_thread_count():
    keys = [7, 0, 2**62 + 1]
    together = L.sketch(W.expand(3, -1, -1), 33, 5, keys)
    for i, key in enumerate(keys):
        assert torch.equal(together[i], L.sketch(W, 33, 5, [key])[0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(together, L.sketch(W.expand(3, -1, -1), 33, 5, keys))
    finally:
        torch.set_num_threads(threads)


def test_a_smaller_sketch_is_a_corner_of_a_larger_one():
    large = L.sketch(W, 40, 1, [9])
    assert torch.equal(L.sketch(W[:, :, :100], 17, 1, [9]), large[:, :100, :17])


def test_reference_gives_the_same_bits():
    for seed, key, columns in ((0, 0, 8), (2**62, 123456789, 7), (3, 2**63 - 1, 1)):
        assert torch.equal(L.sketch(W, columns, seed, [key]), reference.sketch(W, columns, seed, [key]))


def test_integers_exact_in_bf16_with_the_binomial_moments():
    q = L.sketch(W, 300, 0, [0])
    assert torch.equal(q, q.round()) and q.abs().max() <= 32
    assert torch.equal(q, q.bfloat16().float())
    assert abs(q.mean().item()) < 4 * 4 / q.numel() ** 0.5  # variance 64/4 = 16
    assert abs(q.var().item() - 16) < 0.5
    other = L.sketch(W, 300, 0, [1])
    assert abs(torch.corrcoef(torch.stack([q.flatten(), other.flatten()]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(q[0].mT)[0, 1]) < 0.25
