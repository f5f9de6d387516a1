"""Forms of input and output, and what bad input is told."""

import math

import numpy as np
import pytest
import torch

import laser_kernels as lk
from laser_kernels import canonical, ops
from laser_kernels.status import Status
from laser_kernels.testing import llm_like, norm, optimal_residual, residual

A = llm_like(48, 32)


def test_fraction_is_the_floor_of_the_exact_product():
    assert lk.choose((10, 30), 0.7).block >= 7
    _, info = lk.low_rank(llm_like(10, 30), 0.7, return_info=True)
    assert info.rank == 7  # binary floating point would say 6.999...
    assert lk.low_rank(A, 0.001, return_info=True)[1].rank == 1


def test_views_give_what_their_copies_give():
    big = torch.zeros(96, 70)
    big[::2, 3:35] = A
    for view in (A.mT, big[::2, 3:35], big[::2, 3:35].mT, A.flip(0), A.expand(3, 48, 32)):
        assert torch.equal(lk.low_rank(view, 5), lk.low_rank(view.clone(memory_format=torch.contiguous_format), 5))
        u, s, vh = lk.truncated_svd(view, 5)
        assert residual(view, (u * s[..., None, :]) @ vh) <= 1.001 * residual(view, lk.low_rank(view, 5)) + 1e-5


def test_numpy_in_numpy_out():
    a = A.numpy()
    x = lk.low_rank(a, 5)
    assert isinstance(x, np.ndarray) and x.dtype == np.float32
    np.testing.assert_array_equal(x, lk.low_rank(A, 5).numpy())
    assert all(isinstance(t, np.ndarray) for t in lk.truncated_svd(a.astype(np.float64), 5))
    assert isinstance(lk.svdvals(a), np.ndarray)
    assert all(isinstance(t, np.ndarray) for t in lk.low_rank([a, a.T], 5))
    assert isinstance(lk.factorize(a, 5).reconstruct(3), np.ndarray)
    frozen = a.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(lk.low_rank(frozen, 5), x)
    np.testing.assert_array_equal(lk.low_rank(a[::-1], 5), lk.low_rank(a[::-1].copy(), 5))
    out = np.empty_like(a)
    assert lk.low_rank(a, 5, out=out) is out
    np.testing.assert_array_equal(out, x)


def test_ragged_list_keeps_its_order():
    matrices = [llm_like(48, 32, 1), llm_like(20, 50, 2), llm_like(48, 32, 3), llm_like(20, 50, 4).double()]
    results, infos = lk.low_rank(matrices, [4, 5, 6, 0.5], return_info=True)
    assert [i.rank for i in infos] == [4, 5, 6, 10]
    for a, rank, x in zip(matrices, [4, 5, 6, 10], results, strict=True):
        assert torch.equal(x, lk.low_rank(a, rank))
    svds = lk.truncated_svd(matrices, [4, 5, 6, 0.5])
    assert [s.S.shape[0] for s in svds] == [4, 5, 6, 10]


def test_stack_with_one_rank_stays_a_stack_and_with_several_becomes_a_list_of_svd():
    stack = torch.stack([llm_like(48, 32, i) for i in range(3)])
    assert lk.truncated_svd(stack, 4).U.shape == (3, 48, 4)
    several = lk.truncated_svd(stack, [4, 5, 4])
    assert isinstance(several, list) and [s.U.shape[1] for s in several] == [4, 5, 4]
    x = lk.low_rank(stack, [4, 5, 4])
    assert x.shape == stack.shape
    assert torch.equal(x[1], lk.low_rank(stack[1], 5))


def test_in_place_and_out():
    expected = lk.low_rank(A, 5)
    a = A.clone()
    assert lk.low_rank(a, 5, out=a) is a and torch.equal(a, expected)
    weight = torch.nn.Parameter(A.clone())
    assert lk.low_rank(weight, 5, out=weight) is weight and torch.equal(weight.data, expected)
    transposed = torch.empty(32, 48).mT
    assert torch.equal(lk.low_rank(A, 5, out=transposed), expected)
    outs = [torch.empty(48, 32), torch.empty(32, 48)]
    lk.low_rank([A, A.mT], 5, out=outs)
    assert torch.equal(outs[0], expected)
    stack = torch.stack([A, 2 * A])
    lk.low_rank(stack, [5, 6], out=stack)
    assert torch.equal(stack[0], expected)


def test_requires_grad_is_detached():
    weight = A.clone().requires_grad_()
    assert not lk.low_rank(weight, 5).requires_grad
    assert not lk.truncated_svd(weight, 5).U.requires_grad


