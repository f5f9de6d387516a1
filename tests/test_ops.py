"""The registered ops: schemas, fake kernels, torch.compile, and the ABI of the file they come from."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

import laser_kernels as lk
from laser_kernels import ops
from laser_kernels.status import Status
from laser_kernels.testing import eps, llm_like, optimal_residual, residual

L = torch.ops.laser_kernels
LIBRARY = Path(lk.__file__).parent / "liblaser_cpu.so"
ROUTE = ("randomized", 9, False, False, False, 1e-3, 64, 0, [0, 1])
STACK = torch.stack([llm_like(24, 16, 1), llm_like(24, 16, 2)])

CUTS = [sigma for s in torch.linalg.svdvals(STACK).tolist() for sigma in ((s[5] * s[6]) ** 0.5, s[8])]

SAMPLES = {
    "prepare": (STACK,),
    "sketch": (STACK, 5, 0, [0, 1]),
    "gram": (STACK,),
    "orthonormalize": (STACK,),
    "small_eigh": (STACK.mT @ STACK,),
    "count_eigenvalues": (STACK.mT @ STACK, [0.5, 2.0]),
    "reconstruct": (STACK[:, :, :3].contiguous(), STACK[:, :16, :3].contiguous(), STACK, torch.empty_like(STACK)),
    "low_rank": (STACK, torch.empty_like(STACK), 4, *ROUTE),
    "low_rank_at": (STACK, torch.empty_like(STACK), 9, 6, CUTS, False, 8, 0, [0, 1]),
    "truncated_svd": (STACK, 4, *ROUTE),
}


def test_the_library_is_compiled_and_every_op_has_a_sample():
    assert ops.COMPILED
    assert {name for name in SAMPLES if hasattr(L, name)} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    checked = torch.library.opcheck(getattr(L, name).default, SAMPLES[name])
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_kernels_give_the_shapes_of_the_real_ones(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = getattr(L, name)(*SAMPLES[name])
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in SAMPLES[name]]
        fake = getattr(L, name)(*arguments)
    for r, f in zip(
        real if isinstance(real, tuple) else (real,), fake if isinstance(fake, tuple) else (fake,), strict=True
    ):
        assert (r.shape, r.dtype) == (f.shape, f.dtype)


def test_compile_aot_eager_runs_the_op_in_a_full_graph():
    def double(weight):
        out = torch.empty_like(weight)
        certificate = L.low_rank(weight, out, 4, *ROUTE)
        return out * 2, certificate[:, 0]

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    out, status = compiled(STACK)
    assert torch.equal(out, double(STACK)[0]) and (status == 0).all()


def test_the_stable_abi_library_has_no_cxx_torch_symbol():
    names = subprocess.run(["nm", "-DCu", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "torch_call_dispatcher" in names
    assert [line for line in names.splitlines() if "at::" in line or "c10::" in line or "Py_" in line] == []


def test_op_errors_name_op_argument_and_what_came():
    with pytest.raises(RuntimeError, match=r"\[laser_kernels::low_rank\] weight must be \(b, m, n\); got \(24, 16\)"):
        L.low_rank(STACK[0], STACK[0], 4, *ROUTE)
    with pytest.raises(RuntimeError, match=r"low_rank\] out must match weight"):
        L.low_rank(STACK, STACK[:1], 4, *ROUTE)
    with pytest.raises(RuntimeError, match="unit stride"):
        L.prepare(STACK.mT)
    with pytest.raises(RuntimeError, match="route must be randomized, spectral, gram_eigh or full_svd; got magic"):
        L.low_rank(STACK, STACK, 4, "magic", *ROUTE[1:])
    for locked, sigma, what in (
        (9, CUTS, "locked must be in 1..rank - 1 = 8; got 9"),
        (6, CUTS[:2], "sigma must hold two numbers per matrix .4.; got 2"),
        (6, [2.0, 1.0, 1.0, 2.0], "sigma of matrix 1 must be positive and fall; got 1, 2"),
        (6, [2.0, float("nan"), 2.0, 1.0], "sigma of matrix 0 must be positive and fall; got 2, nan"),
        (6, [float("inf"), 1.0, 2.0, 1.0], "sigma of matrix 0 must be positive and fall; got inf, 1"),
        (6, [2.0, 1.0, 1e-170, 1e-180], "sigma of matrix 1 must be positive and fall; got 1e-170, 1e-180"),
    ):
        with pytest.raises(RuntimeError, match=rf"low_rank_at\] {what}"):
            L.low_rank_at(STACK, STACK, 9, locked, sigma, False, 8, 0, [0, 1])
    with pytest.raises(RuntimeError, match="block must be in rank"):
        L.truncated_svd(STACK, 4, "randomized", 3, *ROUTE[2:])
    with pytest.raises(RuntimeError, match="float32, float64, bfloat16 or float16"):
        L.prepare(STACK.int())
    with pytest.raises(RuntimeError, match="one integer per matrix"):
        L.low_rank(STACK, STACK, 4, *ROUTE[:-1], [0])


def test_prepare_sees_norm_top_and_bad_values():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        a = STACK.to(dtype)
        stats = L.prepare(a)
        torch.testing.assert_close(stats[:, 0], torch.linalg.matrix_norm(a.double()), rtol=1e-14, atol=0)
        torch.testing.assert_close(stats[:, 1], a.double().abs().amax((1, 2)), rtol=0, atol=0)
    extreme = torch.stack([STACK[0].double() * 1e300, STACK[0].double() * 1e-300])
    expected = torch.linalg.matrix_norm(STACK[0].double())
    torch.testing.assert_close(L.prepare(extreme)[:, 0], torch.stack([expected * 1e300, expected * 1e-300]))
    for value in (float("nan"), float("inf")):
        bad = STACK.clone()
        bad[1, 23, 15] = value
        assert L.prepare(bad)[:, 1].isfinite().tolist() == [True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_prepare_sees_a_bad_value_anywhere(dtype, value):
    """Matrices of several of the tiles that the CPU reads at a time."""
    a = torch.ones(1, 700, 400).to(dtype)
    missed = []
    for row in range(0, 700, 23):
        a[0, row, 399 - row % 400] = value
        missed += [row] if L.prepare(a)[0, 1].isfinite() else []
        a[0, row] = 1
    assert not missed


@pytest.fixture(params=["mkl", "onednn"])
def library(request):
    """What multiplies large float32 matrices."""
    switch = ctypes.CDLL(str(LIBRARY)).laser_multiply_by_onednn
    usual = switch(request.param == "onednn")
    if usual < 0 and request.param == "onednn":
        pytest.skip("this torch has no oneDNN")
    yield
    switch(max(usual, 0))


@pytest.mark.parametrize("n", [128, 129, 145, 257])  # from 129 on by halves
@pytest.mark.parametrize("m", [300, 700])
@pytest.mark.parametrize("count", [1, 2])
def test_large_gram_is_symmetric_and_as_exact(count, m, n, library):
    a = llm_like(count * m, n).reshape(count, m, n)
    g, exact = L.gram(a), a.double().mT @ a.double()
    assert torch.equal(g, g.mT)
    assert ((g.double() - exact).abs() <= m * eps(a.dtype) * (a.abs().double().mT @ a.abs().double())).all()


@pytest.mark.parametrize("route", ["randomized", "gram_eigh", "spectral"])
@pytest.mark.parametrize("shape", [(420, 310), (310, 420)], ids=str)
@pytest.mark.parametrize("view", ["dense", "columns", "transposed"])
def test_products_large_enough_for_another_library(shape, view, route, library):
    base = llm_like(470, 470, 3)
    weight = base[: shape[0], : shape[1]]
    weight = {"dense": weight.contiguous(), "columns": weight, "transposed": weight.T.contiguous().T}[view]
    low, info = lk.low_rank(weight, 90, tol=1e-4, route=route, return_info=True)
    excess = residual(weight, low) / optimal_residual(weight, 90) - 1
    print(f"{shape} {view} {info.route}: excess {excess:.1e}, bound {info.excess_bound:.1e}")
    assert info.route == route and info.status == "ok"
    assert -1e-6 <= excess <= info.excess_bound + 1e-6 <= 1.01e-4


def test_gram_matches_float64():
    g = L.gram(STACK)
    exact = STACK.double().mT @ STACK.double()
    bound = 24 * torch.finfo(torch.float32).eps * (STACK.abs().double().mT @ STACK.abs().double())
    assert ((g.double() - exact).abs() <= bound).all()
    torch.testing.assert_close(L.gram(STACK.mT.contiguous()), g)


def test_small_eigh_is_descending_and_diagonalises():
    h = STACK.mT @ STACK
    theta, w = L.small_eigh(h)
    assert (theta.diff() <= 0).all()
    torch.testing.assert_close(w.double() * theta[:, None], h.double() @ w.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(33, 17), (5, 1000), (1000, 5), (1, 1)], ids=str)
def test_reconstruct_rounds_once_and_measures(shape, dtype):
    m, n = shape
    r = min(m, n, 4)
    weight = llm_like(m, n).to(dtype)[None]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    left, right = torch.randn(1, m, r, dtype=working), torch.randn(1, n, r, dtype=working)
    out = torch.empty_like(weight)
    norms = L.reconstruct(left, right, weight, out)
    exact = left.double() @ right.double().mT
    spacing = max(torch.finfo(dtype).eps / 2, r * torch.finfo(working).eps)
    bound = (1 + r) * spacing * (left.double().abs() @ right.double().abs().mT) + torch.finfo(dtype).tiny
    assert ((out.double() - exact).abs() <= bound).all()
    assert abs(norms[0, 1].item() - residual(weight, out)) <= 1e-12 * residual(weight, out) + 1e-300
    in_place = weight.clone()
    again = L.reconstruct(left, right, in_place, in_place)
    assert torch.equal(in_place, out) and torch.equal(again, norms)


def test_conversions_agree_with_torch_on_every_16_bit_pattern():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype)
        values = values[values.isfinite()]
        one = torch.ones(1, 1, 1)
        for x in (values.float(), values.float() * 1.001, values.float() * 0.9985):  # exact values, and between them
            x = x[x.to(dtype).isfinite()].reshape(1, -1, 1) + 0.0  # the product turns -0 into 0
            out = torch.zeros(1, x.shape[1], 1, dtype=dtype)
            L.reconstruct(x, one, out.clone(), out)
            assert torch.equal(out.view(torch.int16), x.to(dtype).view(torch.int16))
        exact = values.reshape(1, -1, 1).contiguous()
        norms = L.prepare(exact)
        assert norms[0, 0].item() == pytest.approx(exact.double().norm().item(), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("in_place, status", [(False, Status.PRECISION), (True, Status.SPOILED)])
def test_a_residual_that_is_not_what_was_certified_is_told(dtype, in_place, status):
    """The op does not ask whether out overlaps the weight: here rows are overwritten before they are measured."""
    m, n = 48, 32
    memory = torch.zeros(2 * m * (n + 1), dtype=dtype)
    weight = memory[: m * n].view(1, m, n)
    weight.copy_(llm_like(m, n))
    out = memory.as_strided((1, m, n), (m * n, n + 1, 1) if in_place else (m * n, n, 1), 0 if in_place else n)
    wide = dtype == torch.float64
    rows = L.low_rank(weight, out, 4, "randomized", 16, False, wide, False, 1e-3, 64, 0, [0])
    assert rows[0, 0] == status and rows[0, 4] <= 1e-3


def test_float64_products_are_rounded_once_to_16_bits():
    """Numbers a little beside the middle of two 16-bit ones, which a float32 between would take for the middle."""
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype).double()
        values = values[values.isfinite()]
        middle = (values[1:] + values[:-1]) / 2
        for sign in (1, -1):
            for beside in (1 + 2.0**-40, 1 - 2.0**-40):
                x = (sign * middle * beside).reshape(1, -1, 1)
                out = torch.zeros(1, x.shape[1], 1, dtype=dtype)
                L.reconstruct(x, torch.ones(1, 1, 1, dtype=torch.float64), out.clone(), out)
                up = values[1:] if beside > 1 else values[:-1]
                assert torch.equal(out[0, :, 0].double(), sign * up), (dtype, sign, beside)


def test_outs_and_factors_that_do_not_fit_are_refused():
    a = llm_like(24, 16)[None]
    route = ("randomized", 9, False, False, False, 1e-3, 64, 0, [0])
    for out in (torch.empty(1, 24, 15), torch.empty(1, 25, 16), torch.empty(1, 24, 16).double()):
        with pytest.raises(RuntimeError, match=r"low_rank\] out must match weight"):
            L.low_rank(a, out, 4, *route)
    left, right = torch.ones(1, 24, 3), torch.ones(1, 16, 3)
    for bad_left, bad_right in (
        (left[:, :, :2], right),
        (left[:, 1:], right),
        (left, right[:, 1:]),
        (left, right.double()),
    ):
        with pytest.raises(RuntimeError, match=r"reconstruct\] left must be \(b, m, r\)"):
            L.reconstruct(bad_left.contiguous(), bad_right.contiguous(), a, torch.empty_like(a))
    for rank, block, text in ((0, 9, "rank must be in"), (17, 16, "rank must be in"), (4, 17, "block must be in")):
        with pytest.raises(RuntimeError, match=text):
            L.low_rank(a, torch.empty_like(a), rank, "randomized", block, *route[2:])
    with pytest.raises(RuntimeError, match="max_iter must be at least 1"):
        L.low_rank(a, torch.empty_like(a), 4, *route[:6], 0, 0, [0])
    for way in (("gram_eigh", 9, False, False, True), ("randomized", 9, False, True, True)):
        with pytest.raises(RuntimeError, match="half goes with"):
            L.low_rank(a, torch.empty_like(a), 4, *way, *route[5:])
