"""The spectrum of every matrix of a checkpoint, read one at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from laser_kernels.checkpoint.layout import label_of
from laser_kernels.checkpoint.matrices import read_matrix
from laser_kernels.checkpoint.quantized import SCALE_SUFFIX, packed_weights, refuse_packed
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.shard import Entry
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.plan import Plan, Rule, parse_layers, parse_targets
from laser_kernels.progress import Progress, silent
from laser_kernels.selection import reducible, select
from laser_kernels.spectra import SpectrumStats, spectrum_stats


@dataclass(frozen=True)
class Row:
    """One matrix, or one tensor that is none. `stats` is None where it was skipped, and `why` says so.

    Attributes:
        tensor: its name in the checkpoint.
        expert: which of the matrices of a 3-D tensor of fused experts; None for others.
    """

    tensor: str
    expert: int | None
    stats: SpectrumStats | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """The module's name, as Spectrum has it: the tensor's without ".weight"; experts numbered in brackets."""
        return label_of(self.tensor.removesuffix(".weight"), self.expert)

    @property
    def layer(self) -> int | None:
        """The first number in the name."""
        numbers = [part for part in self.tensor.split(".") if part.isdigit()]
        return int(numbers[0]) if numbers else None

    @property
    def type(self) -> str:
        """Spectrum's layer type: what follows the first number of the name, or all of it."""
        parts = self.tensor.removesuffix(".weight").split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
        return ".".join(parts[at + 1 :])


def scan(
    folder: str | os.PathLike[str],
    *,
    targets: str | Sequence[str] | None = None,
    layers: str | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Row]:
    """A Row for every matrix of a checkpoint, and for every tensor that was skipped, in the order of the tensors.

    Every 2-D floating tensor is looked at (block-scaled fp8 by its bf16 values), and each expert of fused 3-D ones. In
    memory at any time: one matrix, its A^T A, and 64 MiB.

    Args:
        targets, layers: as for `reduce`, to look at these only. None: all.
        progress: called with (bytes done, bytes in all, name).

    Raises:
        CheckpointError: no checkpoint that can be read, or a target that names nothing in it.
    """
    with Reader(folder) as reader:
        entries = [located.entry for located in reader.tensors.values()]
        asked = _asked(entries, reader, targets, layers)
        total, done, rows = sum(entry.nbytes for entry in asked), 0, []
        by_name = {entry.name: entry for entry in entries}
        for entry in asked:
            why = _unreadable(entry, by_name, reader)
            if why:
                rows.append(Row(entry.name, None, why=why))
            else:
                experts = [None] if len(entry.shape) == 2 else range(entry.shape[0])
                rows += [_row(reader, entry.name, expert, device) for expert in experts]
            done += entry.nbytes
            progress(done, total, entry.name)
    return rows


def _asked(
    entries: Sequence[Entry], reader: Reader, targets: str | Sequence[str] | None, layers: str | None
) -> list[Entry]:
    if targets is None and layers is None:
        return [entry for entry in entries if not entry.name.endswith(SCALE_SUFFIX)]
    words = parse_targets("re:." if targets is None else targets, "targets")
    plan = Plan((Rule(words, 1, parse_layers(layers)),))
    chosen = {target.name for target in select(entries, reader.config, plan).targets}
    return [entry for entry in entries if entry.name in chosen]


def _unreadable(entry: Entry, tensors: dict[str, Entry], reader: Reader) -> str:
    """Why a tensor has no spectrum here; empty where it has."""
    if any(entry.name.startswith(weight.removesuffix(".weight")) for weight in packed_weights(tensors)):
        return "stored quantized: scan the checkpoint it was made from"
    if not reducible(entry):
        return f"no floating matrix: {entry.dtype} {'x'.join(map(str, entry.shape)) or 'scalar'}"
    try:
        refuse_packed(entry.name, entry, {}, tensors, reader.config)
    except CheckpointError as error:
        return str(error).removeprefix(f"{entry.name}: ")
    return ""


def _row(reader: Reader, name: str, expert: int | None, device: str) -> Row:
    try:
        return Row(name, expert, spectrum_stats(read_matrix(reader, name, expert).to(device)))
    except NonFiniteError:
        return Row(name, expert, why="holds NaN or Inf")