def test_svdvals_matches_lapack():
    torch.testing.assert_close(lk.svdvals(A), torch.linalg.svdvals(A))
    ragged = lk.svdvals([A, A[:, :7].bfloat16()])
    assert [v.shape[0] for v in ragged] == [32, 7] and ragged[1].dtype == torch.float32


@pytest.mark.parametrize("rank", [None, 12])
def test_factorize_serves_every_smaller_rank_within_tol(rank):
    f = lk.factorize(A, rank, tol=1e-3)
    s = torch.linalg.svdvals(A.double())
    for r in (1, 3, f.rank):
        assert f.at(r).U.shape == (48, r)
        tail = s[r:].norm().item()
        assert residual(A, f.reconstruct(r)) <= 1.001 * tail + 1e-5
    out = torch.empty_like(A)
    assert f.reconstruct(3, out=out) is out and torch.equal(out, f.reconstruct(3))
    if rank:
        with pytest.raises(ValueError, match="up to 12; got 13"):
            f.at(13)


def test_choose_and_explain_say_what_runs():
    _, info = lk.low_rank(A, 5, return_info=True)
    assert lk.choose(A, 5).name == info.route
    assert lk.choose((48, 32), 5) == lk.choose(A, 5)
    text = lk.explain((4096, 4096), 0.01)
    assert text.startswith("randomized, float32") and "multiplications" in text
    doubles = [lk.choose((48, 32), 5, dtype=dtype) for dtype in (torch.float64, np.float64, np.dtype("f8"), "float64")]
    assert len(set(doubles)) == 1 and doubles[0] != lk.choose((48, 32), 5)


@pytest.mark.parametrize(
    ("shape", "options", "error", "words"),
    [
        ([A, A], {}, ValueError, "once for each matrix of a list"),
        ((4, 5, 6, 7), {}, ValueError, r"got \(4, 5, 6, 7\)"),
        (torch.zeros(4), {}, ValueError, r"got torch.Size\(\[4\]\)"),
        ((4, 0), {}, ValueError, r"got \(4, 0\)"),
        ("48x32", {}, ValueError, "got '48x32'"),
        (A.int(), {}, TypeError, "got torch.int32"),
        (A, {"tol": -1}, ValueError, "tol must be"),
        (A, {"max_iter": 0}, ValueError, "max_iter must be"),
        (A, {"route": "qr"}, ValueError, "route must be"),
    ],
)
def test_choose_refuses_what_the_functions_would(shape, options, error, words):
    with pytest.raises(error, match=words):
        lk.explain(shape, 2, **options)


BAD = [
    (A, 0, ValueError, r"1\.\.min\(m, n\) = 32 for a 48x32 matrix; got 0"),
    (A, 33, ValueError, "got 33"),
    (A, float("nan"), ValueError, "fraction"),
    (A, 1.5, ValueError, "fraction"),
    (A, -0.1, ValueError, "fraction"),
    (A, True, TypeError, "bool"),
    (A, "8", TypeError, "str"),
    (A, None, TypeError, "NoneType"),
    (A, [3, 4], ValueError, r"one value per matrix \(1\); got 2"),
    (A[0], 1, ValueError, "1-D"),
    (A[None, None], 1, ValueError, "4-D"),
    (A.int(), 1, TypeError, "int32"),
    (A.to(torch.complex64), 1, TypeError, "complex64: complex is not supported"),
    (A[:0], 1, ValueError, r"empty: shape \(0, 32\)"),
    ([], 1, ValueError, "list A is empty"),
    ([A, A[0]], 1, ValueError, r"A\[1\] must be a 2-D matrix; got 1-D"),
    (torch.empty(3, 3, device="meta"), 1, TypeError, "meta device and has no values"),
    ("weights", 1, TypeError, "got str"),
    (np.array(["x"]), 1, TypeError, "NumPy"),
]


