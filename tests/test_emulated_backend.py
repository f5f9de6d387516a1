"""The whole CUDA backend under the emulator: the driver, LinalgCuda, every kernel and launcher, with a host's cuBLAS and
dense solver in the place of NVIDIA's. The contract is that of test_truncated_svd.py."""

import math
from typing import NamedTuple

import pytest
import torch

from laser_kernels.dispatch import default_block
from laser_kernels.ops import CERTIFICATE
from laser_kernels.status import Status
from laser_kernels.testing import (
    FAMILIES,
    FLOOR,
    eps,
    llm_like,
    norm,
    optimal_residual,
    orthonormality_bound,
    residual,
    residual_bound,
    with_spectrum,
)

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ROUTES = {"randomized": 0, "spectral": 1, "gram_eigh": 2, "full_svd": 3}
HOPPER = 232448  # bytes of shared memory that a block may have


class Options(NamedTuple):
    route: str = "randomized"
    block: int | None = None
    gram: bool = False
    wide: bool = False
    half: bool = False
    tol: float | None = 1e-3
    max_iter: int = 64
    seed: int = 0
    memory: int = 1 << 30  # of a group of matrices
    device: int = 0  # bytes in all; 0: enough
    shared: int = HOPPER


def rank_reduce(emu, weight, rank, out=None, factors=None, **options):
    """The rows of the certificate, one dict per matrix. rank: of all, or of each."""
    o = Options(**options)
    count, rows, cols = weight.shape
    ranks = torch.tensor(rank) if isinstance(rank, list) else None
    rank = max(rank) if isinstance(rank, list) else rank
    block = o.block or (default_block(rank, min(rows, cols), o.tol, "cuda") if o.route == "randomized" else rank)
    certificates = torch.full((count, len(CERTIFICATE)), -7.0, dtype=torch.float64)
    keys = torch.arange(count)
    limits = torch.tensor([o.memory, o.device, o.shared])
    emu.call(
        "emu_rank_reduce",
        weight,
        DTYPES[weight.dtype],
        *(count, rows, cols, weight.stride(0), weight.stride(1)),
        out,
        *(factors or (None, None, None)),
        *(rank, ranks, ROUTES[o.route], block, o.gram, o.wide, o.half),
        -1.0 if o.tol is None else float(o.tol),
        *(o.max_iter, o.seed, keys, certificates, limits),
    )
    return [dict(zip(CERTIFICATE, row, strict=True)) for row in certificates.tolist()]


def low_rank(emu, weight, rank, **options):
    out = torch.full_like(weight, math.nan)
    return out, rank_reduce(emu, weight, rank, out, **options)


def truncated_svd(emu, weight, rank, **options):
    count, m, n = weight.shape
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    most = max(rank) if isinstance(rank, list) else rank
    factors = tuple(
        torch.full(shape, math.nan, dtype=dtype) for shape in ((count, m, most), (count, most), (count, most, n))
    )
    return factors, rank_reduce(emu, weight, rank, factors=factors, **options)


def observed(emu):
    """What the last call did: dense solver calls, allocations, most bytes at a time, steps that involve the host."""
    out = torch.zeros(4, dtype=torch.int64)
    emu.library.emu_observed(emu._convert(out))
    return out.tolist()


def keeps_the_contract(a, x, row, rank, tol=1e-3):
    tail, size = optimal_residual(a, rank), norm(a)
    floor = FLOOR * eps(a.dtype) * size
    assert math.isclose(row["residual"], residual(a, x), rel_tol=1e-3, abs_tol=1e-9 * size)
    assert row["unrounded"] <= residual_bound(a, rank, tol), row
    assert row["unrounded"] <= (1 + row["bound"]) * tail * (1 + 1e-9) + floor, row
    assert math.isclose(row["norm"], size, rel_tol=1e-6)


def family(name, shape, rank, dtype):
    a = FAMILIES[name](*shape, rank).to(dtype)
    return a if torch.isfinite(a).all() else FAMILIES["gaussian"](*shape, rank).to(dtype)


