"""What a plan does to a checkpoint, as a LoRA adapter for PEFT: the difference W_r - W, or the factors of W_r themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.architectures import architectures
from laser_kernels.checkpoint.factored import not_linear
from laser_kernels.checkpoint.layout import Group
from laser_kernels.checkpoint.pipeline import load
from laser_kernels.checkpoint.reader import REPORT_NAME, Reader
from laser_kernels.checkpoint.report import Report, Row, total_sizes, versions
from laser_kernels.checkpoint.work import as_plan, prepare
from laser_kernels.checkpoint.writer import check_destination
from laser_kernels.devices import Place, resolve_devices
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.factors import factor, measured, shrinks
from laser_kernels.lora.modules import CONV1D_MODELS
from laser_kernels.progress import Progress, automatic
from laser_kernels.selection import Plan, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from laser_kernels.info import Info

KINDS = ("difference", "factors")


def reduce_to_lora(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    plan: str | os.PathLike[str] | Mapping[str, Any] | Plan,
    *,
    kind: str = "difference",
    tol: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Write to `dst` a PEFT adapter folder that does to the checkpoint `src` what `plan` says.

    kind "difference": lora_B lora_A = W_r - W, of rank min(m, n) - r: on the model of `src` the adapter gives the reduced
    model, and can be switched off. Only for plans that remove little. kind "factors": lora_B lora_A = W_r itself, of rank r:
    for code that puts its own weight under the adapter (zero, or another model's), not for the model of `src`.

    Guarantees: those of `low_rank` for W_r, before the factors are rounded to the weight's dtype; a row's residual is
    ||W - W_r|| as the rounded factors give it. Weights are read group by group; all factors are held in memory.

    Args:
        src, plan, tol, seed, device, progress: as for reduce_checkpoint; `device` is one device. A difference takes every
            singular value, exactly: tol and seed matter for "factors" only.
        dst: a folder that is made, or empty.

    Raises:
        CheckpointError: as reduce_checkpoint; a target is no Linear module's weight; the adapter would be larger than what
            it changes.
        ValueError: an argument or the plan makes no sense.
    """
    from laser_kernels.adapters import write_peft

    started = time.perf_counter()
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    source, destination, chosen, name = Path(src), Path(dst), as_plan(plan), resolve_devices(device)[0]
    tell, place = progress or automatic(), Place(name)
    with Reader(source) as reader:
        check_destination(source, destination, resume=False)
        work = prepare(reader, chosen)
        _refuse(work.selection, kind)
        todo = [(layout, step) for layout in work.layouts for step in layout.steps if isinstance(step, Group)]
        total, done = sum(group.nbytes for _, group in todo), 0
        turn = reader.config.get("model_type") in CONV1D_MODELS
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        rows: dict[str, Row] = {}
        for layout, group in todo:
            with place.current():
                b, a, infos = _pairs(kind, place.bring(load(reader, layout.source, group).tensor), group, tol, seed)
                b, a = b.cpu(), a.cpu()
            for matrix, left, right, info in zip(group.matrices, b, a, infos, strict=True):
                lora_b, lora_a = (right.mT, left.mT) if turn else (left, right)
                pairs[matrix.name.removesuffix(".weight")] = lora_b.contiguous(), lora_a.contiguous()
                stored = left.numel() + right.numel()
                shape = (group.rows, group.cols)
                rows[matrix.name] = Row.of(matrix.name, None, shape, group.stored_dtype, info, stored, group.dtype)
            done += group.nbytes
            tell(done, total, group.matrices[-1].name)
        ordered = tuple(rows[target.name] for target in work.selection.targets)
        sizes = total_sizes(ordered)
        report = Report(
            rows=ordered,
            plan=chosen.as_dict(),
            settings={"tol": tol, "seed": seed, "device": name, "output": "lora", "lora": kind},
            source={"name": source.resolve().name, "architecture": work.selection.architecture},
            versions=versions(),
            run="",
            notes=work.notes,
            tensors=2 * len(ordered),
            bytes=sizes["bytes"][1],
            seconds=time.perf_counter() - started,
            sizes=sizes,
        )
        base = str(reader.config.get("_name_or_path") or source.resolve().name)
    write_peft(destination, pairs, base_model=base, fan_in_fan_out=turn)
    (destination / REPORT_NAME).write_text(report.to_json(), "utf-8")
    return report


def _refuse(selection: Selection, kind: str) -> None:
    """Raise CheckpointError for targets that an adapter cannot change, or not sensibly."""
    family = next((family for family in architectures() if family.name == selection.architecture), None)
    for target in selection.targets:
        if reason := not_linear(target, family):
            raise CheckpointError(f"{target.name}: cannot have an adapter: {reason}: leave it out of the plan")
        rank = min(target.rows, target.cols) - target.rank if kind == "difference" else target.rank
        if rank == 0:
            raise CheckpointError(
                f"{target.name}: rank {target.rank} changes nothing, so there is no difference to write"
            )
        if not shrinks(target.rows, target.cols, rank):
            raise CheckpointError(
                f"{target.name}: an adapter of rank {rank} holds more numbers than the {target.rows}x{target.cols} weight: "
                + (
                    "a difference suits plans that remove little; for this one write --output factored (smaller) or dense, "
                    "or the factors themselves (--lora factors)"
                    if kind == "difference"
                    else "write --output dense"
                )
            )


def _pairs(kind: str, weights: Tensor, group: Group, tol: float, seed: int) -> tuple[Tensor, Tensor, list[Info]]:
    """B and A of the weights (b, m, n), and what is to be said of W_r."""
    rank = group.matrices[0].rank  # of all of them: `work` was prepared for a CPU
    try:
        if kind == "difference":
            return difference(weights, rank)
        return factor(weights, rank, tol=tol, seed=seed, key=[matrix.key for matrix in group.matrices])
    except NonFiniteError as error:
        labels = ", ".join(group.matrices[index].label for index in error.indices[:5])
        raise CheckpointError(f"{labels}: holds NaN or Inf: repair it, or leave it out of the plan") from error


def difference(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, list[Info]]:
    """B A = W_r - W for weights (b, m, n): what lies beyond the first `rank` singular triples, negated.

    B = -U sqrt(S) and A = sqrt(S) Vh of those, from the full SVD, rounded to the weight's dtype.
    """
    import torch

    from laser_kernels.api import truncated_svd

    svd, infos = truncated_svd(weight, min(weight.shape[-2:]), route="full_svd", return_info=True)
    tail = svd.S[..., rank:]
    root = tail.sqrt()
    b = (svd.U[..., rank:] * -root.unsqueeze(-2)).to(weight.dtype)
    a = (root.unsqueeze(-1) * svd.Vh[..., rank:, :]).to(weight.dtype)
    norms = []
    for w, left, right, beyond in zip(weight, b, a, tail, strict=True):
        parts = (left.double() @ right.double(), w, beyond)
        norms.append(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in parts]))
    found = torch.stack(norms).tolist()
    return b, a, [replace(measured(info, *three), rank=rank) for info, three in zip(infos, found, strict=True)]
