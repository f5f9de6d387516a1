"""CholeskyQR with its shifted retry and its last resort."""

import pytest
import torch

from laser_kernels.testing import orthonormality_bound, with_spectrum

L = torch.ops.laser_kernels
DTYPES = [torch.float32, torch.float64]


def defect(q):
    return (q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e6, 1e9, 1e14])
def test_columns_are_orthonormal_whatever_the_condition(condition, dtype):
    n, columns = 129, 64
    x = with_spectrum(n, columns, torch.logspace(0, -torch.tensor(condition).log10().item(), columns)).to(dtype)[None]
    q = L.orthonormalize(x)
    assert defect(q) <= orthonormality_bound(dtype, columns)
    if condition <= 1e4:  # the span is determined: x must lie in it
        missed = torch.linalg.matrix_norm(x - q @ (q.mT @ x)).item()
        assert missed <= 100 * torch.finfo(dtype).eps * torch.linalg.matrix_norm(x).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_of_wildly_different_norms_keep_their_span(dtype):
    x = torch.randn(200, 30, dtype=dtype) * torch.logspace(0, -12, 30, dtype=dtype)
    q = L.orthonormalize(x[None])[0]
    unit = x / x.norm(dim=0)
    assert defect(q) <= orthonormality_bound(dtype, 30)
    assert (unit - q @ (q.mT @ unit)).norm(dim=0).max() <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["zero", "repeated", "zero columns", "square", "single"])
def test_dependent_columns_are_completed(case, dtype):
    x = torch.randn(1, 40, 12, dtype=dtype)
    if case == "zero":
        x = torch.zeros_like(x)
    elif case == "repeated":
        x = x[:, :, :1].repeat(1, 1, 12)
    elif case == "zero columns":
        x[:, :, ::3] = 0
    elif case == "square":
        x = torch.randn(1, 12, 12, dtype=dtype)
    else:
        x = x[:, :, :1]
    q = L.orthonormalize(x.contiguous())
    assert defect(q) <= orthonormality_bound(dtype, x.shape[-1])


def test_a_bad_matrix_does_not_spoil_its_neighbours():
    good = torch.randn(50, 8)
    q = L.orthonormalize(torch.stack([good, torch.zeros(50, 8), good]))
    for b in range(3):
        assert defect(q[b]) <= orthonormality_bound(torch.float32, 8)
    span = q[0] @ (q[0].mT @ good)
    assert (good - span).norm() <= 1e-5 * good.norm()
