"""Which tensors are reduced, and to what rank: rules -> targets. Pure: sees names, shapes and dtypes only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laser_kernels.architectures import ALIASES, GROUPS, Architecture, detect, layer_of
from laser_kernels.checkpoint.quantized import FP8_DTYPES, SCALE_SUFFIX, packed_weights, refuse_packed
from laser_kernels.checkpoint.shard import Entry
from laser_kernels.errors import CheckpointError
from laser_kernels.plan import Plan, Rule, layers_text, parse_layers, parse_rank, parse_targets
from laser_kernels.rank import Rule as RankRule
from laser_kernels.rank import clamp, resolve_rank

__all__ = ["Plan", "Rule", "Selection", "Target", "parse_layers", "parse_rank", "parse_targets", "select"]

FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Target:
    """A tensor to reduce. `shape` is (m, n), or (E, m, n) for fused experts, each of which is reduced by itself.

    `rank`: 0 where a rank rule must first see the weight (checkpoint/resolve.py); `ranks`: those that it found for fused
    experts, of which `rank` is the largest.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rank: int
    rule: int
    ranks: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.shape[-2]

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def experts(self) -> int | None:
        return self.shape[0] if len(self.shape) == 3 else None

    def rank_of(self, expert: int) -> int:
        return self.ranks[expert] if self.ranks else self.rank


@dataclass(frozen=True)
class Selection:
    """What a plan means for one checkpoint: targets in the order of the tensors, and what a reader should know."""

    targets: tuple[Target, ...]
    architecture: str | None
    notes: tuple[str, ...] = ()


def reducible(entry: Entry) -> bool:
    """Whether a tensor is a floating matrix, or a stack of experts' matrices."""
    matrices = len(entry.shape) == 2 or (len(entry.shape) == 3 and "expert" in entry.name)
    return matrices and entry.dtype in FLOATING + FP8_DTYPES and min(entry.shape) > 0


class _Matcher:
    """Answers "does this target name this tensor", asking the architecture once per tensor."""

    def __init__(self, architecture: Architecture | None):
        self.architecture = architecture
        self._aliases: dict[str, tuple[str, ...]] = {}

    def hits(self, word: str, name: str) -> bool:
        if word.startswith("re:"):
            return re.search(word[3:], name) is not None
        if name not in self._aliases:
            self._aliases[name] = self.architecture.aliases_of(name) if self.architecture else ()
        wanted = GROUPS.get(word, (word,))
        return any(alias in wanted for alias in self._aliases[name])


def _examples(names: Sequence[str]) -> str:
    matrices = [name for name in names if layer_of(name) is not None and name.endswith("weight")] or list(names)
    return ", ".join(matrices[:4])


def select(entries: Sequence[Entry], config: Mapping[str, Any], plan: Plan) -> Selection:
    """The targets of `plan` among `entries` (all tensors of a checkpoint, in order).

    Raises:
        CheckpointError: a target or a rule matches nothing, a rank does not fit a tensor, or a tensor that a rule asks
            for is stored quantized in a form that cannot be read.
    """
    names = [entry.name for entry in entries]
    architecture = detect(config, names)
    matcher = _Matcher(architecture)
    by_name = {entry.name: entry for entry in entries}
    scales = {name for name in names if name.endswith(SCALE_SUFFIX)}
    packed = packed_weights(names)
    notes: list[str] = []
    rule_of: dict[str, int] = {}
    for number, rule in enumerate(plan.rules):
        hits: dict[str, None] = {}
        for word in rule.targets:
            named = [entry for entry in entries if entry.name not in scales and matcher.hits(word, entry.name)]
            asked = [weight for weight in packed if matcher.hits(word, weight)] + [entry.name for entry in named]
            for name in asked:
                if rule.layers is None or layer_of(name) in rule.layers:
                    refuse_packed(name, by_name.get(name), packed, by_name, config)
            found = [entry.name for entry in named if reducible(entry)]
            if not found:
                raise CheckpointError(_nothing(word, names, architecture))
            hits.update(dict.fromkeys(found))
        numbers = {layer for name in hits if (layer := layer_of(name)) is not None}
        chosen = [name for name in hits if rule.layers is None or layer_of(name) in rule.layers]
        if not chosen:
            have = f"has layers {layers_text(numbers)}" if numbers else "has no layer numbers"
            raise CheckpointError(
                f"rule {number + 1}: layers {layers_text(rule.layers or ())} match nothing: what "
                f"{', '.join(rule.targets)} names here {have} (layers count from 0)"
            )
        missing = (rule.layers or frozenset()) - numbers
        if missing:
            notes.append(f"rule {number + 1}: there is nothing to reduce in layers {layers_text(missing)}")
        fresh = [name for name in chosen if name not in rule_of]
        if not fresh:
            notes.append(f"rule {number + 1} changes nothing: earlier rules take all of its tensors")
        rule_of.update(dict.fromkeys(fresh, number))
    targets = []
    for name in names:
        if name in rule_of:
            entry, number = by_name[name], rule_of[name]
            rank, said = _rank(plan.rules[number].rank, entry)
            notes += [f"{name}: {said}"] if said else []
            targets.append(Target(name, entry.shape, entry.dtype, rank, number))
    return Selection(tuple(targets), architecture.name if architecture else None, tuple(notes))


def _rank(rank: int | float | RankRule, entry: Entry) -> tuple[int, str | None]:
    """The rank that the tensor's shape gives, 0 where it takes its values; and what was clamped."""
    rows, cols = entry.shape[-2:]
    if isinstance(rank, RankRule):
        found = rank.of_shape(rows, cols)
        return (0, None) if found is None else clamp(rank, found, rows, cols)
    try:
        return resolve_rank(rank, rows, cols), None
    except ValueError as error:
        raise CheckpointError(f"{entry.name}: {error}") from None


def _nothing(word: str, names: Sequence[str], architecture: Architecture | None) -> str:
    """Why `word` matches nothing, with what could be asked for instead."""
    if word.startswith("re:"):
        hits = [name for name in names if re.search(word[3:], name)]
        why = f"{hits[0]} and its like are no floating matrices" if hits else "no tensor's name contains it"
    elif architecture is None:
        why = "these names belong to no known architecture, so only re:REGEX can be used"
    else:
        why = f"the {architecture.name} architecture has {', '.join(architecture.patterns)}"
    return (
        f"target {word!r} matches nothing: {why}. Targets are {', '.join(ALIASES)} or re:REGEX; "
        f"tensors here are, for example, {_examples(names)}"
    )
