"""Rules from text or YAML: "energy:0.9", "mergekit:max_rank=64,eps=1e-3", {energy: 0.9}, {mergekit: {max_rank: 64}}."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from laser_kernels.rank import Rule
from laser_kernels.ranks.marchenko_pastur import MarchenkoPastur
from laser_kernels.ranks.own import Energy, Fixed, Fraction, Frobenius, Knee, Nuclear, ParamBudget, Ratio, Threshold
from laser_kernels.ranks.tools import Asvd, Kohya, Laser, LyCORIS, Mergekit, Peft

_OWN: tuple[Any, ...] = (
    Fixed,
    Fraction,
    Energy,
    Frobenius,
    Nuclear,
    Ratio,
    Threshold,
    Knee,
    MarchenkoPastur,
    ParamBudget,
)
_TOOLS: tuple[Any, ...] = (Laser, Kohya, Peft, Mergekit, LyCORIS, Asvd)

# name -> class: every rule that text can ask for.
RULES: dict[str, Any] = {rule.name: rule for rule in _OWN + _TOOLS}


def from_spec(value: object) -> Rule:
    """The rule that `value` describes.

    Args:
        value: a Rule; an int (Fixed) or a float (Fraction); text NAME, NAME:VALUES or a number; or {NAME: VALUES}, where
            VALUES is one value, a list, or a mapping of the rule's parameters.

    Raises:
        ValueError: no such rule (the message lists those there are), or wrong parameters for it.
    """
    if isinstance(value, Rule):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Fixed(value) if isinstance(value, int) else Fraction(value)
    if isinstance(value, str):
        name, _, rest = value.strip().partition(":")
        if not rest and isinstance(number := _value(name), (int, float)) and not isinstance(number, bool):
            return from_spec(number)
        return _make(name, *_arguments(rest))
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, given),) = value.items()
        if isinstance(given, Mapping):
            return _make(name, [], {str(key): _value(each) for key, each in given.items()})
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        return _make(name, [_value(each) for each in given] if listed else [] if given is None else [_value(given)], {})
    raise ValueError(
        f"[laser_kernels] a rank rule is a number, text like energy:0.9, or a mapping like {{energy: 0.9}}; got {value!r}"
    )


def from_text(text: str) -> int | float | Rule:
    """A rank as a command line gives it: a count, a fraction, or a rule. Raises ValueError, saying what it may be."""
    number = _value(text)
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return number
    if not text[:1].isalpha():
        raise ValueError(f"must be a count (64), a fraction (0.1) or a rule (energy:0.9); got {text!r}")
    return from_spec(text)


def _value(word: Any) -> Any:
    """A word as a number, a truth value or None where it is one (YAML leaves 1e-3 a string)."""
    if not isinstance(word, str):
        return word
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(word.strip().lower(), word.strip())


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """ "0.9" or "64,eps=0.1" as positional and named arguments."""
    positional, named = [], {}
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, rest = piece.partition("=")
        if equals:
            named[key.strip()] = _value(rest)
        else:
            positional.append(_value(piece))
    return positional, named


def _make(name: object, positional: list[Any], named: dict[str, Any]) -> Rule:
    word = str(name).strip().lower().replace("-", "_")
    if word not in RULES:
        close = difflib.get_close_matches(word, RULES, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"[laser_kernels] unknown rank rule {name!r}{hint}: known rules are {', '.join(RULES)}")
    kind = RULES[word]
    fields = [field.name for field in dataclasses.fields(kind)]
    try:
        return kind(*positional, **named)
    except TypeError:
        takes = ", ".join(fields) or "nothing"
        got = ", ".join([*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())]) or "nothing"
        raise ValueError(f"[laser_kernels] the rank rule {word} takes {takes}; got {got}") from None
