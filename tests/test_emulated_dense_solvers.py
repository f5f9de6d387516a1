"""cuSOLVER's routes of csrc/cuda under the emulator, with a host's cuSOLVER that checks arguments and fails on demand."""

import math

import pytest
import torch

DTYPES = [torch.float32, torch.float64]
XSYEV_BATCHED, XSYEVD, XGESVDP, XGESVD, GESVDJ = range(5)
INT_MAX = 2**31 - 1


@pytest.fixture(autouse=True)
def _no_failures(emu):
    emu.call("emu_dense_script", -1, 0, 0, 0, 0, 0, 0.0)


def fail(emu, routine, *, matrices=0, info=1, calls=0, status=0, perturbed=0, by=0.0):
    """Masks: bit k stands for the k-th matrix, or call, that the routine sees."""
    emu.call("emu_dense_script", routine, matrices, info, calls, status, perturbed, float(by))


def strides(x):
    return torch.tensor(x.stride(), dtype=torch.int64)


def lines(text):
    return bytes(text.tolist()).split(b"\0")[0].decode().splitlines()


def eigh(emu, h, *, selected=None, w=None, batched=True, most_bytes=INT_MAX, most=32768):
    """theta, w, and the calls made; the last of these is the error's text if there was one."""
    count, side, _ = h.shape
    w = torch.full((count, side, side), -5, dtype=h.dtype) if w is None else w
    theta = torch.full((count, side), -5.0, dtype=torch.float64)
    text = torch.zeros(4096, dtype=torch.uint8)
    index = None if selected is None else torch.tensor(selected, dtype=torch.int32)
    n = count if selected is None else len(selected)
    kind = int(h.dtype == torch.float64)
    emu.call(
        "emu_dense_eigh",
        *(h, strides(h), w, strides(w), theta, kind, count, side, index, n, int(batched), most_bytes, most, text),
    )
    return theta, w, lines(text)


def svd(emu, a, *, selected=None, u=None, vt=None):
    count, m, n = a.shape
    u = torch.full((count, m, n), -5, dtype=a.dtype) if u is None else u
    vt = torch.full((count, n, n), -5, dtype=a.dtype) if vt is None else vt
    sigma = torch.full((count, n), -5, dtype=a.dtype)
    codes = torch.full((count,), -7, dtype=torch.int32)
    text = torch.zeros(4096, dtype=torch.uint8)
    index = None if selected is None else torch.tensor(selected, dtype=torch.int32)
    emu.call(
        "emu_dense_svd",
        *(a, strides(a), u, strides(u), sigma, vt, strides(vt), codes),
        *(int(a.dtype == torch.float64), count, m, n, index, count if selected is None else len(selected), text),
    )
    return u, sigma, vt, codes.tolist(), lines(text)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def symmetric(count, side, dtype=torch.float64):
    h = random(count, side, side, seed=side)
    return ((h + h.mT) / 2).to(dtype)


def assert_eigen(h, theta, w):
    """The fake works in float64 and stops at 1e-15: for float32, what is left is one rounding of each output."""
    eps, side = max(torch.finfo(h.dtype).eps, 1e-14), h.shape[-1]
    size = torch.linalg.matrix_norm(h.double()).clamp(min=1e-30)
    w = w.double()
    assert (theta.diff(dim=-1) <= 0).all()
    assert ((theta - torch.linalg.eigvalsh(h.double()).flip(-1)).abs().amax(-1) <= 4 * eps * size).all()
    assert (
        torch.linalg.matrix_norm(h.double() @ w - w * theta[..., None, :]) <= 4 * eps * math.sqrt(side) * size
    ).all()
    assert (w.mT @ w - torch.eye(side)).abs().max() <= 4 * eps * math.sqrt(side)


def assert_svd(a, u, sigma, vt):
    """As above; through A^T A, which leaves float64 twelve digits of the values here."""
    eps = max(torch.finfo(a.dtype).eps, 1e-12)
    n = a.shape[-1]
    a, u, sigma, vt = a.double(), u.double(), sigma.double(), vt.double()
    size = torch.linalg.matrix_norm(a).clamp(min=1e-30)
    assert (sigma.diff(dim=-1) <= 0).all() and (sigma >= 0).all()
    assert ((sigma - torch.linalg.svdvals(a)).abs().amax(-1) <= 16 * eps * size).all()
    assert (torch.linalg.matrix_norm(u @ (sigma[..., None] * vt) - a) <= 16 * eps * math.sqrt(n) * size).all()
    for q in (u, vt.mT):
        assert (q.mT @ q - torch.eye(n)).abs().max() <= 16 * eps * math.sqrt(n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [1, 5, 32, 45])
