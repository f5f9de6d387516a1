"""CholeskyQR of csrc/cuda under the emulator: one step against float64, and whole passes."""

import math

import pytest
import torch

from laser_kernels.testing import orthonormality_bound, with_spectrum

DTYPES = [torch.float32, torch.float64]


def selection(selected, count):
    return None if selected is None else torch.tensor(selected, dtype=torch.int32), len(selected or range(count))


def normalize(emu, x, selected=None):
    emu.call("emu_normalize_columns", x, int(x.dtype == torch.float64), *x.shape, *selection(selected, len(x)))


def cholesky_inverse(emu, s, selected=None):
    count, side, _ = s.shape
    inverse, deviation = torch.full_like(s, -5), torch.full((count,), -5.0, dtype=torch.float64)
    shifted = torch.full((count,), -5, dtype=torch.int32)
    wide = int(s.dtype == torch.float64)
    emu.call("emu_cholesky_inverse", s, inverse, wide, count, side, deviation, shifted, *selection(selected, count))
    return inverse, deviation, shifted


def orthonormalize(emu, x, passes):
    """As LinalgCuda::orthonormalize does it; the last pass's deviation and shift."""
    for number in range(passes):
        if number % 2 == 0:
            normalize(emu, x)
        inverse, deviation, shifted = cholesky_inverse(emu, (x.mT @ x).contiguous())
        x = (x @ inverse.mT).contiguous()
    return x, deviation, shifted


def defect(q):
    return (q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max().item()


def frobenius_defect(q):
    q = q.double()
    return torch.linalg.matrix_norm(q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).item()


def frobenius_bound(dtype, columns):
    """Twice what cholesky_inverse takes for orthonormal: that many roundings it leaves alone, as many a pass adds."""
    return 2 * 4 * torch.finfo(dtype).eps * math.sqrt(columns)


def deficient(rank, rows, columns, dtype):
    return (torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [1, 5, 31, 64, 65, 150, 257])  # up to 5 panels of 64, 9 of 32
def test_the_factor_is_inverted(emu, side, dtype):
    x = with_spectrum(side + 30, side, torch.linspace(1, 0.3, side)).to(dtype)
    s = torch.stack([x.mT @ x, (x.mT @ x) * 1.5, torch.eye(side, dtype=dtype)])
    inverse, deviation, shifted = cholesky_inverse(emu, s, [2, 0])
    expected = torch.linalg.inv(torch.linalg.cholesky(s[0].double()))
    bound = 20 * torch.finfo(dtype).eps * math.sqrt(side) * expected.abs().max()
    assert (inverse[0] - expected).abs().max() <= bound and (inverse[0].triu(1) == 0).all()
    assert torch.equal(inverse[2], torch.eye(side, dtype=dtype)) and deviation[2] == 0
    assert math.isclose(deviation[0], torch.linalg.matrix_norm(s[0].double() - torch.eye(side)).item(), rel_tol=1e-6)
    assert shifted.tolist() == [0, -5, 0] and (inverse[1] == -5).all() and deviation[1] == -5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_matrices_that_fail_are_shifted_and_none_disturbs_another(emu, dtype):
    side, eps = 100, torch.finfo(dtype).eps
    x = with_spectrum(150, side, torch.linspace(1, 0.3, side)).to(dtype)
    x /= x.norm(dim=0)
    y = deficient(10, 150, side, dtype)
    y /= y.norm(dim=0)
    s = torch.stack([x.mT @ x, y.mT @ y, x.mT @ x, torch.eye(side, dtype=dtype), x.mT @ x])
    s[2, 70, 3] = s[2, 3, 70] = math.nan
    inverse, deviation, shifted = cholesky_inverse(emu, s)
    assert shifted.tolist() == [0, 1, 0, 0, 0] and deviation[2].isnan() and inverse[2].isnan().any()
    alone, _, _ = cholesky_inverse(emu, s[:1].clone())
    assert torch.equal(inverse[0], alone[0]) and torch.equal(inverse[4], alone[0])
    assert torch.equal(inverse[3], torch.eye(side, dtype=dtype))
    shift = 8 * eps * torch.linalg.matrix_norm(s[1].double())
    shifted_s = s[1].double() + shift * torch.eye(side)
    residual = inverse[1].double() @ shifted_s @ inverse[1].double().mT - torch.eye(side)
    # rounding of S's size, 0.5 eps ||S||, against the least pivots, 8 eps ||S||
    assert residual.abs().max() <= 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orthonormal_to_rounding_is_left_alone(emu, dtype):
    side, step = 100, torch.finfo(dtype).eps
    s = torch.eye(side, dtype=dtype).repeat(2, 1, 1)
    s[0, 80, 3] = s[0, 3, 80] = 20 * step  # ||S - I|| = 28 eps, limit 40 eps
    s[1, 80, 3] = s[1, 3, 80] = 40 * step  # 57 eps
    inverse, _, shifted = cholesky_inverse(emu, s)
    assert torch.equal(inverse[0], torch.eye(side, dtype=dtype)) and shifted.tolist() == [0, 0]
    assert math.isclose(inverse[1, 80, 3], -40 * step, rel_tol=1e-3)


def test_a_pivot_that_no_shift_helps_drops_its_column(emu):
    s = torch.eye(70)
    s[65, 66] = s[66, 65] = 1.5  # no Gram matrix has that
    inverse, _, shifted = cholesky_inverse(emu, s[None])
    assert shifted[0] == 3 and inverse.isfinite().all() and (inverse[0, 66] == 0).all() and inverse[0, 67, 67] > 0.9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e6, 1e9, 1e14])
