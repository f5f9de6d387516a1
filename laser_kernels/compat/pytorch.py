"""torch.svd_lowrank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser_kernels.api import truncated_svd
from laser_kernels.canonical import DTYPES
from laser_kernels.compat.accuracy import accepted
from laser_kernels.errors import NonFiniteError

torchs_own = torch.svd_lowrank


def can_take(*tensors: Tensor) -> bool:
    """Plain dense real matrices that we have kernels for, and whose gradients nobody follows."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, nn.Parameter)
        and t.layout is torch.strided
        and t.dtype in DTYPES
        and t.device.type in ("cpu", "cuda")
        and t.numel() > 0
        and not (torch.is_grad_enabled() and t.requires_grad)
        for t in tensors
    )


def svd_lowrank(
    A: Tensor, q: int | None = 6, niter: int | None = 2, M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading min(q, m, n) singular triples of A - M: A - M ~ U diag(S) V^T, with V and not its transpose.

    Guarantees: as truncated_svd, for each matrix of the batch; in particular a residual of at most (1 + tol) times the
    optimum. Results are the same in every run: torch's random state is neither read nor advanced. What we do not do
    goes to torch.svd_lowrank: inputs whose gradients are followed, complex, sparse, integer, empty and meta tensors,
    tensor subclasses, compiled code, NaN and Inf, and arguments that torch refuses. Not guaranteed: torch's signs and,
    where singular values nearly coincide, single vectors.

    Args:
        A: (*, m, n) float32 or float64; also bfloat16 and float16, which torch refuses: factors are float32 then.
        q: how many triples (None: 6). No more than that need to be asked for: oversampling is added inside.
        niter: a wish for accuracy (None: 2): tol is 1e-3 up to 6, and finer above, 1e-4 from 9 on
            (compat.accuracy.accepted). torch has no tolerance: its excess is what so many iterations leave.
        M: broadcast to A and subtracted, dense (torch subtracts products instead: less memory).

    Raises:
        As torch.svd_lowrank.

    References:
        pytorch/pytorch, torch/_lowrank.py.
    """
    wanted, iterations = 6 if q is None else q, 2 if niter is None else niter
    given = (A,) if M is None else (A, M)
    usual = isinstance(wanted, int) and wanted > 0 and isinstance(iterations, int)
    if not (usual and can_take(*given) and A.dim() >= 2) or any(
        (t.dtype, t.device) != (A.dtype, A.device) for t in given
    ):
        return torchs_own(A, q, niter, M)
    *batch, m, n = A.shape
    matrices = A.detach()
    if M is not None:
        wide = A.dtype if A.dtype == torch.float64 else torch.float32
        matrices = matrices.to(wide) - M.detach().to(wide).broadcast_to(A.shape)
    try:
        U, S, Vh = truncated_svd(matrices.reshape(-1, m, n), min(wanted, m, n), tol=accepted(iterations))
    except NonFiniteError:
        return torchs_own(A, q, niter, M)  # in its own words
    return U.reshape(*batch, m, -1), S.reshape(*batch, -1), Vh.reshape(*batch, -1, n).mT