def test_eigenvectors_come_row_major_and_descending(emu, side, dtype):
    h = symmetric(3, side, dtype)
    theta, w, calls = eigh(emu, h)
    assert_eigen(h, theta, w)
    assert calls == ["XsyevBatched 3"]


@pytest.mark.parametrize("batched", [True, False])
def test_only_selected_matrices_are_touched_and_keep_to_themselves(emu, batched):
    h = symmetric(6, 33, torch.float32)
    h[1] = 0
    h[3] = h[3, :, :2] @ h[3, :, :2].mT  # rank 2
    h[4, 7, 7] = math.nan
    theta, w, calls = eigh(emu, h, selected=[0, 1, 3, 4, 5], batched=batched)
    fine = [0, 1, 3, 5]
    assert_eigen(h[fine], theta[fine], w[fine])
    assert theta[4].isnan().any() and (theta[2] == -5).all() and (w[2] == -5).all()
    assert calls == (["XsyevBatched 5"] if batched else ["Xsyevd"] * 5)


def test_eigh_reads_and_writes_any_strides(emu):
    h, room = symmetric(2, 37), torch.full((2, 40, 50), -5.0, dtype=torch.float64)
    wide = torch.full((2, 40, 41), math.nan, dtype=torch.float64)
    wide[:, 1:38, 2:39] = h
    w = room[:, :37, 3:40]
    theta, _, _ = eigh(emu, wide[:, 1:38, 2:39], w=w)
    assert_eigen(h, theta, w)
    assert (room == -5).sum() == room.numel() - w.numel()
    theta, w, _ = eigh(emu, h.mT, w=torch.zeros(2, 37, 37, dtype=torch.float64).mT)
    assert_eigen(h, theta, w)


@pytest.mark.parametrize("selected", [None, [0, 2, 3, 4, 6]])
def test_batches_keep_to_the_limits(emu, selected):
    h = symmetric(7, 9)
    which = selected or list(range(7))
    n = len(which)
    for limits, most in ({"most": 3}, 3), ({"most_bytes": 2 * 9 * 9 * 8 + 647}, 2):
        theta, w, calls = eigh(emu, h, selected=selected, **limits)
        assert_eigen(h[which], theta[which], w[which])
        assert calls == [f"XsyevBatched {min(most, n - first)}" for first in range(0, n, most)]
    theta, w, calls = eigh(emu, h, selected=selected, most_bytes=9 * 9 * 8 - 1)
    assert_eigen(h[which], theta[which], w[which])
    assert calls == ["Xsyevd"] * n


@pytest.mark.parametrize("selected", [None, [1, 2, 4, 5]])
def test_only_the_failed_matrix_is_redone(emu, selected):
    fail(emu, XSYEV_BATCHED, matrices=0b1010)
    h = symmetric(6, 12)
    which = selected or list(range(6))
    theta, w, calls = eigh(emu, h, selected=selected, most=3)
    assert_eigen(h[which], theta[which], w[which])
    assert calls == ["XsyevBatched 3", f"XsyevBatched {len(which) - 3}", "Xsyevd", "Xsyevd"]
    theta, w, calls = eigh(emu, h, selected=selected)  # the script is used up
    assert calls == [f"XsyevBatched {len(which)}"]


def test_a_refused_batch_is_done_one_by_one(emu):
    fail(emu, XSYEV_BATCHED, calls=0b10, status=3)
    h = symmetric(5, 12)
    theta, w, calls = eigh(emu, h, most=2)
    assert_eigen(h, theta, w)
    assert calls == ["XsyevBatched 2", "XsyevBatched 2", "XsyevBatched 1", "Xsyevd", "Xsyevd"]


