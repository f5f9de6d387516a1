"""Which family of architectures.yaml a checkpoint belongs to, and which tensors an alias names in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("fc_in", "fc_up", "fc_out")
GROUPS = {"attn": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}
ALIASES = (*ATTENTION, *MLP, *GROUPS)

# Where a layer's number stands in a name that no family knows.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|blk)\.(\d+)(?:\.|$)")
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Architecture:
    """A family: `patterns` maps each single alias it has to a regular expression over whole tensor names."""

    name: str
    model_types: tuple[str, ...]
    patterns: Mapping[str, re.Pattern[str]]

    def aliases_of(self, tensor: str) -> tuple[str, ...]:
        """The single aliases (no groups) that name `tensor`: several for a fused one, none for most."""
        return tuple(alias for alias, pattern in self.patterns.items() if pattern.fullmatch(tensor))


def _pattern(prefixes: list[str], names: str | list[str]) -> re.Pattern[str]:
    def literal(text: str) -> str:
        return re.escape(text).replace(r"\{L\}", r"\d+").replace(r"\{E\}", r"\d+")

    heads = "|".join(map(literal, prefixes))
    tails = "|".join(map(literal, [names] if isinstance(names, str) else names))
    return re.compile(rf"(?:{heads})(?:{tails})(?:\.weight)?")


@cache
def architectures() -> tuple[Architecture, ...]:
    """All families of architectures.yaml, in its order."""
    table = yaml.safe_load(resources.files("laser_kernels").joinpath("architectures.yaml").read_text("utf-8"))
    return tuple(
        Architecture(
            name,
            tuple(family["model_types"]),
            {
                alias: _pattern(family["layers"], names)
                for group in ("attn", "mlp")
                for alias, names in family[group].items()
            },
        )
        for name, family in table.items()
    )


def detect(config: Mapping[str, Any], names: Collection[str]) -> Architecture | None:
    """The family of a checkpoint: by the model_type of its config (or of its text_config), else by its names.

    A model_type whose family matches none of the names counts for nothing (remote code, converted folders). By names
    the family with the most matches wins; the first in the file wins a tie.
    """

    def matches(family: Architecture) -> int:
        return sum(1 for name in names if family.aliases_of(name))

    text = config.get("text_config")
    types = [
        config.get("model_type"),
        text.get("model_type") if isinstance(text, Mapping) else None,
    ]
    for family in architectures():
        known = any(kind in family.model_types for kind in types if kind)
        if known and any(family.aliases_of(name) for name in names):
            return family
    best = max(architectures(), key=matches)  # max keeps the first of equals
    return best if matches(best) else None


def layer_of(name: str) -> int | None:
    """The 0-based layer that a tensor's name gives, None where it gives none."""
    match = _LAYER.search(name) or _NUMBER.search(name)
    return int(match.group(1)) if match else None
