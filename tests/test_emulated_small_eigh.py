"""The Jacobi eigensolver of csrc/cuda under the emulator."""

import math

import pytest
import torch

from laser_kernels.testing import with_spectrum

DTYPES = [torch.float32, torch.float64]


def small_eigh(emu, h, selected=None):
    count, side, _ = h.shape
    w, theta = torch.full_like(h, -5), torch.full((count, side), -5.0, dtype=torch.float64)
    index = None if selected is None else torch.tensor(selected, dtype=torch.int32)
    emu.call(
        "emu_small_eigh", h, w, theta, int(h.dtype == torch.float64), count, side, index, len(selected or range(count))
    )
    return theta, w


def symmetric(values, seed):
    q = with_spectrum(len(values), len(values), torch.ones(len(values)), seed)
    h = (q * torch.tensor(values, dtype=torch.float64)) @ q.mT
    return (h + h.mT) / 2


SPECTRA = {
    "random": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).tolist(),
    "equal": lambda n: [1.0] * n,
    "spread": lambda n: torch.logspace(0, -6, n, dtype=torch.float64).tolist(),
    "clusters": lambda n: [1.0 + (i % 2) for i in range(n)],
    "zero": lambda n: [0.0] * n,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [1, 2, 3, 16, 33])
def test_every_matrix_of_a_batch_is_decomposed(emu, side, dtype):
    h = torch.stack([symmetric(make(side), seed) for seed, make in enumerate(SPECTRA.values())]).to(dtype)
    theta, w = small_eigh(emu, h)
    eps = torch.finfo(dtype).eps
    size = torch.linalg.matrix_norm(h.double())
    exact = torch.linalg.eigvalsh(h.double()).flip(1)
    assert (theta.diff(dim=1) <= 0).all()
    assert ((theta - exact).abs().amax(1) <= 4 * eps * math.sqrt(side) * size).all()
    assert (w.mT @ w - torch.eye(side, dtype=dtype)).abs().max() <= 8 * eps * math.sqrt(max(side, 16))
    left = torch.linalg.matrix_norm(h.double() @ w.double() - w.double() * theta[:, None])
    assert (left <= 8 * eps * math.sqrt(side) * size).all()


def test_small_eigenvalues_of_a_graded_matrix_keep_digits(emu):
    h = torch.diag(torch.logspace(0, -6, 20, dtype=torch.float64))
    h = (h + 1e-9 * torch.ones(20, 20)).float()[None]
    theta, _ = small_eigh(emu, h)
    exact = torch.linalg.eigvalsh(h.double()).flip(1)
    assert ((theta - exact).abs() <= 1e-3 * exact).all()


def test_nan_stays_where_it_is_and_others_are_not_touched(emu):
    h = torch.stack([symmetric([3.0, 2.0, 1.0, 0.5, 0.1], i) for i in range(4)]).float()
    h[1, 2, 2] = math.nan
    theta, w = small_eigh(emu, h, [0, 1, 3])
    assert theta[1].isnan().all() and w[1].isnan().all()
    assert (theta[2] == -5).all() and (w[2] == -5).all()
    for b in (0, 3):
        assert torch.allclose(theta[b], torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64), atol=1e-5)


def test_the_limit_is_what_shared_memory_holds(_emulator):
    limit = _emulator.library.emu_jacobi_limit
    assert limit(0, 232448) >= 128 and limit(0, 101376) >= 111 and limit(1, 232448) >= 96
    assert limit(0, 100) == 0


def test_a_lost_barrier_is_noticed(emu):
    h = symmetric(SPECTRA["random"](34), 1).float()[None]
    emu.drop_barriers(True)
    theta, _ = small_eigh(emu, h)
    exact = torch.linalg.eigvalsh(h.double()).flip(1)
    assert not (theta - exact).abs().max() < 1e-2
