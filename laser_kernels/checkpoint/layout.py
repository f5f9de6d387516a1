"""What DST will look like, byte by byte, and the steps that make it: a pure function of headers, targets and batch size.

Every byte of every output file has its place before the first one is read, so steps may run in any order, at any time,
once or twice. What is left to do never changes what a step is: that makes a resumed run bitwise the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from laser_kernels.checkpoint.quantized import scale_name
from laser_kernels.checkpoint.shard import DTYPE_BITS, Entry, Header, build_header
from laser_kernels.console import size
from laser_kernels.errors import CheckpointError
from laser_kernels.factors import factor_names, factor_shapes
from laser_kernels.selection import Target

COPY_BYTES = 256 << 20  # a long copy is cut, so that finished matrices need not wait behind it
WORK_BYTES = 12  # per element, what a reduction holds beside the weight: two float32 copies and the bases
DEFAULT_BUDGET = 4 << 30


class Batching(NamedTuple):
    """How much is worked on at a time on one kind of device.

    Attributes:
        most: bytes of weights beyond which a larger batch gains little.
        parts: one part in so many of the memory budget is for weights in flight.
        waiting: batches that the budget has room for beside those that workers hold: being read, being written, spare.
        mixed: matrices of several ranks go together; `low_rank` sees which of them share a call (dispatch.share_ranks).
    """

    most: int
    parts: int
    waiting: int
    mixed: bool


# CPU: measured; three quarters of the budget are workspace (float32 copies and bases). GPU: by the cost model a bfloat16
# 4096x4096 at 10 % takes 14.3, 5.2, 3.7, 2.9 ms in batches of 2, 8, 16, 32; workspace is the device's, and the host holds a
# worker's batch once more, pinned.
BATCHING = {"cpu": Batching(64 << 20, 4, 3, False), "cuda": Batching(1 << 30, 2, 2, True)}

Kind = TypeVar("Kind", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Copy:
    """`nbytes` bytes that are the same in both files; offsets count from the start of the file."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True)
class Convert:
    """An fp8 weight that is only to become bf16."""

    name: str
    target: int
    nbytes: int


def label_of(name: str, expert: int | None) -> str:
    """What a report calls a matrix: the tensor's name, with its expert's number where it has several."""
    return name if expert is None else f"{name}[{expert}]"


def key_of(label: str) -> int:
    """What keys the random sketch of a matrix: a hash of its name, whatever else is reduced beside it."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Named:
    """A tensor, or expert `index` of one, wherever it lies."""

    name: str
    index: int | None

    @property
    def label(self) -> str:
        return label_of(self.name, self.index)

    @property
    def key(self) -> int:
        return key_of(self.label)


@dataclass(frozen=True)
class Matrix(Named):
    """One matrix of a checkpoint to reduce. Offsets count from the start of the files."""

    order: int
    source: int
    target: int
    rank: int


@dataclass(frozen=True)
class Group:
    """Matrices of one shape and dtype that are reduced together. `dtype` is that of the source.

    What they become is A_r, or, `factored` and then all of one rank, A (r, n) and behind it B (m, r): in the file as in
    memory, where the factors take the beginning of the place that the matrix had.
    """

    rows: int
    cols: int
    dtype: str
    factored: bool = False
    matrices: tuple[Matrix, ...] = ()

    @property
    def ranks(self) -> list[int]:
        return [matrix.rank for matrix in self.matrices]

    @property
    def stored_dtype(self) -> str:
        return stored_dtype(self.dtype)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one matrix in the dtype that is written."""
        return self.rows * self.cols * DTYPE_BITS[self.stored_dtype] // 8

    @property
    def written_numbers(self) -> int:
        """Numbers that are written for one matrix."""
        return self.matrices[0].rank * (self.rows + self.cols) if self.factored else self.rows * self.cols

    @property
    def written_bytes(self) -> int:
        """Bytes that are written for one matrix."""
        return self.written_numbers * DTYPE_BITS[self.stored_dtype] // 8

    @property
    def nbytes(self) -> int:
        return self.matrix_bytes * len(self.matrices)