WAYS = [
    {"gram": False},
    {"gram": True},
    {"wide": True},
    {"route": "gram_eigh", "wide": True},
    {"route": "full_svd", "wide": True},
    {"route": "full_svd"},
    {"gram": False, "half": True},
    {"gram": True, "half": True},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda w: "-".join(f"{k}={v}" for k, v in w.items()))
def test_a_batch_of_families_keeps_the_contract(emu, way, dtype):
    """Every family in one batch, so that none may disturb its neighbours."""
    shape, rank = ((40, 27), (27, 41))[dtype == torch.bfloat16], 6
    stack = torch.stack([family(name, shape, rank, dtype) for name in FAMILIES])
    way = way | {"wide": way.get("wide", False) or (dtype == torch.float64 and not way.get("half", False))}
    out, rows = low_rank(emu, stack, rank, **way)
    certified = 0
    for name, a, x, row in zip(FAMILIES, stack, out, rows, strict=True):
        if row["status"] == Status.OK:
            keeps_the_contract(a, x, row, rank)
            certified += 1
        else:
            assert row["status"] in (Status.PRECISION, Status.NOT_CONVERGED) and x.isnan().all(), (name, row)
            assert name not in ("spiked", "gaussian", "power_law", "zero"), (name, row)
    assert certified >= 8


