"""A model in memory made smaller: linear modules that a plan names become LowRankLinear."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from laser_kernels.checkpoint.factored import CONFIG_KEY, as_factored
from laser_kernels.checkpoint.report import ModelReport, Row
from laser_kernels.factors import factor, shrinks
from laser_kernels.low_rank_linear import LowRankLinear, plain_linear, replace_module
from laser_kernels.models import Piece, batched, pieces_of, reduce_pieces, targets_of
from laser_kernels.run import EscalationWarning, warn_escalated
from laser_kernels.selection import Plan


def factorize_model_(
    model: nn.Module, plan: str | Mapping[str, Any] | Plan, *, tol: float | None = 1e-3, seed: int = 0
) -> ModelReport:
    """Replace each Linear or Conv1D whose weight (m, n) `plan` names by a LowRankLinear of its rank r, in place.

    Guarantees: only modules whose parameters shrink, r (m + n) < m n, are replaced; all else that the plan names is reduced
    as by `reduce_model_`, and a note says why, so that the model computes the same, rounding apart, as after that. Same
    sketches as `reduce_model_` and as the factored output of `reduce_checkpoint`. Nothing is changed where a weight holds
    NaN or Inf, or a target names nothing. A transformers model keeps a note in its config, so that what save_pretrained
    writes is read by `load_factored` (and not by from_pretrained).
    Not guaranteed: an interrupted call leaves some modules replaced.

    Stays dense: experts in one parameter, a weight that several modules share (an output layer tied to the embedding), a
    module that is a subclass of Linear or has hooks, and a rank too large to save anything.

    Args:
        model, plan, tol, seed: as for reduce_model_.

    Returns:
        A row per matrix (its `factored` tells which have become factors), and notes.

    Raises:
        As reduce_model_.
    """
    selection = targets_of(model, plan)
    reasons = {target.name: _stays_dense(model, target.name, target.rank) for target in selection.targets}
    pieces = pieces_of(model, selection)
    rows = reduce_pieces([piece for piece in pieces if reasons[piece.name]], tol, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EscalationWarning)  # it knows positions; names follow
        for batch in batched([piece for piece in pieces if not reasons[piece.name]], one_rank=True):
            rows.update(_replace(model, batch, tol, seed))
    notes = tuple(f"{name}: reduced, but dense: {reason}" for name, reason in reasons.items() if reason)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        before = (getattr(config, CONFIG_KEY, None) or {}).get("ranks", {})
        now = {piece.name: piece.rank for piece in pieces if not reasons[piece.name]}
        setattr(config, CONFIG_KEY, as_factored({}, {**before, **now})[CONFIG_KEY])
    warn_escalated([label for label, row in rows.items() if row.status == "escalated"])
    return ModelReport(tuple(rows[piece.label] for piece in pieces), selection.notes + notes)


def _stays_dense(model: nn.Module, name: str, rank: int) -> str | None:
    """Why the parameter `name` is not to be split into factors; None where it is."""
    owner, _, last = name.rpartition(".")
    module, weight = model.get_submodule(owner), model.get_parameter(name)
    if last != "weight" or plain_linear(module) is None:
        return f"it belongs to a {type(module).__name__}, not to a plain Linear or Conv1D"
    users = [other for other, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(users) > 1:
        return f"{' and '.join(users)} share it"
    if not shrinks(weight.shape[0], weight.shape[1], rank):
        return f"factors of rank {rank} are not smaller"
    return None


def _replace(model: nn.Module, batch: list[Piece], tol: float | None, seed: int) -> dict[str, Row]:
    """Factor weights of one shape together and put their modules in place."""
    weights = torch.stack([piece.weight for piece in batch])
    b, a, infos = factor(weights, batch[0].rank, tol=tol, seed=seed, key=[piece.key for piece in batch])
    for piece, left, right in zip(batch, b, a, strict=True):
        owner = piece.name.rpartition(".")[0]
        replace_module(model, owner, LowRankLinear.like(model.get_submodule(owner), piece.rank).fill(left, right))
    return {piece.label: piece.row(info, factored=True) for piece, info in zip(batch, infos, strict=True)}
