"""A linear layer whose weight is a product of two factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from laser_kernels.factors import factor


def plain_linear(module: nn.Module) -> bool | None:
    """False for a torch.nn.Linear, True for a transformers Conv1D (its weight is transposed), None for all else.

    A subclass, a module with hooks or with a forward of its own may do anything: it counts as something else.
    """
    kind = type(module)
    conv1d = (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return conv1d if (kind is nn.Linear or conv1d) and not own else None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is in `model`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


class LowRankLinear(nn.Module):
    """y = x W^T + bias with W = B A of rank r: y = (x A^T) B^T + bias, r (m + n) parameters and flops per row, not m n.

    B A is the weight as the module it stands for stores it: (out, in), B (out, r) and A (r, in), for a Linear; (in, out),
    B (in, r) and A (r, out), for a transformers Conv1D (`transposed`), where y = (x B) A + bias.

    The factors that from_linear makes are B = U sqrt(S) and A = sqrt(S) Vh, rounded to the weight's dtype. Their product is
    A_r of `low_rank` but for that rounding; a result differs from the dense layer's by the rounding of B, of A and of x A^T.
    Parameters `B`, `A` and, where there is one, `bias` are the state_dict.

    References:
        Sharma, Ash, Misra: LASER, arXiv 2312.13558 (the weights). The authors' issue 28 asks for this form of them.
    """

    B: nn.Parameter
    A: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        transposed: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        """Uninitialised factors of the given shapes; see from_linear and from_factors for what fills them.

        Raises:
            ValueError: `rank` is not in 1..min(in_features, out_features).
        """
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"[laser_kernels::LowRankLinear] rank must be in 1..{min(in_features, out_features)} for "
                f"{in_features} -> {out_features} features; got {rank}"
            )
        self.in_features, self.out_features, self.rank, self.transposed = in_features, out_features, rank, transposed
        rows, cols = (in_features, out_features) if transposed else (out_features, in_features)
        self.B = nn.Parameter(torch.empty(rows, rank, device=device, dtype=dtype))
        self.A = nn.Parameter(torch.empty(rank, cols, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def like(cls, module: nn.Module, rank: int) -> LowRankLinear:
        """What could stand for `module`: its shapes, device, dtype and mode, its own bias, factors not filled in.

        Raises:
            TypeError: `module` is not a plain Linear or Conv1D.
        """
        transposed = plain_linear(module)
        if transposed is None:
            raise TypeError(f"only a plain torch.nn.Linear or transformers Conv1D has factors; this is {type(module)}")
        weight: Any = module.weight
        rows, cols = weight.shape
        sizes = (rows, cols) if transposed else (cols, rows)
        made = cls(*sizes, rank, False, transposed=transposed, device=weight.device, dtype=weight.dtype)
        made.bias = module.bias  # type: ignore[assignment]
        for parameter in (made.B, made.A):
            parameter.requires_grad_(weight.requires_grad)
        return made.train(module.training)

    @classmethod
    def from_linear(
        cls, module: nn.Module, rank: int, *, tol: float | None = 1e-3, seed: int = 0, key: int = 0
    ) -> LowRankLinear:
        """The rank-r approximation of a Linear's or Conv1D's weight, with the module's own bias.

        Args:
            module: torch.nn.Linear or transformers Conv1D; it is not changed.
            rank: a count; parameters shrink where rank (m + n) < m n.
            tol, seed, key: as for `low_rank`.
        """
        made = cls.like(module, rank)
        weight: Any = module.weight
        b, a, _ = factor(weight.detach()[None], rank, tol=tol, seed=seed, key=key)
        return made.fill(b[0], a[0])

    @classmethod
    def from_factors(
        cls, B: Tensor, A: Tensor, bias: Tensor | None = None, *, transposed: bool = False
    ) -> LowRankLinear:
        """The layer with these factors, B (out, r) and A (r, in) (`transposed`: (in, r) and (r, out)), and bias (out).

        Raises:
            ValueError: shapes, dtypes or devices do not fit together.
        """
        if B.dim() != 2 or A.dim() != 2 or B.shape[1] != A.shape[0] or B.dtype != A.dtype or B.device != A.device:
            raise ValueError(
                "[laser_kernels::LowRankLinear] B (m, r) and A (r, n) must share r, dtype and device; got "
                f"{tuple(B.shape)} {B.dtype} on {B.device} and {tuple(A.shape)} {A.dtype} on {A.device}"
            )
        sizes = (B.shape[0], A.shape[1]) if transposed else (A.shape[1], B.shape[0])
        if bias is not None and bias.shape != sizes[1:]:
            raise ValueError(f"[laser_kernels::LowRankLinear] bias must be ({sizes[1]},); got {tuple(bias.shape)}")
        made = cls(*sizes, B.shape[1], False, transposed=transposed, device=B.device, dtype=B.dtype)
        if bias is not None:
            made.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach().clone())
        return made.fill(B, A)

    @torch.no_grad()
    def fill(self, B: Tensor, A: Tensor) -> LowRankLinear:
        """Copy factors in."""
        self.B.copy_(B)
        self.A.copy_(A)
        return self

    @property
    def weight(self) -> Tensor:
        """B A in the factors' dtype, computed anew at each use: for code that reads a layer's weight."""
        wide = torch.float32 if self.B.dtype in (torch.bfloat16, torch.float16) else self.B.dtype
        return (self.B.to(wide) @ self.A.to(wide)).to(self.B.dtype)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.B.mT, self.A.mT) if self.transposed else (self.A, self.B)
        return nn.functional.linear(nn.functional.linear(x, first), second, self.bias)

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The module it stands for, a Linear or a Conv1D, with weight B A and the same bias."""
        weight = self.weight
        made: Any
        if self.transposed:
            from transformers.pytorch_utils import Conv1D

            made = Conv1D(self.out_features, self.in_features)
        else:
            made = nn.Linear(self.in_features, self.out_features, False, device=weight.device, dtype=weight.dtype)
        made.weight = nn.Parameter(weight, requires_grad=self.B.requires_grad)
        made.bias = self.bias
        return made.train(self.training)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
        return f"{text}, bias={self.bias is not None}" + (", transposed=True" if self.transposed else "")
