"""All that is decided before a weight is reduced: which tensors, to what rank, and where every byte of the output goes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from laser_kernels.checkpoint.factored import as_factored, split_targets
from laser_kernels.checkpoint.layout import (
    DEFAULT_BUDGET,
    Group,
    ShardLayout,
    batching,
    check_budget,
    group_bytes,
    lay_out,
    output_index,
)
from laser_kernels.checkpoint.matrices import read_matrix
from laser_kernels.checkpoint.quantized import fp8_weights, without_quantization
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.resolve import check_memory, resolve
from laser_kernels.progress import Progress, silent
from laser_kernels.selection import Plan, Selection, select


@dataclass(frozen=True)
class Work:
    """All that is decided before a weight is reduced.

    Attributes:
        factored: the targets that become factors.
        batch_bytes: of weights that share a call.
        found: what rank rules gave for the matrices they had to see.
    """

    plan: Plan
    selection: Selection
    fp8: tuple[str, ...]
    factored: frozenset[str]
    layouts: tuple[ShardLayout, ...]
    notes: tuple[str, ...]
    batch_bytes: int
    found: Mapping[str, int]

    @property
    def groups(self) -> Iterator[Group]:
        return (step for layout in self.layouts for step in layout.steps if isinstance(step, Group))

    @property
    def output_bytes(self) -> int:
        return sum(layout.size for layout in self.layouts)

    @property
    def output_parameters(self) -> int:
        return sum(math.prod(entry.shape) for layout in self.layouts for entry in layout.entries)

    @property
    def source_parameters(self) -> int:
        saved = (len(g.matrices) * (g.rows * g.cols - g.written_numbers) for g in self.groups)
        return self.output_parameters + sum(saved)

    def config(self, source: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config.json of the output, None where it is the source's."""
        if not self.fp8 and not self.factored:
            return None
        plain = without_quantization(source) if self.fp8 else dict(source)
        ranks = {target.name: target.rank for target in self.selection.targets if target.name in self.factored}
        return as_factored(plain, ranks) if ranks else plain

    def index(self, reader: Reader) -> dict[str, Any] | None:
        """The index of the output, None where it is the source's or there is none."""
        if reader.index is None or not (self.fp8 or self.factored):
            return None
        return output_index(reader.index, self.layouts)


def as_plan(plan: str | os.PathLike[str] | Mapping[str, Any] | Plan) -> Plan:
    """A Plan from whatever names one: a YAML file, a mapping, a Plan."""
    if isinstance(plan, Plan):
        return plan
    return Plan.from_dict(plan) if isinstance(plan, Mapping) else Plan.from_yaml(plan)


def prepare(
    reader: Reader,
    plan: Plan,
    memory_budget: int | None = None,
    output: str = "dense",
    *,
    found: Mapping[str, int] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress | None = silent,
) -> Work:
    """Select targets and lay the output out, from the headers that `reader` has.

    Weights are read where a rank rule must see them: one at a time, on `device`, and not those of `found`
    (resolve.recorded). `device` and `workers` (devices.workers) also decide how many matrices share a call. `progress` is
    resolve's.
    """
    entries = [
        entry for shard in reader.shards for entry in sorted(shard.header.entries, key=lambda e: (e.begin, e.end))
    ]
    selection = select(entries, reader.config, plan)
    if memory_budget is not None:
        if memory_budget < 1:
            raise ValueError(f"memory_budget must be a number of bytes; got {memory_budget}")
        check_budget(selection.targets, memory_budget)
        check_memory(selection, memory_budget)
    selection, found = resolve(selection, plan, lambda *of: read_matrix(reader, *of).to(device), found, progress)
    fp8 = fp8_weights({entry.name: entry for entry in entries}, reader.config)
    factored, notes = split_targets(selection, reader) if output == "factored" else (frozenset[str](), ())
    shards = [(shard.file, shard.header) for shard in reader.shards]
    most = group_bytes(memory_budget or DEFAULT_BUDGET, device, workers)
    layouts = lay_out(shards, selection.targets, fp8, most, factored, batching(device).mixed)
    return Work(plan, selection, fp8, factored, layouts, selection.notes + notes, most, found)
