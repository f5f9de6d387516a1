"""A plan on a model in memory: which of its parameters are reduced, and to what rank; and reducing them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from laser_kernels.api import low_rank
from laser_kernels.checkpoint.layout import DEFAULT_BUDGET, Named, batches, batching, group_bytes
from laser_kernels.checkpoint.report import ModelReport, Row
from laser_kernels.checkpoint.resolve import resolve
from laser_kernels.checkpoint.shard import Entry
from laser_kernels.checkpoint.work import as_plan
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.info import Info
from laser_kernels.run import EscalationWarning, warn_escalated
from laser_kernels.selection import FLOATING, Plan, Selection, Target, select

# torch's names of dtypes as safetensors spells them; what is not here is not reducible.
STORED = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint8": "U8", "int8": "I8", "int32": "I32"},
}
_BUFFER = "buffer"  # stands for a dtype: buffers are never reduced, but their names tell how weights are packed


@dataclass(frozen=True)
class Piece(Named):
    """One matrix of a model to reduce. `weight` (m, n) is a view of the parameter."""

    weight: Tensor
    rank: int

    def row(self, info: Info, factored: bool = False) -> Row:
        """What the report says of it."""
        rows, cols = self.weight.shape
        dtype = STORED[str(self.weight.dtype).removeprefix("torch.")]
        stored = self.rank * (rows + cols) if factored else None
        return Row.of(self.name, self.index, (rows, cols), dtype, info, stored)


def targets_of(model: nn.Module, plan: str | Mapping[str, Any] | Plan) -> Selection:
    """The parameters that `plan` names in `model`, by the rules that hold for a checkpoint's tensors.

    `model.get_parameter(target.name)` is the weight. Tied parameters count once, under their first name; a note says so.

    Args:
        model: any module; one of transformers (its `config` says which family) needs no regular expressions.
        plan: as for reduce_checkpoint: a Plan, a mapping {"rules": [...]}, or a YAML file.

    Raises:
        CheckpointError: a target names nothing in this model (the message says what it has), a rank does not fit, or a
            weight is quantized or sharded.
    """
    config: Any = getattr(model, "config", None)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    entries = [_entry(name, p, STORED.get(str(p.dtype).removeprefix("torch."), "?")) for name, p in parameters.items()]
    entries += [_entry(name, b, _BUFFER) for name, b in model.named_buffers(remove_duplicate=False)]
    chosen = as_plan(plan)
    selection = select(entries, config.to_dict() if hasattr(config, "to_dict") else {}, chosen)
    for target in selection.targets:
        _refuse_special(target.name, parameters[target.name])
    targets, notes = _untied(selection.targets, parameters)

    def read(name: str, expert: int | None) -> Tensor:
        weight = _numbers(name, parameters[name])
        return weight if expert is None else weight[expert]

    return resolve(replace(selection, targets=targets, notes=selection.notes + notes), chosen, read)[0]


def _entry(name: str, tensor: Tensor, dtype: str) -> Entry:
    return Entry(name, dtype, tuple(tensor.shape), 0, 0)


def _refuse_special(name: str, p: nn.Parameter) -> None:
    """Raise CheckpointError for a parameter whose memory is not the matrix itself."""
    if type(p) is not nn.Parameter:
        raise CheckpointError(
            f"{name}: is a {type(p).__name__}, not a plain parameter: reduce the model before that is made"
        )
    if STORED[str(p.dtype).removeprefix("torch.")] not in FLOATING:
        raise CheckpointError(
            f"{name}: is {p.dtype} with factors in another tensor: reduce_checkpoint reads such weights"
        )


def _numbers(name: str, p: nn.Parameter) -> Tensor:
    """The matrix itself. Raise CheckpointError where it was not loaded."""
    if p.is_meta:
        raise CheckpointError(f"{name}: is on the meta device, so it holds no numbers: load the model's weights first")
    return p.detach()


def _untied(
    targets: tuple[Target, ...], parameters: Mapping[str, nn.Parameter]
) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Each parameter once, under its first name and by the first rule that names it; what is shared, as notes."""
    names: dict[int, list[str]] = {}
    for name, p in parameters.items():
        names.setdefault(id(p), []).append(name)
    chosen: dict[str, Target] = {}
    for target in sorted(targets, key=lambda t: t.rule):  # stable: in one rule the order of the parameters
        first = names[id(parameters[target.name])][0]
        chosen.setdefault(first, replace(target, name=first))
    notes = tuple(
        f"{' and '.join(shared)} are one parameter: it is reduced once, for all of them"
        for shared in names.values()
        if len(shared) > 1 and shared[0] in chosen
    )
    return tuple(chosen[name] for name in parameters if name in chosen), notes


