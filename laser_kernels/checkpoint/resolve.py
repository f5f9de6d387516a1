"""Ranks that a rule can only find in the weights, found before anything is laid out.

What a rule gives for each matrix is part of a run's identity: journal and report hold it, and a resume or a verification
takes it from there instead of finding it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.checkpoint.journal import JOURNAL_NAME
from laser_kernels.checkpoint.layout import label_of, stored_dtype
from laser_kernels.checkpoint.reader import REPORT_NAME, Reader
from laser_kernels.checkpoint.shard import DTYPE_BITS
from laser_kernels.console import size
from laser_kernels.errors import CheckpointError
from laser_kernels.progress import Progress, automatic, silent
from laser_kernels.rank import Rule, clamp
from laser_kernels.selection import Plan, Selection, Target

if TYPE_CHECKING:
    import torch

FIND_BYTES = 16  # per element, beside the weight: LAPACK's SVD in float64 and its input, the most that a rule may need

Read = Callable[[str, "int | None"], "torch.Tensor"]


def _open(selection: Selection) -> Iterator[Target]:
    return (target for target in selection.targets if target.rank == 0)


def _experts(target: Target) -> Sequence[int | None]:
    return [None] if target.experts is None else range(target.experts)


def check_memory(selection: Selection, budget: int) -> None:
    """Raise CheckpointError if finding the rank of a single matrix may take more memory than the budget."""
    for target in _open(selection):
        need = target.rows * target.cols * (FIND_BYTES + DTYPE_BITS[stored_dtype(target.dtype)] // 8)
        if need > budget:
            raise CheckpointError(
                f"{target.name}: finding the rank of {target.rows}x{target.cols} may need {size(need)}, more than "
                f"the memory budget of {size(budget)}: raise --memory-budget, or give a number"
            )


def resolve(
    selection: Selection,
    plan: Plan,
    read: Read,
    known: Mapping[str, int] | None = None,
    progress: Progress | None = silent,
) -> tuple[Selection, dict[str, int]]:
    """The selection with every rank known, and what the rules gave (before any clamp) by the matrices' labels.

    Args:
        read: (name, expert or None) -> matrix (m, n), read one at a time.
        known: what an earlier run of the same plan and source found; nothing is read for these.
        progress: called with (numbers looked at, numbers in all, label); None: a bar or lines on stderr.
    """
    found: dict[str, int] = {}
    notes: list[str] = []
    total = sum(target.rows * target.cols * (target.experts or 1) for target in _open(selection))
    done = 0
    step = (progress or automatic()) if total else silent

    def ranks_of(target: Target) -> tuple[int, ...]:
        nonlocal done
        rule, ranks = plan.rules[target.rule].rank, []
        assert isinstance(rule, Rule)
        for expert in _experts(target):
            label = label_of(target.name, expert)
            given = (known or {}).get(label)
            found[label] = rule.found(read(target.name, expert)) if given is None else given
            rank, said = clamp(rule, found[label], target.rows, target.cols)
            ranks.append(rank)
            notes.extend([f"{label}: {said}"] if said else [])
            done += target.rows * target.cols
            step(done, total, label)
        return tuple(ranks)

    def resolved(target: Target) -> Target:
        if target.rank:
            return target
        ranks = ranks_of(target)
        return replace(target, rank=max(ranks), ranks=() if target.experts is None else ranks)

    targets = tuple(map(resolved, selection.targets))
    return replace(selection, targets=targets, notes=selection.notes + tuple(notes)), found


def recorded(destination: Path, reader: Reader, plan: Plan) -> dict[str, int]:
    """What an interrupted or finished run of this plan on this source found, by its journal or report in `destination`.

    Empty where there is none: whether `destination` fits at all is for others to say.
    """
    try:
        with open(destination / JOURNAL_NAME, "rb") as journal:
            run = json.loads(journal.readline())["run"]
        same = run["plan"] == plan.as_dict() and run["source"] == reader.fingerprint()
        return _ranks(run) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        report = json.loads((destination / REPORT_NAME).read_bytes())
        return _ranks(report["settings"]) if report["plan"] == plan.as_dict() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _ranks(record: Mapping[str, Any]) -> dict[str, int]:
    return {str(label): int(rank) for label, rank in record.get("ranks", {}).items()}