Step = Copy | Convert | Group


@dataclass(frozen=True)
class ShardLayout:
    """One output file: its first bytes, its entries (in the order of the file), its size, and what fills the rest."""

    file: str
    source: int
    header: bytes
    entries: tuple[Entry, ...]
    size: int
    steps: tuple[Step, ...]


def stored_dtype(dtype: str) -> str:
    """The dtype a tensor is written in: its own, bf16 for block-scaled fp8."""
    return "BF16" if dtype.startswith("F8_") else dtype


def batching(device: str) -> Batching:
    """That of a device: cpu, cuda or cuda:N; any other is taken for a CPU."""
    return BATCHING["cuda" if device.startswith("cuda") else "cpu"]


def group_bytes(budget: int, device: str = "cpu", workers: int = 1) -> int:
    """How many bytes of weights are reduced in one call under a memory budget."""
    how = batching(device)
    return max(1, min(how.most, budget // (how.parts * (workers + how.waiting))))


def batches(items: Iterable[tuple[Kind, int, Item]], limit: int) -> Iterator[tuple[Kind, list[Item]]]:
    """Items (kind, nbytes, item) of one kind together, in their order, with at most `limit` bytes beyond the first."""
    waiting: dict[Kind, list[Item]] = {}
    for kind, nbytes, item in items:
        members = waiting.setdefault(kind, [])
        if members and (len(members) + 1) * nbytes > limit:
            yield kind, members
            members = waiting[kind] = []
        members.append(item)
    yield from waiting.items()


def check_budget(targets: Sequence[Target], budget: int) -> None:
    """Raise CheckpointError if a single matrix needs more memory than the budget."""
    for target in targets:
        elements = target.rows * target.cols
        need = elements * (WORK_BYTES + DTYPE_BITS[stored_dtype(target.dtype)] // 8)
        if need > budget:
            raise CheckpointError(
                f"{target.name}: reducing {target.rows}x{target.cols} needs about {size(need)}, more than the memory "
                f"budget of {size(budget)}: raise --memory-budget"
            )


def lay_out(
    shards: Sequence[tuple[str, Header]],
    targets: Sequence[Target],
    fp8: Collection[str],
    most: int,
    factored: Collection[str] = (),
    mixed: bool = False,
) -> tuple[ShardLayout, ...]:
    """The output files for the source `shards` (name, header), in their order.

    Args:
        targets: what is reduced, in the order of the tensors.
        fp8: the block-scaled fp8 weights; all of them become bf16 and their scales are left out.
        most: bytes of weights that share a call (group_bytes).
        factored: the targets that become factors.
        mixed: as in Batching; factors of several ranks never go together.
    """
    chosen = {target.name: (order, target) for order, target in enumerate(targets)}
    layouts = []
    for position, (file, header) in enumerate(shards):
        places = _places(header, set(fp8), {name: chosen[name][1] for name in factored})
        if places is None:
            continue  # nothing but scales
        raw, entries = places
        at = {entry.name: len(raw) + entry.begin for entry in entries}
        steps = (*_copies(header, at, chosen, fp8), *_groups(header, at, chosen, most, factored, mixed))
        end = max((entry.end for entry in entries), default=0)
        layouts.append(ShardLayout(file, position, raw, entries, len(raw) + end, steps))
    return tuple(layouts)


def _places(header: Header, fp8: set[str], factored: Mapping[str, Target]) -> tuple[bytes, tuple[Entry, ...]] | None:
    """Header bytes and entries of the output: the source's own where no dtype, name or shape changes."""
    scales = {scale_name(name) for name in fp8}
    kept = [entry for entry in header.entries if entry.name not in scales]
    if len(kept) == len(header.entries) and not any(entry.name in fp8 or entry.name in factored for entry in kept):
        return header.raw, header.entries
    if not kept:
        return None
    for entry in kept:
        if entry.dtype not in DTYPE_BITS:
            raise CheckpointError(f"{entry.name}: cannot move a tensor of the unknown dtype {entry.dtype!r}")
    kept.sort(key=lambda entry: (entry.begin, entry.end))
    shaped: list[tuple[str, str, tuple[int, ...]]] = []
    for e in kept:
        dtype = stored_dtype(e.dtype) if e.name in fp8 else e.dtype
        if e.name in factored:
            target = factored[e.name]
            names, shapes = factor_names(e.name), factor_shapes(target.rows, target.cols, target.rank)
            shaped += [(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]
        else:
            shaped.append((e.name, dtype, e.shape))
    return build_header(shaped, header.metadata)


def _copies(
    header: Header, at: Mapping[str, int], chosen: Collection[str], fp8: Collection[str]
) -> Iterator[Copy | Convert]:
    """Steps for what is not reduced; neighbours that stay neighbours are copied together."""
    run: Copy | None = None
    for entry in sorted(header.entries, key=lambda e: (e.begin, e.end)):
        if entry.name in chosen or entry.name not in at or entry.nbytes == 0:
            continue
        if entry.name in fp8:
            yield Convert(entry.name, at[entry.name], 2 * entry.nbytes)
            continue
        source, target = header.data_start + entry.begin, at[entry.name]
        if run and run.source + run.nbytes == source and run.target + run.nbytes == target:
            run = Copy(run.source, run.target, run.nbytes + entry.nbytes)
        else:
            if run:
                yield from _cut(run)
            run = Copy(source, target, entry.nbytes)
    if run:
        yield from _cut(run)


def _cut(run: Copy) -> Iterator[Copy]:
    for start in range(0, run.nbytes, COPY_BYTES):
        yield Copy(run.source + start, run.target + start, min(COPY_BYTES, run.nbytes - start))


def _groups(
    header: Header,
    at: Mapping[str, int],
    chosen: Mapping[str, tuple[int, Target]],
    most: int,
    factored: Collection[str],
    mixed: bool,
) -> Iterator[Group]:
    """Batches of equal shape, dtype, form and, but for `mixed`, rank, in file order, of at most so many bytes."""

    def matrices() -> Iterator[tuple[tuple[Group, int | None], int, Matrix]]:
        for entry in sorted(header.entries, key=lambda e: (e.begin, e.end)):
            if entry.name not in chosen:
                continue
            order, target = chosen[entry.name]
            count = target.experts or 1
            start = at[factor_names(entry.name)[0] if entry.name in factored else entry.name]
            kind = Group(target.rows, target.cols, target.dtype, entry.name in factored)
            for expert in range(count):
                index, rank = None if target.experts is None else expert, target.rank_of(expert)
                source = header.data_start + entry.begin + expert * (entry.nbytes // count)
                place = start + expert * kind.matrix_bytes
                apart = None if mixed and not kind.factored else rank
                yield (kind, apart), kind.matrix_bytes, Matrix(entry.name, index, order, source, place, rank)

    for (kind, _), members in batches(matrices(), most):
        yield replace(kind, matrices=tuple(members))


def output_index(index: Mapping[str, object], layouts: Sequence[ShardLayout]) -> dict[str, object]:
    """The index of a checkpoint whose names or sizes changed: each name in the place of the one it came from, and
    total_size that of the output."""
    weight_map = index["weight_map"]
    assert isinstance(weight_map, Mapping)
    kept = {entry.name for layout in layouts for entry in layout.entries}
    metadata = index.get("metadata")
    total = sum(entry.nbytes for layout in layouts for entry in layout.entries)
    result: dict[str, object] = dict(index)
    result["metadata"] = {
        **(metadata if isinstance(metadata, Mapping) else {}),
        "total_size": total,
    }
    result["weight_map"] = {
        name: file
        for old, file in weight_map.items()
        for name in ((old,) if old in kept else factor_names(old))
        if name in kept
    }
    return result
