"""What only a GPU can show: the CUDA kernels against the CPU's and the contract, streams, graphs, memory, CuPy."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import laser_kernels as lk
from laser_kernels import ops
from laser_kernels.testing import llm_like, norm, orthonormality_bound, residual, residual_bound

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and ops.COMPILED_CUDA), reason="needs a GPU and liblaser_cuda.so"
    ),
]
L = torch.ops.laser_kernels
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def stack(*shape, dtype=torch.bfloat16):
    count, m, n = shape
    return torch.stack([llm_like(m, n, seed) for seed in range(count)]).to("cuda", dtype)


def keeps_the_contract(a, x, info, tol=1e-3):
    assert info.residual - info.rounding <= residual_bound(a, info.rank, tol), info
    assert abs(residual(a, x) - info.residual) <= 1e-3 * info.residual + 1e-9 * norm(a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 300, 200), (2, 130, 515), (2, 1024, 768)], ids=str)
@pytest.mark.parametrize("route", ["auto", "randomized", "gram_eigh", "full_svd"])
def test_low_rank_keeps_the_contract(shape, dtype, route):
    a = stack(*shape, dtype=dtype)
    x, infos = lk.low_rank(a, 0.1, route=route, return_info=True)
    assert x.is_cuda and x.dtype == dtype
    for one, y, info in zip(a, x, infos, strict=True):
        keeps_the_contract(one, y, info)


@pytest.mark.parametrize("shape", [(2, 1600, 1500), (1, 6000, 1500)], ids=str)  # through A and A^T; through A^T A
def test_large_blocks_keep_the_contract(shape):
    a = stack(*shape)
    x, infos = lk.low_rank(a, 500, route="randomized", return_info=True)
    for one, y, info in zip(a, x, infos, strict=True):
        keeps_the_contract(one, y, info)
        assert info.route == "randomized" and info.status == "ok"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_factors_are_an_svd(dtype):
    a = stack(2, 400, 260, dtype=dtype)
    u, s, vh = lk.truncated_svd(a, 30)
    identity = torch.eye(30, dtype=u.dtype, device="cuda")
    assert (u.mT @ u - identity).abs().max() <= orthonormality_bound(dtype, 30)
    assert (vh @ vh.mT - identity).abs().max() <= orthonormality_bound(dtype, 30)
    for one, x in zip(a, (u.double() * s.double()[:, None]) @ vh.double(), strict=True):
        assert residual(one, x) <= residual_bound(one, 30, 1e-3)


@pytest.mark.parametrize("route, ranks", [("auto", [30, 5, 90, 31]), ("spectral", [130, 200, 140, 70])])
def test_each_matrix_of_a_call_is_reduced_to_its_own_rank(route, ranks):
    a = stack(4, 400, 260)
    x, infos = lk.low_rank(a, ranks, route=route, return_info=True)
    factors = lk.truncated_svd(a, ranks, route=route)
    for one, y, info, (u, s, vh), rank in zip(a, x, infos, factors, ranks, strict=True):
        assert info.rank == rank and u.shape == (400, rank) and vh.shape == (rank, 260)
        keeps_the_contract(one, y, info)
        assert residual(one, (u.double() * s.double()) @ vh.double()) <= residual_bound(one, rank, 1e-3)


def test_kernel_sketch_has_the_bits_of_the_cpu():
    weight = torch.zeros(3, 70, 50, device="cpu")
    assert torch.equal(L.sketch(weight.cuda(), 17, 5, [1, 2, 2**40]).cpu(), L.sketch(weight, 17, 5, [1, 2, 2**40]))


def test_kernel_prepare_agrees_with_the_cpu():
    a = stack(3, 257, 130)
    torch.testing.assert_close(L.prepare(a).cpu(), L.prepare(a.cpu()), rtol=1e-13, atol=0)


@pytest.mark.parametrize("columns", [1, 33, 130, 600])
def test_kernel_orthonormalize(columns):
    q = L.orthonormalize(torch.randn(3, 700, columns, device="cuda"))
    assert (q.mT @ q - torch.eye(columns, device="cuda")).abs().max() <= orthonormality_bound(torch.float32, columns)


@pytest.mark.parametrize("side", [1, 33, 128, 300])
def test_kernel_small_eigh(side):
    a = torch.randn(4, side, side, device="cuda")
    h = a @ a.mT
    theta, w = L.small_eigh(h)
    exact = torch.linalg.eigvalsh(h.double()).flip(1)
    assert ((theta - exact).abs() <= 1e-5 * exact[:, :1]).all()
    assert (h.double() @ w.double() - w.double() * theta[:, None]).abs().max() <= 1e-5 * exact.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 257, 130, 40), (1, 1024, 1024, 100)], ids=str)
def test_kernel_reconstruct_agrees_with_the_cpu(shape, dtype):
    count, m, n, rank = shape
    left, right = torch.randn(count, m, rank, device="cpu"), torch.randn(count, n, rank, device="cpu")
    weight = (left @ right.mT + 0.1 * torch.randn(count, m, n, device="cpu")).to(dtype)
    expected, out = torch.empty_like(weight), torch.empty_like(weight, device="cuda")
    norms = L.reconstruct(left, right, weight, expected)
    found = L.reconstruct(left.cuda(), right.cuda(), weight.cuda(), out)
    torch.testing.assert_close(found.cpu(), norms, rtol=1e-4, atol=0)
    slack = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    assert (out.cpu().double() - expected.double()).abs().max() <= slack * expected.abs().max().double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_spectral_keeps_the_contract(share, dtype):
    a = stack(2, 1280, 1100, dtype=dtype)
    rank = round(share * 1100)
    results, infos = lk.low_rank(a, rank, route="spectral", return_info=True)
    for one, x, info in zip(a, results, infos, strict=True):
        print(dtype, rank, info.iterations, info.excess_bound)
        assert (info.route, info.status) == ("spectral", "ok")
        assert residual(one, x) - info.rounding <= residual_bound(one, rank, 1e-3)


def test_kernel_count_eigenvalues():
    a = stack(2, 700, 640, dtype=torch.float32)
    values = torch.linalg.svdvals(a.double())
    levels = [(values[b, 199] * values[b, 200]).item() for b in range(2)]
    found = L.count_eigenvalues(a.mT @ a, levels)
    assert ((found[:, 0] == 200) | (found[:, 1] > 0.1)).all(), found


def test_equal_calls_give_equal_bits():
    a = stack(4, 512, 384)
    assert torch.equal(lk.low_rank(a, 32), lk.low_rank(a, 32))


def test_a_batch_is_what_its_matrices_are():
    a = stack(5, 300, 200, dtype=torch.float32)
    together = lk.low_rank(a, 20)
    for one, x in zip(a, together, strict=True):
        assert residual(lk.low_rank(one, 20), x) <= 2e-3 * norm(one)


def test_the_current_stream_is_used():
    a = stack(2, 512, 384)
    expected = lk.low_rank(a, 32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(a)
        torch.cuda._sleep(50_000_000)
        late.copy_(a)
        x = lk.low_rank(late, 32)
    stream.synchronize()
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_tolerance_the_op_can_be_captured(dtype):
    a = stack(3, 300, 200, dtype=dtype)
    out = torch.empty_like(a)
    arguments = (20, "randomized", 32, False, False, False, None, 4, 0, [0, 0, 0])
    expected = torch.empty_like(a)
    rows = L.low_rank(a, expected, *arguments)  # also what must happen once before a capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = L.low_rank(a, out, *arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected) and torch.equal(captured, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_given_cuts_spectral_can_be_captured(dtype):
    a, rank, locked = stack(2, 1200, 1024, dtype=dtype), 400, 350  # slices, and factors by halves
    sigma = torch.linalg.svdvals(a.double())
    cuts = torch.stack([(sigma[:, locked - 1] * sigma[:, locked]).sqrt(), sigma[:, rank - 1]], dim=1).flatten().tolist()
    arguments = (rank, locked, cuts, True, 8, 0, [0, 1])
    expected, out = torch.empty_like(a), torch.empty_like(a)
    rows = L.low_rank_at(a, expected, *arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = L.low_rank_at(a, out, *arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected) and torch.equal(captured, rows)
    for one, x in zip(a, out, strict=True):
        assert residual(one, x) <= residual_bound(one, rank, 1e-3) + 2**-9 * norm(x) * (dtype == torch.bfloat16)


def test_out_of_memory_splits_the_batch():
    """About 34 MB of scratch for each of 64 matrices, and 512 MB for all."""
    a = torch.randn(64, 2048, 2048, device="cuda")
    lk.low_rank(a[:2], 64)  # libraries, handles and kernels take their own memory
    x = a.clone()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(free - (512 << 20), dtype=torch.uint8, device="cuda")
    try:
        _, infos = lk.low_rank(x, 64, out=x, return_info=True)
    finally:
        del ballast
        torch.cuda.empty_cache()
    for one, y, info in zip(a[::9], x[::9], infos[::9], strict=True):
        keeps_the_contract(one, y, info)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_matrices_that_are_no_neighbours_are_multiplied_by_address(dtype):
    """Those of rank 8 are certified at the first look; what goes on are matrices 1, 3, 4, 6 and 8."""
    a = torch.randn(9, 640, 600, device="cuda")
    easy = [0, 2, 5, 7]
    u, s, vt = torch.linalg.svd(a[easy].double(), full_matrices=False)
    a[easy] = ((u[:, :, :8] * s[:, None, :8]) @ vt[:, :8]).to(a.dtype)
    a = (a + 0.02 * torch.randn_like(a)).to(dtype)
    x, infos = lk.low_rank(a, 8, route="randomized", return_info=True)
    for one, y, info in zip(a, x, infos, strict=True):
        keeps_the_contract(one, y, info)
    iterations = [info.iterations for info in infos]
    assert max(iterations[i] for i in easy) < min(iterations[i] for i in range(9) if i not in easy), iterations


def test_a_checkpoint_goes_through_the_gpu_and_back(tmp_path):
    """Four groups for two workers and their streams; as good as what the CPU writes, and the rest bitwise the same."""
    source = tmp_path / "source"
    source.mkdir()
    tensors = {f"layers.{i}.w": llm_like(700, 500, i).bfloat16().cpu() for i in range(8)}
    save_file(tensors | {"norm": torch.ones(500, device="cpu")}, source / "model.safetensors")
    plan = {"rules": [{"targets": "re:w", "rank": 0.1}]}
    reports = {}
    for device in ("cpu", "cuda:0"):
        done = tmp_path / device[:4]
        reports[device] = lk.reduce_checkpoint(source, done, plan, device=device, memory_budget=8 * 1_500_000)
        assert lk.verify(source, done).ok
    for mine, other in zip(reports["cuda:0"].rows, reports["cpu"].rows, strict=True):
        assert (mine.name, mine.rank, mine.status) == (other.name, other.rank, "ok")
        assert mine.residual == pytest.approx(other.residual, rel=2e-3)
    written = load_file(tmp_path / "cuda" / "model.safetensors")
    for name, weight in tensors.items():
        assert residual(weight, written[name]) == pytest.approx(
            next(row.residual for row in reports["cuda:0"].rows if row.name == name), rel=1e-3
        )


def test_factors_for_an_adapter_come_back_whole(tmp_path):
    """Of batches of several sizes, one after another through the same pinned memory."""
    source = tmp_path / "source"
    source.mkdir()
    shapes = [(300, 200), (500, 400), (200, 300), (400, 500)]
    tensors = {f"layers.{i}.w.weight": llm_like(*shapes[i % 4], i).bfloat16().cpu() for i in range(8)}
    save_file(tensors, source / "model.safetensors")
    plan = {"rules": [{"targets": "re:weight", "rank": 0.1}]}
    found = {}
    for device in ("cpu", "cuda"):
        lk.reduce_to_lora(source, tmp_path / device, plan, kind="factors", device=device)
        written = load_file(tmp_path / device / "adapter_model.safetensors")
        found[device] = {
            n: written[n].double() @ written[n.replace("lora_B", "lora_A")].double() for n in written if "lora_B" in n
        }
    assert len(found["cpu"]) == 8
    for name, product in found["cuda"].items():
        assert norm(product - found["cpu"][name]) <= 0.02 * norm(product)


def test_a_model_on_the_gpu_is_reduced_in_place():
    model = torch.nn.Sequential(*(torch.nn.Linear(500, 500, dtype=torch.bfloat16, device="cuda") for _ in range(5)))
    for i, layer in enumerate(model):
        layer.weight.data = stack(1, 500, 500)[0] * (i + 1)
    before = [layer.weight.detach().clone() for layer in model]
    report = lk.reduce_model_(model, {"rules": [{"targets": "re:weight", "rank": 40}]})
    for weight, layer, row in zip(before, model, report.rows, strict=True):
        assert row.status == "ok" and layer.weight.is_cuda
        assert row.residual == pytest.approx(residual(weight, layer.weight.detach()), rel=1e-3)
        assert residual(weight, layer.weight.detach()) <= residual_bound(weight, 40, 1e-3) + 2**-9 * norm(weight)


def test_a_bad_matrix_is_named_and_nothing_is_written():
    a = stack(3, 64, 48)
    a[1, 3, 3] = float("nan")
    before = a.clone()
    with pytest.raises(lk.NonFiniteError, match="1"):
        lk.low_rank(a, 4, out=a)
    assert torch.equal(a.nan_to_num(7), before.nan_to_num(7))


def test_cupy_in_cupy_out():
    cupy = pytest.importorskip("cupy")
    a = stack(2, 120, 90, dtype=torch.float32)
    with cupy.cuda.Stream():
        x = lk.low_rank(cupy.from_dlpack(a), 9)
        assert isinstance(x, cupy.ndarray)
        cupy.cuda.get_current_stream().synchronize()
    assert torch.equal(torch.from_dlpack(x), lk.low_rank(a, 9))
    on_the_default_stream = lk.low_rank(cupy.from_dlpack(a) + 0, 9)
    assert bool((on_the_default_stream == x).all())
