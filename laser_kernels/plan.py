"""A plan: rules that say which tensors are reduced and to what rank, read from YAML, mappings and command lines."""

from __future__ import annotations

import difflib
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from laser_kernels.architectures import ALIASES
from laser_kernels.rank import Rule as RankRule
from laser_kernels.ranks import from_spec

RULE_KEYS = ("targets", "layers", "rank")


@dataclass(frozen=True)
class Rule:
    """One line of a plan.

    Attributes:
        targets: aliases (q_proj k_proj v_proj out_proj fc_in fc_up fc_out attn mlp all) or `re:REGEX`, searched for
            anywhere in the tensor's name (anchor it with ^ and $ for the whole name).
        layers: the 0-based layers, or None for every tensor. A tensor without a layer number belongs to no layer.
        rank: a count, a fraction in (0, 1] of the short side, or a rule of laser_kernels.ranks.
    """

    targets: tuple[str, ...]
    rank: int | float | RankRule
    layers: frozenset[int] | None = None

    def as_dict(self) -> dict[str, Any]:
        layers = "all" if self.layers is None else layers_text(self.layers)
        rank = self.rank.spec if isinstance(self.rank, RankRule) else self.rank
        return {"targets": list(self.targets), "layers": layers, "rank": rank}


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


def parse_rank(value: object, what: str = "rank") -> int | float | RankRule:
    """A rank as a count >= 1, a fraction in (0, 1], or a rule: its own text or mapping (laser_kernels.ranks.from_spec)."""
    if isinstance(value, RankRule | Mapping) or (isinstance(value, str) and value[:1].isalpha()):
        try:
            return from_spec(value)
        except ValueError as error:
            raise ValueError(f"{what}: {str(error).removeprefix('[laser_kernels] ')}") from None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 < float(value) <= 1.0:
        return float(value)
    raise ValueError(
        f"{what}: rank must be a whole number (64), a fraction in (0, 1] (0.1) or a rule (energy:0.9); got {value!r}"
    )


def parse_layers(value: object, what: str = "layers") -> frozenset[int] | None:
    """Layers as a set, None for all: 27, "27", "20-29", "3,20-29", "all", or a list of those."""
    if value is None or value == "all":
        return None
    words: list[Any] = list(value) if isinstance(value, list | tuple | range | Set) else str(value).split(",")
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


def layers_text(layers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
