"""What fine-tuning changed in a model, as a LoRA adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laser_kernels.adapters import Factors, check_new, peft
from laser_kernels.api import truncated_svd
from laser_kernels.checkpoint.layout import key_of
from laser_kernels.checkpoint.quantized import SCALE_SUFFIX
from laser_kernels.checkpoint.reader import REPORT_NAME
from laser_kernels.deltas import chunks, difference
from laser_kernels.devices import resolve_devices
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.lora.extract_report import Extracted, ExtractReport
from laser_kernels.lora.modules import linear_weights, module_of, refuse_bare, stored_transposed
from laser_kernels.progress import Progress, automatic
from laser_kernels.rank import resolve_rank
from laser_kernels.ranks import Rule
from laser_kernels.selection import Rule as PlanRule
from laser_kernels.selection import parse_layers, parse_targets
from laser_kernels.split import check_split, factors_of
from laser_kernels.weights import Weights, open_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Cut:
    """How a difference becomes factors: the arguments of extract_lora."""

    rank: Any
    round_rank: int | None
    split: str
    dtype: torch.dtype
    tol: float
    seed: int

    def __post_init__(self) -> None:
        check_split(self.split, "extract_lora")
        if self.round_rank is not None and (type(self.round_rank) is not int or self.round_rank < 1):
            raise ValueError(
                f"[laser_kernels::extract_lora] round_rank must be a positive int; got {self.round_rank!r}"
            )
        if self.dtype not in DTYPES.values():
            raise ValueError(
                f"[laser_kernels::extract_lora] dtype must be float32, bfloat16 or float16; got {self.dtype}"
            )

    def rank_of(self, delta: Tensor) -> int:
        side = min(delta.shape)
        if isinstance(self.rank, Rule):
            found = self.rank.of(delta)
        else:
            found = resolve_rank(min(self.rank, side) if type(self.rank) is int else self.rank, *delta.shape)
        step = self.round_rank or 1
        return min(side, -(-found // step) * step)

    def apply(self, deltas: Mapping[str, Tensor]) -> Iterator[tuple[Extracted, Factors]]:
        """Row and Factors of each difference (out, in)."""
        names, matrices = list(deltas), list(deltas.values())
        ranks, keys = [self.rank_of(delta) for delta in matrices], [key_of(name) for name in names]
        try:
            svds, infos = truncated_svd(matrices, ranks, tol=self.tol, seed=self.seed, key=keys, return_info=True)
        except NonFiniteError as error:
            bad = ", ".join(names[i] for i in error.indices[:5])
            raise CheckpointError(f"{bad}: holds NaN or Inf in base or tuned: repair it, or leave it out") from error
        for name, delta, svd, info in zip(names, matrices, svds, infos, strict=True):
            b, a = (factor.to(self.dtype) for factor in factors_of(svd, self.split))
            lost = torch.linalg.vector_norm(delta - b.to(delta.dtype) @ a.to(delta.dtype), dtype=torch.float64).item()
            size = torch.linalg.vector_norm(delta, dtype=torch.float64).item()
            shape, module = (delta.shape[0], delta.shape[1]), module_of(name)
            row = Extracted(module, shape, info.rank, lost, lost / size, info.excess_bound, info.route, info.status)
            yield row, Factors(b.cpu(), a.cpu(), float(info.rank))


def extract_lora(
    base: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor],
    tuned: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor],
    out: str | os.PathLike[str],
    rank: Any,
    *,
    targets: str | Sequence[str] = "all",
    layers: Any = None,
    split: str = "sqrt",
    round_rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    tol: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    base_model: str | None = None,
    task_type: str | None = "CAUSAL_LM",
    progress: Progress | None = None,
) -> ExtractReport:
    """Write to `out` the PEFT LoRA adapter that turns `base` into `tuned`: per module tuned - base ~ B A, of rank r.

    `peft.PeftModel.from_pretrained(base, out)` then behaves like `tuned`, as far as rank r of each module's change goes
    and apart from what the report lists as left out.

    Guarantees: ||(tuned - base) - B A|| <= (1 + tol) tail + c eps ||tuned - base||, plus the rounding of B and A to `dtype`;
    the report has the figure of what is stored. The difference is that of truncated_svd of float32 numbers (deltas.py).
    Weights are read a few at a time (256 MiB of differences); the adapter itself is held in memory. Nothing in `base` or
    `tuned` is changed or executed; `out` holds no adapter until it is whole.

    Args:
        base, tuned: folders of safetensors checkpoints, modules, or state dicts, with the same names.
        out: a folder that is made, or empty. It also gets the report, laser_report.json.
        rank: an int (small modules get what they have, which the report notes), a float in (0, 1] = fraction of each
            module's short side, or a rule (ranks.py), which is asked about each difference.
        targets: aliases (q_proj k_proj v_proj out_proj fc_in fc_up fc_out attn mlp all) or `re:REGEX`, as in a plan.
        layers: "27", "20-29", a comma list of those, or None for all; they count from 0.
        split: which factor gets the singular values: "sqrt" both, "left" B, "right" A (as mergekit writes).
        round_rank: round ranks up to a multiple of this (servers reserve ranks in steps), as far as a module has them.
        dtype: of B and A in the file.
        tol, seed: as for truncated_svd; with each tensor's name the seed decides the random sketch.
        device: where to compute: "auto" is a GPU where torch sees one.
        base_model: what the adapter calls its base; None: the folder, or the name that the module's config has.
        task_type: PEFT's; None for a model without generate().
        progress: called with (bytes done, bytes in all, name); None: a bar or lines on stderr.

    Raises:
        CheckpointError: a folder cannot be read; a target names nothing; no tensor is in both; nothing has changed; NaN or
        Inf; `out` is there. ValueError, TypeError: bad arguments.

    References:
        arcee-ai/mergekit, scripts/extract_lora.py; kohya-ss/sd-scripts, networks/extract_lora_from_models.py.
    """
    cut = _Cut(rank, round_rank, split, dtype, tol, seed)
    check_new(out)
    place, report = torch.device(resolve_devices(device)[0]), progress or automatic()
    asked = PlanRule(parse_targets(targets), 1.0, parse_layers(layers))
    with open_weights(base) as old, open_weights(tuned) as new:
        same = [name for name, entry in new.entries.items() if _shape(old, name) == entry.shape]
        if not same:
            raise CheckpointError(
                f"base and tuned share no tensor: their names are like {next(iter(old.entries), '(none)')!r} and "
                f"{next(iter(new.entries), '(none)')!r}"
            )
        names, notes = linear_weights(same, new, asked)
        if task_type is not None:
            refuse_bare(names, task_type)
        turned = stored_transposed(names, new)
        total, done = sum(new.entries[name].nbytes for name in same), 0
        factors: dict[str, Factors] = {}
        rows: list[Extracted] = []
        unchanged: list[str] = []
        for part in chunks([math.prod(new.entries[name].shape) for name in names]):
            deltas = {}
            for name in names[part]:
                delta = difference(new.read(name), old.read(name)).to(place)
                deltas[name] = delta.mT if name in turned else delta
                done += new.entries[name].nbytes
            changed = {name: delta for name, delta in deltas.items() if delta.any()}
            unchanged += [module_of(name) for name in deltas if name not in changed]
            for row, made in cut.apply(changed) if changed else ():
                rows.append(row)
                factors[row.name] = made
            report(done, total, names[part][-1])
        left_out, taken = [], set(names)
        for name in (name for name in same if name not in taken):
            if _changed(old, new, name):
                left_out.append(name)
            done += new.entries[name].nbytes
            report(done, total, name)
        if not factors:
            raise CheckpointError(f"nothing that {', '.join(asked.targets)} names differs between base and tuned")
        if type(rank) is int and (small := [row.name for row in rows if row.rank < rank]):
            notes.append(f"{len(small)} modules have less than rank {rank} ({small[0]}, ...): they keep all of theirs")
        found = ExtractReport(
            rows=tuple(rows),
            unchanged=tuple(unchanged),
            left_out=tuple(left_out),
            only_in_base=tuple(name for name in old.entries if name not in new.entries),
            only_in_tuned=tuple(name for name in new.entries if name not in old.entries),
            reshaped=tuple(name for name in new.entries if _shape(old, name) not in (None, new.entries[name].shape)),
            notes=tuple(notes),
        )
        adapter = peft.fresh(factors, base_model or old.name, task_type, fan_in_fan_out=bool(turned))
    peft.write(Path(out), adapter, {REPORT_NAME: found.to_json()})
    return found


def _shape(weights: Weights, name: str) -> tuple[int, ...] | None:
    return weights.entries[name].shape if name in weights.entries else None


def _changed(old: Weights, new: Weights, name: str) -> bool:
    """Whether a tensor of one shape differs in value, whatever its dtypes. Factors of fp8 weights are no weights."""
    if name.endswith(SCALE_SUFFIX):
        return False
    one, other = new.read(name), old.read(name)
    if one.is_floating_point() and other.is_floating_point():
        return bool(difference(one, other).any())
    return one.dtype != other.dtype or not torch.equal(one, other)
