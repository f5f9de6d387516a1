"""Which tensors are reduced, and to what rank: rules -> targets. Pure: sees names, shapes and dtypes only."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from laser_kernels.architectures import ALIASES, GROUPS, Architecture, detect, layer_of
from laser_kernels.errors import CheckpointError
from laser_kernels.quantized import FP8_DTYPES, SCALE_SUFFIX, packed_weights, refuse_packed
from laser_kernels.rank import resolve_rank
from laser_kernels.shard import Entry

FLOATING = ("F64", "F32", "F16", "BF16")
RULE_KEYS = ("targets", "layers", "rank")


@dataclass(frozen=True)
class Rule:
    """One line of a plan.

    Attributes:
        targets: aliases (q_proj k_proj v_proj out_proj fc_in fc_up fc_out attn mlp all) or `re:REGEX`, searched for
            anywhere in the tensor's name (anchor it with ^ and $ for the whole name).
        layers: the 0-based layers, or None for every tensor. A tensor without a layer number belongs to no layer.
        rank: a count, or a fraction in (0, 1] of the short side.
    """

    targets: tuple[str, ...]
    rank: int | float
    layers: frozenset[int] | None = None

    def as_dict(self) -> dict[str, Any]:
        layers = "all" if self.layers is None else _layers_text(self.layers)
        return {"targets": list(self.targets), "layers": layers, "rank": self.rank}


@dataclass(frozen=True)
class Plan:
    """Rules in order: for each tensor the first one that matches decides."""

    rules: tuple[Rule, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"rules": [rule.as_dict() for rule in self.rules]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The plan of `{"rules": [{"targets": ..., "layers": ..., "rank": ...}]}`.

        Raises:
            ValueError: for an unknown or missing key, or a value that makes no sense; it names the known keys.
        """
        _known(data, ("rules",), "the plan")
        rules = data.get("rules")
        if not isinstance(rules, Sequence) or isinstance(rules, str) or not rules:
            raise ValueError(f"a plan needs a non-empty list of rules; got {rules!r:.80}")
        return Plan(tuple(_rule(rule, f"rule {number}") for number, rule in enumerate(rules, 1)))

    @staticmethod
    def from_yaml(path: str | os.PathLike[str]) -> Plan:
        """The plan in a YAML file. Errors name the file."""
        try:
            return Plan.from_dict(yaml.safe_load(Path(path).read_text("utf-8")))
        except OSError as error:
            raise ValueError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


@dataclass(frozen=True)
class Target:
    """A tensor to reduce. `shape` is (m, n), or (E, m, n) for fused experts, each of which is reduced by itself."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rank: int
    rule: int

    @property
    def rows(self) -> int:
        return self.shape[-2]

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def experts(self) -> int | None:
        return self.shape[0] if len(self.shape) == 3 else None


@dataclass(frozen=True)
class Selection:
    """What a plan means for one checkpoint: targets in the order of the tensors, and what a reader should know."""

    targets: tuple[Target, ...]
    architecture: str | None
    notes: tuple[str, ...] = ()


def _known(data: object, keys: Sequence[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a mapping with the keys {', '.join(keys)}; got {data!r:.80}")
    for key in data:
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown key {key!r} in {what}{hint}: known keys are {', '.join(keys)}")


def _rule(data: object, what: str) -> Rule:
    _known(data, RULE_KEYS, what)
    assert isinstance(data, Mapping)
    for key in ("targets", "rank"):
        if key not in data:
            raise ValueError(f"{what} lacks {key!r}: a rule has {', '.join(RULE_KEYS)}")
    return Rule(
        parse_targets(data["targets"], what),
        parse_rank(data["rank"], what),
        parse_layers(data.get("layers"), what),
    )


def parse_targets(value: object, what: str = "targets") -> tuple[str, ...]:
    """Targets as a tuple, from a list or a comma-separated string.

    A comma in a regular expression (`re:h\\.\\d{1,2}`) is kept: what follows it is neither an alias nor a `re:`.
    """
    words: list[str] = []
    if isinstance(value, str):
        for piece in value.split(","):
            if words and words[-1].startswith("re:") and piece not in ALIASES and not piece.startswith("re:"):
                words[-1] += "," + piece
            elif piece.strip():
                words.append(piece.strip())
    elif isinstance(value, Sequence) and all(isinstance(word, str) for word in value):
        words = list(value)
    else:
        raise ValueError(f"{what}: targets must be a name or a list of names; got {value!r:.80}")
    if not words:
        raise ValueError(f"{what}: no target given: use {', '.join(ALIASES)} or re:REGEX")
    for word in words:
        if word.startswith("re:"):
            try:
                re.compile(word[3:])
            except re.error as error:
                raise ValueError(f"{what}: {word!r} is not a regular expression ({error})") from None
        elif word not in ALIASES:
            close = difflib.get_close_matches(word, ALIASES, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{what}: unknown target {word!r}{hint}: use {', '.join(ALIASES)} or re:REGEX")
    return tuple(words)


def parse_rank(value: object, what: str = "rank") -> int | float:
    """A rank as a count >= 1 or a fraction in (0, 1]."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if good and ((isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0.0 < value <= 1.0)):
        return value  # type: ignore[return-value]
    raise ValueError(f"{what}: rank must be a whole number (64) or a fraction in (0, 1] (0.1); got {value!r}")


def parse_layers(value: object, what: str = "layers") -> frozenset[int] | None:
    """Layers as a set, None for all: 27, "27", "20-29", "3,20-29", "all", or a list of those."""
    if value is None or value == "all":
        return None
    words: list[Any] = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    layers: set[int] = set()
    for word in words:
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", str(word))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if isinstance(word, bool) or first > last:
            raise ValueError(f"{what}: layers must look like 27, 20-29, all or a list of those; got {word!r}")
        layers.update(range(first, last + 1))
    if not layers:
        raise ValueError(f"{what}: no layer given: use 27, 20-29 or all")
    return frozenset(layers)


def _layers_text(layers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _reducible(entry: Entry) -> bool:
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
            found = [entry.name for entry in named if _reducible(entry)]
            if not found:
                raise CheckpointError(_nothing(word, names, architecture))
            hits.update(dict.fromkeys(found))
        numbers = {layer for name in hits if (layer := layer_of(name)) is not None}
        chosen = [name for name in hits if rule.layers is None or layer_of(name) in rule.layers]
        if not chosen:
            have = f"has layers {_layers_text(numbers)}" if numbers else "has no layer numbers"
            raise CheckpointError(
                f"rule {number + 1}: layers {_layers_text(rule.layers or ())} match nothing: what "
                f"{', '.join(rule.targets)} names here {have} (layers count from 0)"
            )
        missing = (rule.layers or frozenset()) - numbers
        if missing:
            notes.append(f"rule {number + 1}: there is nothing to reduce in layers {_layers_text(missing)}")
        fresh = [name for name in chosen if name not in rule_of]
        if not fresh:
            notes.append(f"rule {number + 1} changes nothing: earlier rules take all of its tensors")
        rule_of.update(dict.fromkeys(fresh, number))
    targets = []
    for name in names:
        if name in rule_of:
            entry, number = by_name[name], rule_of[name]
            try:
                rank = resolve_rank(plan.rules[number].rank, *entry.shape[-2:])
            except ValueError as error:
                raise CheckpointError(f"{name}: {error}") from None
            targets.append(Target(name, entry.shape, entry.dtype, rank, number))
    return Selection(tuple(targets), architecture.name if architecture else None, tuple(notes))


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