@pytest.mark.parametrize("failure", [{"matrices": 0b1, "info": 4}, {"calls": 0b1, "status": 7}], ids=["info", "status"])
@pytest.mark.parametrize("selected", [None, [0, 2, 5]])
def test_a_matrix_that_cannot_be_solved_has_values_of_nan(emu, failure, selected):
    h = symmetric(6, 12)
    which = selected or list(range(6))
    fail(emu, XSYEV_BATCHED, matrices=1 << (len(which) - 1), info=9)
    fail(emu, XSYEVD, **failure)
    theta, w, calls = eigh(emu, h, selected=selected)
    assert calls == [f"XsyevBatched {len(which)}", "Xsyevd"]
    assert theta[which[-1]].isnan().all() and (w[which[-1]] == 0).all()
    assert_eigen(h[which[:-1]], theta[which[:-1]], w[which[:-1]])
    assert (theta[[b for b in range(6) if b not in which]] == -5).all()


def test_errors_of_eigh_say_what_where_and_how_large(emu):
    h = symmetric(6, 12)
    fail(emu, XSYEV_BATCHED, calls=0b1, status=4)
    _, _, calls = eigh(emu, h, most=4)
    assert calls[-1] == (
        "[laser_kernels] eigh: cusolverDnXsyevBatched: CUSOLVER_STATUS_ARCH_MISMATCH (4) on 4 matrices of 12x12"
    )
    fail(emu, XSYEV_BATCHED, calls=-1, status=2)
    _, _, calls = eigh(emu, h)
    assert calls[-1].startswith("out of memory: [laser_kernels] eigh: cusolverDnXsyevBatched: CUSOLVER_STATUS_ALLOC")


def test_nothing_selected_or_empty(emu):
    for h, selected in (symmetric(2, 3), []), (torch.zeros(2, 0, 0), None):
        assert eigh(emu, h, selected=selected)[2] == []
    for a, selected in (random(2, 5, 3), []), (torch.zeros(2, 5, 0), None):
        assert svd(emu, a, selected=selected)[4] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m, n", [(1, 1), (7, 1), (40, 40), (65, 33)])
@pytest.mark.parametrize("routine", [XGESVDP, XGESVD, GESVDJ])
def test_each_routine_gives_the_same_layout(emu, routine, m, n, dtype):
    """gesvdp and gesvdj answer V, gesvd V^T."""
    for earlier in range(XGESVDP, routine):
        fail(emu, earlier, matrices=-1)
    a = random(2, m, n, seed=m, dtype=dtype)
    u, sigma, vt, status, calls = svd(emu, a)
    assert_svd(a, u, sigma, vt)
    assert status == [0, 0] and calls == ["Xgesvdp", "Xgesvd", "gesvdj"][: routine - 1] * 2


def test_svd_reads_and_writes_any_strides(emu):
    a = random(3, 50, 21)
    transposed = random(3, 21, 50).mT
    padded = torch.full((3, 60, 30), math.nan, dtype=torch.float64)
    padded[:, 3:53, 2:23] = a
    for x in a, transposed, padded[:, 3:53, 2:23]:
        u, sigma, vt, _, _ = svd(emu, x)
        assert_svd(x, u, sigma, vt)
    out = torch.full((3, 55, 30), -5.0, dtype=torch.float64)
    columns = torch.zeros(3, 21, 21, dtype=torch.float64).mT
    u, sigma, vt, _, _ = svd(emu, a, u=out[:, :50, 4:25], vt=columns)
    assert_svd(a, u, sigma, vt)
    assert (out == -5).sum() == out.numel() - u.numel()


def test_only_the_failed_matrix_goes_on_to_the_next_routine(emu):
    fail(emu, XGESVDP, matrices=0b0110)
    fail(emu, XGESVD, matrices=0b10, info=22)
    a = random(6, 30, 20)
    selected = [0, 2, 3, 5]
    u, sigma, vt, status, calls = svd(emu, a, selected=selected)
    assert_svd(a[selected], u[selected], sigma[selected], vt[selected])
    assert status == [0, -7, 0, 0, -7, 0]
    assert calls == ["Xgesvdp", "Xgesvdp", "Xgesvd", "Xgesvdp", "Xgesvd", "gesvdj", "Xgesvdp"]
    assert all((x[[1, 4]] == -5).all() for x in (u, sigma, vt))


