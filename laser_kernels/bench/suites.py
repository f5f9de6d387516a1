"""Suites: named lists of problems, package data in laser_kernels/suites/*.yaml."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from laser_kernels.bench.matrices import FAMILIES
from laser_kernels.bench.problem import DTYPES, OPS, Problem

SPREAD = ("shape", "rank", "dtype", "tol", "source", "batch", "op")  # a list of values makes a problem for each
KEYS = {*SPREAD, "name", "count", "checkpoint", "targets", "inputs"}


@dataclass(frozen=True)
class Options:
    """What a run may spend.

    Attributes:
        repeats: interleaved rounds.
        limit: seconds that one call may take before its process is stopped.
        tuning: seconds per peer and problem to find its setting.
        loop: matrices of a batch that a peer without batches is run on; its time is compared per matrix.
    """

    repeats: int = 5
    limit: float = 60.0
    tuning: float = 30.0
    loop: int = 8


@dataclass(frozen=True)
class Suite:
    """Problems, the methods they are asked of (all where empty), and what a run may spend."""

    name: str
    about: str
    problems: tuple[Problem, ...]
    options: Options = field(default_factory=Options)
    peers: tuple[str, ...] | None = None
    routes: tuple[str, ...] = ("auto",)
    measures: str = "methods"  # or "products": precision.py


def known() -> list[str]:
    """Names of the suites."""
    return sorted(
        file.name[:-5]
        for file in resources.files("laser_kernels").joinpath("suites").iterdir()
        if file.name.endswith(".yaml")
    )


def parse_shape(text: str) -> tuple[int, int]:
    """4096x11008."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text))
    if not found:
        raise ValueError(f"shape must look like 4096x11008; got {text!r}")
    return int(found[1]), int(found[2])


def _choice(value: str, allowed: dict[str, Any] | tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def problem(shape: str, **values: Any) -> Problem:
    """A problem from text and numbers, checked."""
    rows, cols = parse_shape(shape)
    dtype = values.pop("dtype", "float32")
    values["dtype"] = _choice(DTYPES.get(dtype, dtype), tuple(DTYPES.values()), "dtype")
    _choice(values.get("op", "low_rank"), OPS, "op")
    _choice(values.get("source", "llm-like"), (*FAMILIES, "checkpoint"), "source")
    if not (isinstance(values.get("batch", 1), int) and values.get("batch", 1) > 0):
        raise ValueError(f"batch must be a positive count; got {values['batch']!r}")
    made = Problem(rows, cols, **values)
    _ = made.resolved  # says what is wrong with the rank
    return made


def from_checkpoint(folder: str, targets: str, ranks: list[int | float], **values: Any) -> list[Problem]:
    """One problem per shape and dtype among a checkpoint's matrices and per rank: its real weights, at most eight."""
    from laser_kernels.checkpoint.pipeline import torch_dtype
    from laser_kernels.checkpoint.reader import Reader
    from laser_kernels.selection import Plan, Rule, parse_targets, select

    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder}: no such folder: `checkpoint` names a Hugging Face folder (make demo-model makes .cache/smollm2-135m)"
        )
    shapes: dict[tuple[tuple[int, ...], str], list[str]] = {}
    with Reader(folder) as reader:
        plan = Plan((Rule(parse_targets(targets, "targets"), 1, None),))
        for target in select([t.entry for t in reader.tensors.values()], reader.config, plan).targets:
            if len(target.shape) == 2:
                shapes.setdefault((target.shape, target.dtype), []).append(target.name)
    found = []
    for (shape, stored), names in shapes.items():
        step = max(1, len(names) // 8)
        some = tuple(names[::step][:8])
        dtype = str(torch_dtype(stored)).removeprefix("torch.")
        found += [
            Problem(
                shape[0], shape[1], rank=rank, batch=len(some), dtype=dtype, source="checkpoint", names=some, folder=folder,
                count=len(names), **values,
            )
            for rank in ranks
        ]  # fmt: skip
    return found


def _problems(entry: dict[str, Any]) -> list[Problem]:
    if unknown := set(entry) - KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}; known: {', '.join(sorted(KEYS))}")
    if "checkpoint" in entry:
        ranks = entry["rank"] if isinstance(entry["rank"], list) else [entry["rank"]]
        return from_checkpoint(entry["checkpoint"], entry.get("targets", "all"), ranks)
    lists = {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in SPREAD if key in entry}
    rest = {key: value for key, value in entry.items() if key not in SPREAD}
    return [problem(**dict(zip(lists, values, strict=True)), **rest) for values in itertools.product(*lists.values())]


def load(name: str) -> Suite:
    """
    Raises:
        ValueError: there is no such suite (the message lists those there are), or its file is wrong.
    """
    if name not in known():
        raise ValueError(f"no suite {name!r}; known: {', '.join(known())}")
    data = yaml.safe_load(resources.files("laser_kernels").joinpath("suites").joinpath(f"{name}.yaml").read_text())
    problems = [made for entry in data["problems"] for made in _problems(entry)]
    options = Options(**{known.name: data[known.name] for known in fields(Options) if known.name in data})
    peers = tuple(data["peers"]) if "peers" in data else None
    routes, measures = tuple(data.get("routes", ["auto"])), data.get("measures", "methods")
    return Suite(name, data["about"], tuple(problems), options, peers, routes, measures)
