"""Other ways from a dense 16-bit matrix on a GPU to its dense rank-r approximation in the same dtype.

torch's methods (from peers.py, between the casts that a 16-bit weight needs), and cuSOLVER's gesvdr, gesvdp and
gesvdaStridedBatched in float32, called through ctypes because no Python package exposes all three.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from cuda_timing import NotReachable, OutOfTime, Timer
from torch import Tensor

DRIVERS = (None, "gesvd", "gesvdj", "gesvda")  # of torch.linalg.svd
GESVDR_ITERATIONS = (2, 4, 8, 16)

peers.SETTLE = 0.0  # no other library's threads spin on the device


def laser(matrix: Tensor, rank: int) -> Tensor:
    """LASER's do_low_rank: no oversampling, two iterations, U diag(S) Vh, and its cast back."""
    return peers.laser(matrix, rank).to(matrix.dtype)


def svd_lowrank(matrix: Tensor, rank: int, oversample: int, niter: int) -> Tensor:
    """torch.svd_lowrank in float32 with q = r + p, trimmed to r."""
    return peers.svd_lowrank(matrix.float(), rank, oversample, niter).to(matrix.dtype)


def linalg_svd(matrix: Tensor, rank: int, driver: str | None) -> Tensor:
    """torch.linalg.svd in float32 with one of cuSOLVER's drivers, cut to r."""
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False, driver=driver)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).to(matrix.dtype)


def gram_eigh(matrix: Tensor, rank: int) -> Tensor:
    """A^T A and torch.linalg.eigh in float32, then (A V) V^T."""
    return peers.gram_eigh(matrix.float(), rank).to(matrix.dtype)


def tuned_svd_lowrank(
    matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, timer: Timer, seconds: float
) -> peers.Tuned:
    """The fastest setting of svd_lowrank on this very matrix whose excess is <= target (peers.tune).

    Raises:
        OutOfTime: after `seconds`. NotReachable: no setting of the grid reaches the target.
    """
    stop = time.perf_counter() + seconds

    def method(oversample: int, niter: int) -> Tensor:
        if time.perf_counter() > stop:
            raise OutOfTime(f"no setting of svd_lowrank was found in {seconds:.0f} s")
        return svd_lowrank(matrix, rank, oversample, niter)

    grid = peers.oversamplings(rank, min(matrix.shape))
    torch.manual_seed(0)
    timer.synchronized(method)(grid[0], 1)  # first call: libraries load
    found = peers.tune(timer.synchronized(method), excess, grid, target)
    if found is None:
        raise NotReachable(f"no setting of svd_lowrank has excess <= {target:g}")
    return found