@pytest.mark.parametrize("function", [lk.low_rank, lk.truncated_svd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("a, rank, error, text", BAD, ids=[b[3] for b in BAD])
def test_bad_input_is_told_what_and_where(function, a, rank, error, text):
    with pytest.raises(error, match=text) as caught:
        function(a, rank)
    assert "[laser_kernels" in str(caught.value)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"tol": -1}, "tol must be None or a number >= 0"),
        ({"tol": float("nan")}, "tol"),
        ({"max_iter": 0}, "max_iter"),
        ({"route": "magic"}, "route must be auto, randomized, spectral, gram_eigh, full_svd; got 'magic'"),
        ({"oversample": -1}, "oversample"),
        ({"oversample": 2.5}, "oversample must be None or an int >= 0; got 2.5"),
        ({"tol": True}, "tol must be None or a number"),
        ({"seed": -1}, "seed"),
        ({"key": 2**63}, "key"),
        ({"out": torch.empty(3, 3)}, "out must match A"),
        ({"out": torch.empty(48, 32).double()}, "out must match A"),
        ({"out": [torch.empty(48, 32)]}, "out must be a list"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        lk.low_rank(A, 4, **options)


def test_a_sparse_tensor_is_refused():
    with pytest.raises(TypeError, match="must be a dense tensor; A is sparse_coo"):
        lk.low_rank(A.to_sparse(), 4)


def test_numbers_may_be_numpys_or_torchs():
    expected = lk.low_rank(A, 4, tol=1e-2, seed=3, max_iter=9)
    a = lk.low_rank(A, torch.tensor(4), tol=np.float32(1e-2), seed=np.int64(3), max_iter=np.int64(9))
    assert torch.equal(a, expected)


@pytest.mark.parametrize(
    "view", [lambda n: n[::-1], lambda n: n[:, ::-1], lambda n: n.astype(">f4")], ids=["rows", "columns", "bytes"]
)
def test_an_out_that_torch_cannot_view_is_refused(view):
    out = view(np.full(A.shape, 7, "f4"))
    with pytest.raises(ValueError, match="native byte order and without negative strides"):
        lk.low_rank(A.numpy(), 4, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("offset", [1, 32, 40, 47 * 32])
def test_an_out_that_overlaps_the_weight_gets_the_result(offset):
    expected, memory = lk.low_rank(A, 4), torch.empty(2 * A.numel())
    source, out = memory[: A.numel()].view(A.shape), memory[offset : offset + A.numel()].view(A.shape)
    source.copy_(A)
    assert lk.low_rank(source, 4, out=out) is out and torch.equal(out, expected)


def test_autograd_knows_what_was_written():
    w = torch.randn(30, 40, requires_grad=True)
    y = w * 1
    z = (y**2).sum()
    lk.low_rank(y, 5, out=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()
    with torch.inference_mode():
        x = A.clone()
        lk.low_rank(x, 4, out=x)


@pytest.mark.parametrize("power", [-900, -400, 500, 1000])
def test_squares_that_leave_float64_are_measured_all_the_same(power):
    a = torch.randn(64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, info = lk.low_rank(a, 5, return_info=True)
    scaled, scaled_info = lk.low_rank(a * 2.0**power, 5, return_info=True)
    torch.testing.assert_close(scaled * 2.0**-power, low, rtol=0, atol=1e-13)
    print(power, scaled_info)
    assert scaled_info.status == "ok"
    assert math.isclose(scaled_info.residual * 2.0**-power, info.residual, rel_tol=1e-12)


def test_entries_beyond_the_dtype_are_told():
    h = (torch.sign(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))) * 65504).half()
    with pytest.warns(RuntimeWarning, match="matrix 0 has entries beyond the range of float16") as caught:
        x, info = lk.low_rank(h, 20, return_info=True)
    assert x.isinf().any() and info.residual == float("inf")
    assert caught[0].filename == __file__  # the caller's line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_nonfinite_names_the_matrices_and_touches_nothing(value, dtype):
    stack = torch.stack([llm_like(48, 32, i) for i in range(4)]).to(dtype)
    stack[1, 47, 31] = value
    stack[3, 0, 0] = value
    before = stack.clone()
    with pytest.raises(lk.NonFiniteError, match="NaN or Inf in matrix 1, 3") as caught:
        lk.low_rank(stack, 4, out=stack)
    assert caught.value.indices == [1, 3]
    assert torch.equal(stack.view(torch.uint8), before.view(torch.uint8))
    large = torch.stack([llm_like(300, 400, i) for i in range(3)]).to(dtype)
    large[0, 10, 7] = value
    before = large.clone()
    for tol in (1e-3, None):
        with pytest.raises(lk.NonFiniteError, match="NaN or Inf in matrix 0"):
            lk.low_rank(large, 30, tol=tol, out=large)
        with pytest.raises(lk.NonFiniteError, match="NaN or Inf in matrix 0"):
            lk.truncated_svd(large, 30, tol=tol)
    assert torch.equal(large.view(torch.uint8), before.view(torch.uint8))
    ragged = [llm_like(20, 10).to(dtype), stack[1], llm_like(20, 10).to(dtype)]
    kept = [a.clone() for a in ragged]
    with pytest.raises(lk.NonFiniteError) as caught:
        lk.low_rank(ragged, 4, out=ragged)
    assert caught.value.indices == [1]
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ragged, kept, strict=True))