def pieces_of(model: nn.Module, selection: Selection) -> list[Piece]:
    """The matrices of a selection.

    Raises:
        NonFiniteError: some hold NaN or Inf; it names the parameters.
    """
    found: list[Piece] = []
    for target in selection.targets:
        weight = _numbers(target.name, model.get_parameter(target.name))
        if target.experts is None:
            found.append(Piece(target.name, None, weight, target.rank))
        else:
            found += [Piece(target.name, i, expert, target.rank_of(i)) for i, expert in enumerate(weight)]
    bad = [i for i, piece in enumerate(found) if not torch.isfinite(piece.weight).all()]
    if bad:
        raise NonFiniteError(bad, "reduce_model_", [found[i].label for i in bad])
    return found


def batched(pieces: list[Piece], one_rank: bool = False) -> Iterator[list[Piece]]:
    """Matrices of one shape, dtype and device, batched as a checkpoint's are; one_rank: and on every device of one rank."""
    for device in sorted({str(p.weight.device) for p in pieces}):
        here = [p for p in pieces if str(p.weight.device) == device]
        apart = one_rank or not batching(device).mixed
        sized = (((p.weight.shape, p.weight.dtype, p.rank if apart else None), p.weight.nbytes, p) for p in here)
        yield from (members for _, members in batches(sized, group_bytes(DEFAULT_BUDGET, device)))


def reduce_model_(
    model: nn.Module, plan: str | Mapping[str, Any] | Plan, *, tol: float | None = 1e-3, seed: int = 0
) -> ModelReport:
    """Replace every weight W (m, n) that `plan` names by its rank-r approximation W_r, in place.

    Guarantees: those of `low_rank` for each; the same bits as `reduce_checkpoint` where names, shapes and batches are the
    same (a model in one safetensors file, on one device). Each expert of a (E, m, n) parameter is reduced by itself; a
    parameter that several modules share, once. Nothing is changed where any weight holds NaN or Inf, or where a target
    names nothing. Not guaranteed: an interrupted call leaves some weights reduced (`reduced` restores them).

    Args:
        model: a transformers model, or any module (with `re:` targets).
        plan: as for reduce_checkpoint: a Plan, a mapping {"rules": [...]}, or a YAML file.
        tol, seed: as for `low_rank`; the sketch is keyed by each parameter's name.

    Returns:
        A row per matrix, and notes (shared parameters, layers that a rule did not find).

    Raises:
        CheckpointError, ValueError: as targets_of. NonFiniteError: naming the parameters.

    References:
        Sharma, Ash, Misra: LASER, arXiv 2312.13558, section 4.
    """
    selection = targets_of(model, plan)
    rows = reduce_pieces(pieces_of(model, selection), tol, seed)
    warn_escalated([label for label, row in rows.items() if row.status == "escalated"])
    return ModelReport(tuple(rows.values()), selection.notes)


def reduce_pieces(pieces: list[Piece], tol: float | None, seed: int) -> dict[str, Row]:
    """Label -> row of matrices that this reduces in place."""
    rows: dict[str, Row] = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", EscalationWarning)  # it knows positions; names follow
        for batch in batched(pieces):
            weights, keys = [p.weight for p in batch], [p.key for p in batch]
            ranks = [p.rank for p in batch]
            _, infos = low_rank(weights, ranks, tol=tol, seed=seed, key=keys, out=weights, return_info=True)
            rows.update({p.label: p.row(info) for p, info in zip(batch, infos, strict=True)})
    return {p.label: rows[p.label] for p in pieces}


@contextmanager
def reduced(
    model: nn.Module, plan: str | Mapping[str, Any] | Plan, *, tol: float | None = 1e-3, seed: int = 0
) -> Iterator[ModelReport]:
    """`reduce_model_` for the length of a `with`: on its end, by an exception too, the weights are bitwise what they were.

    Keeps one copy, on the CPU, of the weights that are replaced and of nothing else. Nests: the inner one restores what the
    outer one made. Not guaranteed: a parameter that is replaced by another object inside the `with` stays so.
    """
    selection = targets_of(model, plan)
    parameters = [model.get_parameter(target.name) for target in selection.targets]
    pieces = pieces_of(model, selection)
    saved = [p.detach().to("cpu", copy=True) for p in parameters]
    try:
        rows = reduce_pieces(pieces, tol, seed)
        warn_escalated([label for label, row in rows.items() if row.status == "escalated"])
        yield ModelReport(tuple(rows.values()), selection.notes)
    finally:
        with torch.no_grad():
            for p, before in zip(parameters, saved, strict=True):
                p.copy_(before)
