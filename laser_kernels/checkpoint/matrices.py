"""One matrix of a checkpoint, read by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laser_kernels.checkpoint import pipeline
from laser_kernels.checkpoint.layout import Group, Matrix
from laser_kernels.checkpoint.reader import Reader

if TYPE_CHECKING:
    import torch


def read_matrix(reader: Reader, name: str, expert: int | None) -> torch.Tensor:
    """The tensor `name`, or expert `expert` of a fused one, on the CPU; block-scaled fp8 as bfloat16."""
    located = reader.tensors[name]
    entry = located.entry
    count = entry.shape[0] if len(entry.shape) == 3 else 1
    offset = located.offset + (expert or 0) * (entry.nbytes // count)
    rows, cols = entry.shape[-2:]
    group = Group(rows, cols, entry.dtype, matrices=(Matrix(name, expert, 0, offset, 0, 0),))
    return pipeline.load(reader, located.shard, group).tensor[0]
