"""cuSOLVER's gesvdr, gesvdp and gesvdaStridedBatched in float32 through ctypes: no Python package exposes all three."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class NotReachable(RuntimeError):
    """A peer's routine is not there: library or symbol missing."""


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

    def _run_64(self, name: str, head: Sequence[object], *tail: object) -> Tensor:
        """A call of the 64-bit interface with its workspace; info. `tail` follows info."""
        on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
        self._call(f"{name}_bufferSize", *head, ctypes.byref(on_device), ctypes.byref(on_host))
        work = self._empty(max(1, on_device.value), dtype=torch.uint8)
        host = ctypes.create_string_buffer(max(1, on_host.value))
        info = torch.zeros(1, dtype=torch.int32, device=self.device)
        result = ctypes.c_void_p(info.data_ptr())
        self._call(name, *head, ctypes.c_void_p(work.data_ptr()), on_device, host, on_host, result, *tail)
        return info

    def gesvdr(self, matrix: Tensor, rank: int, oversample: int, niters: int) -> Tensor:
        """Randomized. U and V are given at full size (QuantumKitHub/MatrixAlgebraKit.jl#41)."""
        m, n = matrix.shape
        at = matrix.float().T.contiguous()
        s, ut, vt = self._empty(n), self._empty(m, m), self._empty(n, n)
        sizes = [ctypes.c_int64(x) for x in (m, n, rank, oversample, niters)]
        jobs = [ctypes.c_byte(ord("S"))] * 2
        head = [self.handle, self.params, *jobs, *sizes, *self._columns(at, s, ut, vt), ctypes.c_int(self.FLOAT)]
        info = self._run_64("cusolverDnXgesvdr", head)
        return self._product(ut, s, vt, rank, info, matrix)

    def gesvdp(self, matrix: Tensor, rank: int) -> Tensor:
        """Full SVD by polar decomposition, economy size."""
        m, n = matrix.shape
        at = matrix.float().T.contiguous()
        s, ut, vt = self._empty(n), self._empty(n, m), self._empty(n, n)
        error = ctypes.c_double()
        head: list[object] = [
            self.handle,
            self.params,
            ctypes.c_int(1),
            ctypes.c_int(1),
            ctypes.c_int64(m),
            ctypes.c_int64(n),
        ]
        head += [*self._columns(at, s, ut, vt), ctypes.c_int(self.FLOAT)]
        info = self._run_64("cusolverDnXgesvdp", head, ctypes.byref(error))
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