@pytest.mark.parametrize("limit", [1, 3 * A.nbytes])
def test_a_list_larger_than_the_limit_is_stacked_piece_by_piece(monkeypatch, limit):
    weights = [llm_like(48, 32, i) for i in range(5)] + [llm_like(20, 48, i) for i in range(2)]
    keys = list(range(7))
    expected, infos = lk.low_rank(weights, 5, key=keys, return_info=True)
    factors = lk.truncated_svd(weights, 5, key=keys)
    stacks = []
    real = canonical.unit_stride
    monkeypatch.setattr(canonical, "unit_stride", lambda t: stacks.append(len(t)) or real(t))
    monkeypatch.setattr(canonical, "STACK_BYTES", limit)
    found, found_infos = lk.low_rank(weights, 5, key=keys, return_info=True)
    assert all(map(torch.equal, found, expected)) and [i.residual for i in found_infos] == [i.residual for i in infos]
    assert max(stacks) == max(1, limit // A.nbytes)
    for mine, theirs in zip(lk.truncated_svd(weights, 5, key=keys), factors, strict=True):
        assert all(map(torch.equal, mine, theirs))
    out = [torch.empty_like(w) for w in weights]
    lk.low_rank(weights, 5, key=keys, out=out)
    assert all(map(torch.equal, out, expected))
    weights[4][3, 3] = float("nan")
    before = [x.clone() for x in out]
    with pytest.raises(lk.NonFiniteError, match="4"):
        lk.low_rank(weights, 5, key=keys, out=out)
    assert all(map(torch.equal, out, before))


def test_subnormal_float64_entries():
    a = torch.randn(64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2.0**-1060
    x, info = lk.low_rank(a, 5, return_info=True)
    up = a * 2.0**1000 * 2.0**60
    assert norm(up) > 1 and info.status in ("ok", "escalated")
    got = residual(up, x * 2.0**1000 * 2.0**60)
    assert got <= (1 + 1e-3) * optimal_residual(up, 5) + 0.5 * 2.0**-14 * math.sqrt(a.numel())


@pytest.mark.parametrize("function", [lk.low_rank, lk.truncated_svd], ids=lambda f: f.__name__)
def test_a_spoiled_weight_is_an_error_that_names_it(function, monkeypatch):
    class Backend:
        @staticmethod
        def rows(weight):
            rows = torch.zeros(len(weight), len(ops.CERTIFICATE), dtype=torch.float64)
            rows[1, 0] = Status.SPOILED
            return rows

        @classmethod
        def low_rank(cls, weight, out, *_):
            return cls.rows(weight)

        @classmethod
        def truncated_svd(cls, weight, *_):
            return None, None, None, cls.rows(weight)

    monkeypatch.setattr("laser_kernels.ops.backend", lambda _: Backend)
    with pytest.raises(RuntimeError, match=rf"{function.__name__}\] matrix 1: the residual .* restore the weight"):
        function(torch.stack([llm_like(48, 32)] * 2), 4)


@pytest.mark.parametrize("function", [lk.low_rank, lk.truncated_svd], ids=lambda f: f.__name__)
def test_bad_matrices_of_a_ragged_list_are_named_by_their_place(function):
    bad = llm_like(20, 50)
    bad[3, 4] = float("nan")
    with pytest.raises(lk.NonFiniteError, match="2"):
        function([llm_like(48, 32), llm_like(48, 32), bad], 4)


def test_an_out_that_begins_where_the_weight_does_gets_the_result():
    a = llm_like(48, 32)
    expected, memory = lk.low_rank(a, 4), torch.zeros(48 * 40)
    source, out = memory[: a.numel()].view(a.shape), memory.as_strided((48, 32), (40, 1))
    source.copy_(a)
    assert lk.low_rank(source, 4, out=out) is out and torch.equal(out, expected)


def test_an_out_whose_matrices_are_one_is_refused():
    stack = torch.stack([llm_like(48, 32, i) for i in range(3)])
    with pytest.raises(RuntimeError, match="single memory location"):
        lk.low_rank(stack, 4, out=torch.zeros(1, 48, 32).expand(3, 48, 32))


@pytest.mark.parametrize("scale", [1e-41, 1e-43])
def test_subnormal_float32_entries_in_place(scale):
    """Rounding to multiples of 1.4e-45 is rounding of the result, not a contradiction to its certificate."""
    a = (llm_like(200, 100).double() * scale).float()
    x = a.clone()
    _, info = lk.low_rank(x, 8, out=x, return_info=True)
    assert info.status in ("ok", "escalated") and info.rounding > 0
    assert info.residual == pytest.approx(residual(a, x), rel=1e-3)
    assert residual(a, x) <= (1 + 1e-3) * optimal_residual(a, 8) + 0.5 * 2.0**-149 * math.sqrt(a.numel())