class CuSolver:
    """Three routines of cuSOLVER, float32, on the current stream; m >= n. Each returns the dense rank-r product.

    Their matrices are column-major, so a row-major tensor holds the transpose: A^T goes in, U^T and V^T come out.
    """

    FLOAT = 0  # CUDA_R_32F

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise NotReachable("cuSOLVER needs a CUDA device")
        self.device, self.library = device, self._open()
        self.handle, self.params = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cusolverDnCreate", ctypes.byref(self.handle))
        self._call("cusolverDnCreateParams", ctypes.byref(self.params))
        stream = torch.cuda.current_stream(device).cuda_stream
        self._call("cusolverDnSetStream", self.handle, ctypes.c_void_p(stream))

    @staticmethod
    def _open() -> ctypes.CDLL:
        beside = Path(torch.__file__).parents[1] / "nvidia"
        found = [str(path) for path in sorted(beside.glob("*/lib/libcusolver.so.1*"), reverse=True)]
        for name in (*found, "libcusolver.so.12", "libcusolver.so.11"):
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise NotReachable("libcusolver.so.12 or .11 was not found")

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self.library, name, None)
        if function is None:
            raise NotReachable(f"this cuSOLVER has no {name}")
        status = function(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: cuSOLVER status {status}")

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _columns(self, *tensors: Tensor) -> list[object]:
        """(type, pointer, leading dimension) of column-major matrices, as the 64-bit interface takes them."""
        made: list[object] = []
        for tensor in tensors:
            made += [ctypes.c_int(self.FLOAT), ctypes.c_void_p(tensor.data_ptr())]
            made += [ctypes.c_int64(tensor.shape[1])] if tensor.dim() == 2 else []
        return made

    @staticmethod
    def _product(ut: Tensor, s: Tensor, vt: Tensor, rank: int, info: Tensor, like: Tensor) -> Tensor:
        if int(info.abs().max()) != 0:
            raise RuntimeError(f"info = {info.tolist()}")
        ut, s, vt = ut[..., :rank, :], s[..., :rank], vt[..., :rank, :]
        return ((ut.mT * s[..., None, :]) @ vt).to(like.dtype)

    def _run_64(self, name: str, head: list[object], tail: Callable[[Tensor], list[object]]) -> Tensor:
        """A call of the 64-bit interface with its workspace; info."""
        on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
        self._call(f"{name}_bufferSize", *head, ctypes.byref(on_device), ctypes.byref(on_host))
        work = self._empty(max(1, on_device.value), dtype=torch.uint8)
        host = ctypes.create_string_buffer(max(1, on_host.value))
        info = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._call(name, *head, ctypes.c_void_p(work.data_ptr()), on_device, host, on_host, *tail(info))
        return info

    def gesvdr(self, matrix: Tensor, rank: int, oversample: int, niters: int) -> Tensor:
        """Randomized. U and V are given at full size (QuantumKitHub/MatrixAlgebraKit.jl#41)."""
        m, n = matrix.shape
        at = matrix.float().T.contiguous()
        s, ut, vt = self._empty(n), self._empty(m, m), self._empty(n, n)
        sizes = [ctypes.c_int64(x) for x in (m, n, rank, oversample, niters)]
        jobs = [ctypes.c_byte(ord("S"))] * 2
        head = [self.handle, self.params, *jobs, *sizes, *self._columns(at, s, ut, vt), ctypes.c_int(self.FLOAT)]
        info = self._run_64("cusolverDnXgesvdr", head, lambda info: [ctypes.c_void_p(info.data_ptr())])
        return self._product(ut, s, vt, rank, info, matrix)

    def gesvdp(self, matrix: Tensor, rank: int) -> Tensor:
        """Full SVD by polar decomposition, economy size."""
        m, n = matrix.shape
        at = matrix.float().T.contiguous()
        s, ut, vt = self._empty(n), self._empty(n, m), self._empty(n, n)
        error = ctypes.c_double()
        head = [self.handle, self.params, ctypes.c_int(1), ctypes.c_int(1), ctypes.c_int64(m), ctypes.c_int64(n)]
        head += [*self._columns(at, s, ut, vt), ctypes.c_int(self.FLOAT)]
        tail = lambda info: [ctypes.c_void_p(info.data_ptr()), ctypes.byref(error)]  # noqa: E731
        info = self._run_64("cusolverDnXgesvdp", head, tail)
        return self._product(ut, s, vt, rank, info, matrix)

    def gesvda(self, stack: Tensor, rank: int) -> Tensor:
        """gesvdaStridedBatched: approximate SVD of a batch, the leading r triples."""
        b, m, n = stack.shape
        at = stack.float().mT.contiguous()
        s, ut, vt = self._empty(b, rank), self._empty(b, rank, m), self._empty(b, rank, n)
        integer, long = ctypes.c_int, ctypes.c_longlong
        head = [self.handle, integer(1), integer(rank), integer(m), integer(n)]
        head += [ctypes.c_void_p(at.data_ptr()), integer(m), long(m * n), ctypes.c_void_p(s.data_ptr()), long(rank)]
        head += [ctypes.c_void_p(ut.data_ptr()), integer(m), long(m * rank)]
        head += [ctypes.c_void_p(vt.data_ptr()), integer(n), long(n * rank)]
        size = integer()
        name = "cusolverDnSgesvdaStridedBatched"
        self._call(f"{name}_bufferSize", *head, ctypes.byref(size), integer(b))
        work, info = self._empty(max(1, size.value)), torch.zeros(b, dtype=torch.int32, device=self.device)
        norms = (ctypes.c_double * b)()
        pointers = [ctypes.c_void_p(work.data_ptr()), size, ctypes.c_void_p(info.data_ptr()), norms]
        self._call(name, *head, *pointers, integer(b))
        return self._product(ut, s, vt, rank, info, stack)

    def tuned_gesvdr(
        self, matrix: Tensor, rank: int, excess: Callable[[Tensor], float], target: float, seconds: float
    ) -> tuple[int, int]:
        """(oversample, niters): p = 2r as advised, the fewest iterations that reach the target, else the most tried."""
        oversample = max(0, min(2 * rank, min(matrix.shape) - rank - 1))
        stop, niters = time.perf_counter() + seconds, 0
        for niters in GESVDR_ITERATIONS:
            found = excess(self.gesvdr(matrix, rank, oversample, niters))
            if found <= target or time.perf_counter() > stop or not math.isfinite(found):
                break
        return oversample, niters