def test_columns_become_orthonormal_whatever_the_condition(emu, condition, dtype):
    columns = 70
    x = with_spectrum(129, columns, torch.logspace(0, -math.log10(condition), columns)).to(dtype)[None]
    q, deviation, shifted = orthonormalize(emu, x.clone(), 8)
    assert shifted[0] == 0 and deviation[0] < 0.9
    assert defect(q) <= orthonormality_bound(dtype, columns)
    assert frobenius_defect(q) <= frobenius_bound(dtype, columns)
    if condition <= 1e4:
        missed = torch.linalg.matrix_norm(x - q @ (q.mT @ x)).item()
        assert missed <= 100 * torch.finfo(dtype).eps * torch.linalg.matrix_norm(x).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decades", [1.5, 3])
def test_two_passes_do_for_what_the_iteration_gives(emu, decades, dtype):
    x = with_spectrum(200, 40, torch.logspace(0, -decades, 40)).to(dtype)[None]
    q, deviation, shifted = orthonormalize(emu, x, 2)
    assert shifted[0] == 0 and deviation[0] < 0.9 and defect(q) <= orthonormality_bound(dtype, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_of_wildly_different_norms_keep_their_span(emu, dtype):
    x = (torch.randn(200, 30, dtype=dtype) * torch.logspace(0, -12, 30, dtype=dtype))[None]
    q, _, _ = orthonormalize(emu, x.clone(), 3)
    unit = x / x.norm(dim=1, keepdim=True)
    assert defect(q) <= orthonormality_bound(dtype, 30)
    assert (unit - q @ (q.mT @ unit)).norm(dim=1).max() <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", ["zero", "repeated", "zero columns", "zero rows", "square", "single", "nearly repeated", "rank 10"]
)
def test_dependent_columns_are_completed(emu, case, dtype):
    x = torch.randn(3, 80, 70, dtype=dtype)
    if case == "zero":
        x[1] = 0
    elif case == "repeated":
        x[1] = x[1, :, :1].repeat(1, 70)
    elif case == "zero columns":
        x[1, :, ::3] = 0
    elif case == "zero rows":  # as in a wide matrix with empty rows: rank 40
        x[1, 40:] = 0
    elif case == "square":
        x = torch.randn(3, 70, 70, dtype=dtype)
    elif case == "single":
        x = x[:, :, :1].contiguous()
    elif case == "rank 10":
        x[1] = deficient(10, 80, 70, dtype)
    else:
        x[1] = x[1, :, :1] + 1e-3 * torch.finfo(dtype).eps ** 0.5 * torch.randn(80, 70, dtype=dtype)
    q, deviation, shifted = orthonormalize(emu, x, 8)
    assert not shifted.any() and (deviation < 0.9).all()
    for one in q:
        assert defect(one) <= orthonormality_bound(dtype, x.shape[-1])
        assert frobenius_defect(one) <= frobenius_bound(dtype, x.shape[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [3, 10, 40])
def test_no_column_grows(emu, rank, dtype):
    """Rounding that is taken for a pivot does: to lengths of 1e4 and more where pivots are replaced one by one."""
    x = torch.stack([deficient(rank, 120, 90, dtype) for _ in range(4)])
    q, _, shifted = orthonormalize(emu, x, 1)
    assert (shifted == 1).all() and q.norm(dim=1).max() < 1.1


@pytest.mark.parametrize("passes", [1, 2])
def test_large_blocks_are_multiplied_in_slices(_emulator, passes):
    """One pass ends in scratch and is copied back; after an even number the block is where it was."""
    x = torch.randn(1, 560, 520) * torch.logspace(0, 2, 520)
    before = x.clone()
    _emulator.call("emu_orthonormalize_op", x, 1, 560, 520, passes)
    defect = (x[0].double().T @ x[0].double() - torch.eye(520)).abs().max().item()
    print(f"{passes} passes: {defect:.1e}")
    assert defect <= (orthonormality_bound(torch.float32, 520) if passes == 2 else 1e-2)
    left = x[0].double() @ torch.linalg.lstsq(x[0].double(), before[0].double()).solution - before[0].double()
    assert left.norm() <= 1e-4 * before.norm()


def test_trouble_is_reported_after_two_passes(emu):
    x = torch.randn(3, 80, 20)
    x[1] = x[1, :, :1].repeat(1, 20)
    x[2, 5, 5] = math.nan
    _, deviation, shifted = orthonormalize(emu, x, 2)
    assert shifted[0] == 0 and deviation[0] < 0.9
    assert shifted[1] != 0 and not deviation[2] < 0.9


@pytest.mark.parametrize("rows", [3, 300])
def test_zero_columns_are_refilled_with_random_ones(emu, rows):
    x = torch.randn(2, rows, 5)
    x[:, :, 2:4] = 0
    untouched = x[1].clone()
    normalize(emu, x, [0])
    assert torch.allclose(x[0, :, [0, 1, 4]].norm(dim=0), torch.ones(3), atol=1e-6)
    assert (x[0, :, 2:4].abs().sum(0) > 0).all() and not torch.equal(x[0, :, 2], x[0, :, 3])
    assert torch.equal(x[1], untouched)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_refilled_columns_of_few_rows_are_independent(emu, side):
    q, deviation, shifted = orthonormalize(emu, torch.zeros(100, side, side), 4)
    assert not shifted.any() and (deviation < 0.9).all()
    assert max(defect(one) for one in q) <= orthonormality_bound(torch.float32, side)


def test_passes_on_dependent_columns_of_linalg(emu):
    x = torch.stack([deficient(10, 80, 70, torch.float32), torch.randn(80, 70)])
    x[0, :, 5] = 0
    emu.call("emu_orthonormalize_op", x, 2, 80, 70, 8)
    assert max(defect(one) for one in x) <= orthonormality_bound(torch.float32, 70)


def test_a_lost_barrier_is_noticed(emu):
    x = with_spectrum(129, 70, torch.linspace(1, 0.3, 70)).float()
    s = (x.mT @ x)[None]
    emu.drop_barriers(True)
    inverse, _, _ = cholesky_inverse(emu, s)
    expected = torch.linalg.inv(torch.linalg.cholesky(s[0].double()))
    assert not (inverse[0] - expected).abs().max() < 1e-2