@pytest.mark.parametrize("shape", [(40, 24), (24, 41), (1, 7), (9, 1), (30, 30)], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_factors_are_an_svd(emu, shape, wide):
    side = min(shape)
    for rank in sorted({1, max(1, side // 3), side}):
        stack = torch.stack([family(name, shape, rank, torch.float32) for name in ("spiked", "power_law", "zero")])
        way = {"route": "full_svd", "wide": True} if rank == side else {"wide": wide}
        (u, s, vh), rows = truncated_svd(emu, stack, rank, **way)
        assert all(row["status"] == Status.OK for row in rows), rows
        bound = orthonormality_bound(torch.float32, rank)
        identity = torch.eye(rank)
        assert (u.mT @ u - identity).abs().max() <= bound and (vh @ vh.mT - identity).abs().max() <= bound
        assert (s >= 0).all() and (s.diff(dim=1) <= 0).all()
        x = (u.double() * s.double()[:, None]) @ vh.double()
        for a, y in zip(stack, x, strict=True):
            assert residual(a, y) <= residual_bound(a, rank, 1e-3)
        assert (u.gather(1, u.abs().argmax(1, keepdim=True)) >= 0).all()


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
@pytest.mark.parametrize("gram", [False, True])
def test_excess_stays_below_tol_beyond_the_jacobi_limit(emu, gram, tol):
    """A block too large for a block's shared memory goes to the dense solver."""
    a = llm_like(90, 70).bfloat16()
    out, rows = low_rank(emu, a[None], 20, gram=gram, tol=tol, half=True, block=32, shared=6000)
    assert observed(emu)[0] >= 1
    keeps_the_contract(a, out[0], rows[0], 20, tol)
    excess = rows[0]["unrounded"] / optimal_residual(a, 20) - 1
    assert excess <= rows[0]["bound"] <= tol


@pytest.mark.parametrize("half", [False, True])
def test_float32_weights_of_this_side_come_in_three_slices(emu, half):
    a = llm_like(520, 512).mT.contiguous()
    out, rows = low_rank(emu, a[None], 5, half=half, block=16, tol=1e-2)
    keeps_the_contract(a, out[0], rows[0], 5, 1e-2)
    assert rows[0]["status"] == Status.OK


def test_matrices_that_are_done_drop_out_of_the_batch(emu):
    """An easy one, and hard ones that take more steps: different iterations, each the same as alone."""
    shape, rank = (120, 100), 8
    easy = family("exact_rank", shape, rank, torch.float32)
    stack = torch.stack([easy, llm_like(*shape, 3), easy, llm_like(*shape, 4) * 3])
    out, rows = low_rank(emu, stack, rank, tol=1e-5, wide=True)
    assert [row["status"] for row in rows] == [Status.OK] * 4
    assert rows[0]["iterations"] == rows[2]["iterations"] < min(rows[1]["iterations"], rows[3]["iterations"])
    for a, x, row in zip(stack, out, rows, strict=True):
        keeps_the_contract(a, x, row, rank, 1e-5)


def test_groups_and_out_of_memory_change_nothing(emu, capfd):
    stack = torch.stack([llm_like(50, 40, i) for i in range(6)])
    whole, _ = low_rank(emu, stack, 4)
    most = observed(emu)[2]
    small, small_rows = low_rank(emu, stack, 4, memory=most // 4)
    assert observed(emu)[2] < most / 2
    split, split_rows = low_rank(emu, stack, 4, device=most // 2)
    assert observed(emu)[2] <= most // 2
    for other, found in ((small, small_rows), (split, split_rows)):
        assert [row["status"] for row in found] == [Status.OK] * 6
        for a, x, y in zip(stack, whole, other, strict=True):
            assert residual(x, y) <= 1e-4 * norm(a)
    with pytest.raises(AssertionError):
        low_rank(emu, stack, 4, device=1000)
    assert "emulated device memory is used up" in capfd.readouterr().err


RANKS = [6, 1, 11, 3, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda w: "-".join(f"{k}={v}" for k, v in w.items()))
def test_each_matrix_of_a_batch_keeps_the_contract_at_its_own_rank(emu, way, dtype):
    """And is what it is beside others of its own rank: only the block is that of the largest."""
    stack = torch.stack([llm_like(44, 30, i).to(dtype) for i in range(len(RANKS))])
    block = default_block(max(RANKS), 30, 1e-3, "cuda")
    out, rows = low_rank(emu, stack, RANKS, **way)
    for i, (a, x, row, rank) in enumerate(zip(stack, out, rows, RANKS, strict=True)):
        assert row["status"] == Status.OK
        keeps_the_contract(a, x, row, rank)
        beyond = torch.linalg.svdvals(x.double())[rank:]
        assert torch.linalg.vector_norm(beyond) <= torch.finfo(dtype).eps * norm(a)
        _, (row_alone,) = low_rank(emu, stack[i : i + 1], rank, **{"block": block} | way)
        assert row["bound"] == pytest.approx(row_alone["bound"], rel=0.5, abs=1e-6)


@pytest.mark.parametrize("way", WAYS, ids=lambda w: "-".join(f"{k}={v}" for k, v in w.items()))
@pytest.mark.parametrize("shape", [(44, 30), (30, 41)], ids=str)
def test_factors_of_several_ranks(emu, way, shape):
    stack = torch.stack([llm_like(*shape, i) for i in range(len(RANKS))])
    (u, s, vh), rows = truncated_svd(emu, stack, RANKS, **way)
    assert all(row["status"] == Status.OK for row in rows), rows
    for a, *factors, row, rank in zip(stack, u, s, vh, rows, RANKS, strict=True):
        left, sigma, right = factors[0][:, :rank], factors[1][:rank], factors[2][:rank]
        assert (
            factors[0][:, rank:].isnan().all() and factors[1][rank:].isnan().all() and factors[2][rank:].isnan().all()
        )
        bound = orthonormality_bound(torch.float32, rank)
        identity = torch.eye(rank)
        assert (left.mT @ left - identity).abs().max() <= bound and (right @ right.mT - identity).abs().max() <= bound
        assert (sigma.diff() <= 0).all()
        measured = residual(a, (left.double() * sigma.double()) @ right.double())
        assert measured <= residual_bound(a, rank, 1e-3)
        assert row["residual"] == pytest.approx(measured, rel=1e-4)


ONE_BY_ONE = [*WAYS, {"tol": None, "max_iter": 4}, {"tol": None, "route": "gram_eigh", "wide": True}]


def unlike(dtype, size):
    """Matrices of which none may be taken for another: other sizes, one of them zero."""
    return torch.stack(
        [llm_like(40, 30, 1), torch.zeros(40, 30), llm_like(40, 30, 2) * size, llm_like(40, 30, 3) * 3]
    ).to(dtype)


@pytest.mark.parametrize("dtype, size", [(torch.float32, 2.0**40), (torch.bfloat16, 1.0)], ids=str)
@pytest.mark.parametrize("way", ONE_BY_ONE, ids=lambda w: "-".join(f"{k}={v}" for k, v in w.items()))
def test_matrices_one_by_one_are_what_they_are_together(emu, way, dtype, size):
    stack = unlike(dtype, size)
    together, rows = low_rank(emu, stack, 6, **way)
    alone, rows_alone = low_rank(emu, stack, 6, memory=1, **way)
    assert sum(row["status"] == (Status.OK if way.get("tol", 1) else Status.UNCERTIFIED) for row in rows) >= 3
    assert torch.equal(alone.nan_to_num(7), together.nan_to_num(7)) and rows_alone == rows
    assert sum(x.isfinite().all() for x in together) >= 3


@pytest.mark.parametrize("wide", [False, True])
def test_full_svd_judges_each_matrix_by_its_own_norm(emu, wide):
    """Of the rank asked for: zero beside its own norm, not beside that of a matrix before it."""
    stack = torch.stack([torch.zeros(40, 30), FAMILIES["exact_rank"](40, 30, 6).float(), llm_like(40, 30) * 2.0**20])
    together, rows = low_rank(emu, stack, 6, route="full_svd", wide=wide)
    alone, rows_alone = low_rank(emu, stack, 6, route="full_svd", wide=wide, memory=1)
    assert torch.equal(alone.nan_to_num(7), together.nan_to_num(7)) and rows_alone == rows
    assert [row["status"] for row in rows[:2]] == [Status.OK] * 2 and rows[1]["bound"] == 0


@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("tol", [1e-3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_factors_of_matrices_of_different_sizes(emu, dtype, tol, memory):
    """Together and in groups of one; without a tolerance, too, factors are written."""
    stack = unlike(dtype, 2.0**40)
    (u, s, vh), rows = truncated_svd(
        emu, stack, 6, tol=tol, wide=dtype == torch.float64, max_iter=64 if tol else 4, memory=memory
    )
    assert [row["status"] for row in rows] == [Status.OK if tol else Status.UNCERTIFIED] * 4
    for a, x in zip(stack, (u.double() * s.double()[:, None]) @ vh.double(), strict=True):
        assert residual(a, x) <= residual_bound(a, 6, 1e-3)


def test_factors_of_the_others_need_no_solver_where_a_matrix_has_failed(emu):
    a = llm_like(40, 30)
    stack = torch.stack([a, FAMILIES["exact_rank"](40, 30, 6).float(), a])
    (u, _, _), rows = truncated_svd(emu, stack, 6)
    assert [row["status"] for row in rows] == [Status.OK, Status.PRECISION, Status.OK]
    assert observed(emu)[0] == 0 and u[1].isnan().all() and u[2].isfinite().all()


def test_one_matrix_that_needs_the_solver_is_enough(emu):
    stack = torch.stack([llm_like(40, 30), FAMILIES["one_huge"](40, 30, 6).float()])
    calls = []
    for batch in (stack[:1], stack[1:], stack):
        _, rows = truncated_svd(emu, batch, 6, wide=True)
        assert all(row["status"] == Status.OK for row in rows)
        calls.append(observed(emu)[0])
    assert calls == [0, 1, 1]


def test_a_weight_that_changes_while_it_is_replaced_is_called_spoiled(emu):
    twice = llm_like(40, 30)[None].expand(2, 40, 30)  # the second one is measured against what the first has left
    rows = rank_reduce(emu, twice, 5, out=twice)
    assert sorted(row["status"] for row in rows) == [Status.OK, Status.SPOILED]


def test_weights_that_cublas_may_not_read_are_copied(emu):
    a = llm_like(40, 32).bfloat16()
    storage = torch.zeros(40 * 32 + 8, dtype=torch.bfloat16)
    first = -storage.data_ptr() % 16 // 2
    found = []
    for offset in (first, first + 2):
        view = storage[offset : offset + 40 * 32].view(1, 40, 32)
        view.copy_(a)
        out, rows = low_rank(emu, view, 5)
        keeps_the_contract(a, out[0], rows[0], 5)
        found.append(observed(emu)[1])
    assert found[1] == found[0] + 1


def test_products_are_exact_and_the_math_mode_comes_back(emu):
    modes = torch.zeros(2, dtype=torch.int64)
    low_rank(emu, llm_like(50, 40)[None], 4)
    emu.library.emu_math_modes(emu._convert(modes))
    assert modes.tolist() == [16, 1]  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION; what torch had left
    with pytest.raises(AssertionError):
        low_rank(emu, llm_like(50, 40)[None], 4, device=1000)
    emu.library.emu_math_modes(emu._convert(modes))
    assert modes[1] == 1


def test_errors_of_cuda_say_what_where_and_how_large(emu):
    def text(status):
        said = torch.zeros(1024, dtype=torch.uint8)
        emu.call("emu_check", status, said)
        return bytes(said.tolist()).split(b"\0")[0].decode()

    told = "[laser_kernels] prepare: cudaErrorEmulated (an error of the emulator) on 3 matrices of 4x5"
    invalid, memory, no_image = 1, 2, 209
    assert text(0) == "" and text(invalid) == told and text(memory) == "out of memory: " + told
    assert text(no_image).startswith(told + ": this build holds code for ")
    assert text(no_image).endswith("build again with LASER_CUDA_ARCHS set for this GPU")


SMALL = 6000  # bytes of shared memory: eigenproblems beyond 27 go to the dense solver


@pytest.mark.parametrize("route", ["randomized", "randomized, whole", "spectral", "gram_eigh", "full_svd"])
@pytest.mark.parametrize("tol", [1e-3, None])
def test_a_matrix_that_the_solver_gives_up_costs_only_itself(emu, route, tol):
    """It asks for the next route and is as it was, or, where more looks follow, starts again; its neighbours are reduced."""
    a = torch.stack([llm_like(70, 50, i) for i in range(3)])
    options = {"route": route.split(",")[0], "tol": tol, "shared": SMALL, "wide": route == "full_svd"}
    if options["route"] == "randomized":
        options["block"] = 50 if "whole" in route else 30
    emu.call("emu_give_up", 1)
    out = a.clone()
    rows = rank_reduce(emu, a, 20, out, **options)
    assert observed(emu)[0] >= 1
    again = route == "randomized" and tol is None
    good = Status.OK if tol else Status.UNCERTIFIED
    assert [row["status"] for row in rows] == [good if again else Status.PRECISION, good, good]
    assert again or torch.equal(out[0], a[0])
    for weight, x in list(zip(a, out, strict=True))[0 if again else 1 :]:
        assert residual(weight, x) <= residual_bound(weight, 20, 1e-3)


def test_factors_that_the_solver_gives_up_cost_only_their_matrix(emu):
    a = torch.stack([with_spectrum(40, 30, torch.tensor([1.0] * 12 + [1e-3] * 18), seed=i).float() for i in range(3)])
    factors, rows = truncated_svd(emu, a, 15, route="gram_eigh", wide=True)
    assert observed(emu)[0] == 1 and all(row["status"] == Status.OK for row in rows)  # ties: not yet diagonal
    emu.call("emu_give_up", 1)
    (u, s, vh), rows = truncated_svd(emu, a, 15, route="gram_eigh", wide=True)
    assert [row["status"] for row in rows] == [Status.PRECISION, Status.OK, Status.OK]
    for whole, part in zip(factors, (u, s, vh), strict=True):
        assert torch.equal(whole[1:], part[1:])


def test_a_cublas_without_memory_gets_fewer_matrices(emu):
    stack = torch.stack([llm_like(50, 40, i) for i in range(6)])
    emu.call("emu_refuse_products", 2)  # that of six, and of three
    out, rows = low_rank(emu, stack, 4)
    for a, x, row in zip(stack, out, rows, strict=True):
        assert row["status"] == Status.OK
        keeps_the_contract(a, x, row, 4)


@pytest.mark.parametrize("route", ROUTES)
def test_an_empty_batch_is_nothing_to_do(emu, route):
    out, rows = low_rank(emu, torch.zeros(0, 40, 30), 4, route=route)
    assert out.shape == (0, 40, 30) and rows == []


def test_in_place_and_strided_and_transposed(emu):
    a = llm_like(44, 30).bfloat16()
    expected, _ = low_rank(emu, a[None], 5)
    storage = torch.zeros(1, 50, 40, dtype=torch.bfloat16)
    view = storage[:, 3:47, 5:35]
    view.copy_(a)
    rows = rank_reduce(emu, view, 5, out=view)
    assert rows[0]["status"] == Status.OK and torch.equal(view[0], expected[0])
    storage[:, 3:47, 5:35] = 0
    assert not storage.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_matrix_is_named_and_nothing_is_written(emu, bad):
    stack = torch.stack([llm_like(20, 16, i) for i in range(3)])
    stack[1, 4, 5] = bad
    out, rows = low_rank(emu, stack, 3)
    assert [row["status"] for row in rows] == [Status.OK, Status.NON_FINITE, Status.OK]
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_tolerance_nothing_comes_to_the_host_and_max_iter_is_done(emu, dtype):
    stack = torch.stack([llm_like(60, 40, i) * 2.0 ** (50 * i) for i in range(2)]).to(dtype)
    out, rows = low_rank(emu, stack, 5, tol=None, max_iter=6)
    assert observed(emu)[3] == 0
    few, _ = low_rank(emu, stack, 5, tol=None, max_iter=1)
    for a, x, y, row in zip(stack, out, few, rows, strict=True):
        assert (row["status"], row["iterations"]) == (Status.UNCERTIFIED, 6)
        assert residual(a, x) < 1.02 * optimal_residual(a, 5) < residual(a, y) * 1.02


def test_real_weights_keep_the_contract(emu, smollm2):
    name, w = min(smollm2.items(), key=lambda item: item[1].numel())
    w = w[:120, :160].contiguous()
    out, rows = low_rank(emu, w[None], 16, half=True)
    assert rows[0]["status"] == Status.OK, name
    keeps_the_contract(w, out[0], rows[0], 16)


def test_a_lost_barrier_is_noticed(emu):
    """The test of the tests: the same backend without its barriers certifies nothing wrong, and nothing right."""
    a = llm_like(60, 48)
    emu.drop_barriers(True)
    try:
        out, rows = low_rank(emu, a[None], 5)
    except AssertionError:
        return
    wrong = rows[0]["status"] != Status.OK or not residual(a, out[0]) <= residual_bound(a, 5, 1e-3)
    assert wrong or not math.isclose(rows[0]["residual"], residual(a, out[0]), rel_tol=1e-3)


@pytest.mark.parametrize("tail2", [1e-4, 4e-5])
def test_sums_that_are_cut_off_do_not_spoil_small_tails(emu, tail2):
    """Tensor cores cut off: the captured energy is low by more than the residual is, which is no contradiction."""
    m, n, rank, tol = 300, 256, 8, 0.1
    sigma = torch.ones(n)
    sigma[rank:] = math.sqrt(tail2 * rank / (n - rank))
    a = (with_spectrum(m, n, sigma) * 3).bfloat16()[None]
    x = a.clone()
    (row,) = rank_reduce(emu, a, rank, x, tol=tol)
    print(f"tail^2 {(optimal_residual(a[0], rank) / norm(a[0])) ** 2:.1e}, bound {row['bound']:.1e}")
    assert row["status"] == Status.OK
    keeps_the_contract(a[0], x[0], row, rank, tol)
