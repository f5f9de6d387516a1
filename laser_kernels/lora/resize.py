"""LoRA files of another rank."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from laser_kernels.adapters import Factors, check_new, read_adapter, write_adapter
from laser_kernels.api import SVD
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.products import rank_of_product, svd_product
from laser_kernels.split import check_split, factors_of


@dataclass(frozen=True)
class Resized:
    """One module. energy: ||new delta||^2 / ||old delta||^2; relative_residual: ||old - new|| / ||old||; both before the
    factors are rounded to their dtype, 1 and 0 where the old delta is zero."""

    name: str
    shape: tuple[int, int]
    old_rank: int
    rank: int
    energy: float
    relative_residual: float


@dataclass(frozen=True)
class ResizeReport:
    """What resize_lora did: one row per module, and what a reader should know."""

    rows: tuple[Resized, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def summary(self) -> str:
        ranks, energy = [row.rank for row in self.rows], [row.energy for row in self.rows]
        return (
            f"{len(ranks)} modules, rank {min(ranks)} to {max(ranks)} (were up to {max(r.old_rank for r in self.rows)}), "
            f"energy kept {min(energy):.1%} to {max(energy):.1%}, {sum(energy) / len(energy):.1%} in the mean"
        )


def resize_lora(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rank: Any,
    *,
    conv_rank: Any = None,
    split: str = "sqrt",
) -> ResizeReport:
    """Write to `out` the LoRA `source` with every module's change truncated: delta = (alpha / r) B A to its rank-r' best.

    The scale alpha / r of each module stays: alpha' = (alpha / r) r' (PEFT's rsLoRA: alpha / sqrt(r) stays). At full rank
    the change is the same, to rounding. Products are never formed, convolutions are flattened to (out, channels * kernel).

    Guarantees: ||delta - delta'|| is the least that rank r' can have, up to c eps ||delta|| and the rounding of the factors
    to the dtype that the file has. Tensors that are no factors are carried over. `out` appears whole or not at all.

    Args:
        source: a PEFT folder, or a .safetensors file with kohya's, Comfy's or diffusers' names.
        out: a folder or file (as `source`) that is not there yet.
        rank: an int (modules that have less keep theirs, which the report notes), a float in (0, 1] = fraction of each
            module's own rank, or a rule (ranks) for the singular values of delta.
        conv_rank: the same for convolutions; None: `rank`.
        split: which factor gets the singular values: "sqrt" both, "left" B (as kohya writes), "right" A.

    Returns:
        ResizeReport: ranks, energy kept and residual, module by module.

    Raises:
        CheckpointError: `source` cannot be read as a LoRA, holds NaN or Inf, or `out` is there. ValueError: rank or split.

    References:
        kohya-ss/sd-scripts, networks/resize_lora.py: the same result from the full SVD of each product.
    """
    check_split(split, "resize_lora")
    check_new(out)
    adapter = read_adapter(source)
    rows: list[Resized] = []
    notes: list[str] = []
    new: dict[str, Factors] = {}
    for name, old in adapter.factors.items():
        asked = conv_rank if conv_rank is not None and old.kernel else rank
        try:
            new[name], row = _resize(name, old, asked, split)
        except NonFiniteError:
            raise CheckpointError(f"{source}: {name} holds NaN or Inf: it has no low-rank approximation") from None
        if type(asked) is int and row.rank < asked:
            notes.append(f"{name} has rank {row.rank}, less than {asked}: it keeps it")
        rows.append(row)
    write_adapter(out, adapter.with_factors(new))
    return ResizeReport(tuple(rows), tuple(notes))


def _resize(name: str, old: Factors, rank: Any, split: str) -> tuple[Factors, Resized]:
    (m, k), n = old.B.shape, old.A.shape[1]
    u, s, vh = svd_product(old.B, old.A)
    side = s.shape[0]
    if type(rank) is int:
        rank = min(rank, side)
    r = rank_of_product(rank, abs(old.scale) * s, (m, n))
    b, a = factors_of(SVD(u[:, :r], s[:r], vh[:r]), split)
    new = Factors(b.to(old.B.dtype), a.to(old.A.dtype), old.scale * r, old.kernel)
    energy, lost = (part.double().square().sum().item() for part in (s[:r], s[r:]))
    whole = energy + lost
    kept, missed = (energy / whole, math.sqrt(lost / whole)) if whole > 0 else (1.0, 0.0)
    return new, Resized(name, (m, n), k, r, kept, missed)