def test_a_refusal_is_a_failure_of_one_routine(emu):
    fail(emu, XGESVDP, calls=0b01, status=6)
    a = random(2, 30, 20)
    u, sigma, vt, status, calls = svd(emu, a)
    assert_svd(a, u, sigma, vt)
    assert status == [0, 0] and calls == ["Xgesvdp", "Xgesvd", "Xgesvdp"]
    fail(emu, XGESVDP, calls=-1, status=4)
    assert svd(emu, a)[4][-1] == (
        "[laser_kernels] svd: cusolverDnXgesvdp: CUSOLVER_STATUS_ARCH_MISMATCH (4) on 1 matrices of 30x20"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_gesvdp_perturbed_are_computed_again(emu, dtype):
    a = random(2, 30, 16, dtype=dtype)
    tolerated = 4 * torch.finfo(dtype).eps * torch.linalg.svdvals(a[0].double())[0].item()  # sqrt(16) eps sigma_1
    fail(emu, XGESVDP, perturbed=0b01, by=1.01 * tolerated)
    u, sigma, vt, _, calls = svd(emu, a)
    assert_svd(a, u, sigma, vt)
    assert calls == ["Xgesvdp", "Xgesvd", "Xgesvdp"]
    fail(emu, XGESVDP, perturbed=0b100, by=0.99 * tolerated)
    assert svd(emu, a)[4] == ["Xgesvdp"] * 2
    fail(emu, XGESVDP, perturbed=-1, by=math.nan)
    assert svd(emu, a)[4] == ["Xgesvdp", "Xgesvd"] * 2


def test_zero_rank_deficient_and_nan_matrices_leave_their_neighbours_alone(emu):
    a = random(4, 33, 17, dtype=torch.float32)
    a[0] = 0
    a[1] = (random(33, 3) @ random(3, 17)).float()
    a[2, 4, 4] = math.nan
    u, sigma, vt, status, calls = svd(emu, a)
    fine = [0, 1, 3]
    assert_svd(a[fine], u[fine], sigma[fine], vt[fine])
    assert [s == 0 for s in status] == [True, True, False, True]
    assert calls == ["Xgesvdp", "Xgesvd", "Xgesvdp", "Xgesvdp", "Xgesvd", "gesvdj", "Xgesvdp"]


def test_a_matrix_that_no_routine_solves(emu):
    fail(emu, XGESVDP, matrices=0b10)
    fail(emu, XGESVD, matrices=0b1, info=21)
    fail(emu, GESVDJ, calls=0b1, status=7)
    a = random(5, 30, 20)
    u, sigma, vt, status, _ = svd(emu, a, selected=[1, 3, 4])
    assert [status[b] == 0 for b in (1, 3, 4)] == [True, False, True]
    assert_svd(a[[1, 4]], u[[1, 4]], sigma[[1, 4]], vt[[1, 4]])


def test_wide_matrices_are_refused(emu):
    assert svd(emu, random(1, 3, 4))[4] == ["[laser_kernels] svd: matrices must not be wide; got 3x4"]


def test_handles_are_kept_and_never_shared(emu):
    steps = torch.zeros(7, dtype=torch.int64)
    emu.call("emu_dense_handles", steps)
    assert steps.tolist() == [1, 1, 0, 0, 1, 0, 1]  # the last: work was on the solver's stream


@pytest.mark.parametrize("status", [3, 6, 7, 9])  # INVALID_VALUE, EXECUTION_FAILED, INTERNAL_ERROR, NOT_SUPPORTED
def test_every_refusal_leads_to_the_next_routine(emu, status):
    fail(emu, XGESVDP, calls=-1, status=status)
    a = random(1, 30, 20)
    u, sigma, vt, _, calls = svd(emu, a)
    assert_svd(a, u, sigma, vt)
    assert calls == ["Xgesvdp", "Xgesvd"]


def test_values_that_are_not_finite_are_a_failure(emu):
    a = torch.stack([torch.full((30, 20), 3e38), random(30, 20, dtype=torch.float32)])
    _, _, _, status, calls = svd(emu, a)
    assert status[0] != 0 and status[1] == 0 and calls == ["Xgesvdp", "Xgesvd", "gesvdj", "Xgesvdp"]


def test_a_lost_barrier_is_noticed(emu):
    emu.drop_barriers(True)
    h = symmetric(1, 70)
    theta, w, _ = eigh(emu, h)
    with pytest.raises(AssertionError):
        assert_eigen(h, theta, w)
    a = random(1, 70, 40)
    with pytest.raises(AssertionError):
        assert_svd(a, *svd(emu, a)[:3])
