"""Is DST what its report says it is, of SRC? Reads both folders, trusts neither.

The rank of a stored matrix: rounding a matrix A_r of rank r to its dtype changes every entry by at most u |a_ij|
(u: unit roundoff), so what is left beyond rank r, sqrt(sum of sigma_i^2 for i > r), is at most u ||A_r||_F
(Eckart-Young), plus what the product that made A_r rounded. A larger tail means a larger rank.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.checkpoint.layout import Convert, Copy, Group, Matrix, ShardLayout
from laser_kernels.checkpoint.pipeline import Loaded, converted_pieces, dequantized_rows, load, raw_bytes
from laser_kernels.checkpoint.reader import CARD_NAME, INDEX_NAME, REPORT_NAME, Reader, read_json
from laser_kernels.checkpoint.report import KEPT, Report, Row
from laser_kernels.checkpoint.work import Work, as_plan, prepare
from laser_kernels.errors import CheckpointError
from laser_kernels.factors import unpack

if TYPE_CHECKING:
    import torch

CHUNK = 8 << 20
RESIDUAL_TOLERANCE = 1e-3
# Below this part of ||A|| a residual is rounding of the sums that measured it.
RESIDUAL_FLOOR = 1e-7
UNIT_ROUNDOFF = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}
# What the product that made A_r may have added, relative to ||A_r||: float32 sums with TF32-like slices; float64 sums.
PRODUCT_NOISE = {"BF16": 2.0**-18, "F16": 2.0**-18, "F32": 2.0**-18, "F64": 2.0**-40}
F16_TINY = 2.0**-25  # half the spacing of float16 near zero, where rounding is absolute


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `differences` is empty if DST is as it should be."""

    differences: tuple[str, ...]
    reduced: int
    untouched: int
    report: Report | None = field(repr=False, default=None)

    @property
    def ok(self) -> bool:
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        return {
            **{"ok": self.ok, "reduced": self.reduced, "untouched": self.untouched},
            "differences": list(self.differences),
        }


def numerical_tail(matrix: torch.Tensor, rank: int, enough: float) -> float:
    """sqrt(sum of sigma_i^2 for i > rank) of a float64 matrix, or an upper bound of it that is at most `enough`.

    The bound is the distance to the range of a sketch of `rank` columns; only where that does not do, singular values.
    """
    import torch

    if rank >= min(matrix.shape):
        return 0.0
    wide = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    basis = torch.randn(wide.shape[1], rank, dtype=wide.dtype, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        basis = torch.linalg.qr(wide.T @ torch.linalg.qr(wide @ basis).Q).Q
    bound = torch.linalg.matrix_norm(wide - (wide @ basis) @ basis.T).item()
    if bound <= enough:
        return bound
    return torch.linalg.svdvals(wide)[rank:].square().sum().sqrt().item()


def rank_noise(dtype: str, norm: float, elements: int) -> float:
    """The largest tail that rounding explains, for a matrix of this stored dtype and Frobenius norm."""
    tiny = F16_TINY * math.sqrt(elements) if dtype == "F16" else 0.0
    return (UNIT_ROUNDOFF[dtype] + PRODUCT_NOISE[dtype]) * norm + tiny


def check_matrix(row: Row, before: torch.Tensor, after: torch.Tensor, factored: bool = False) -> list[str]:
    """What is wrong with one reduced matrix, given it before and after in its stored dtype. `factored`: `after` is a
    product whose rank is that of its factors' shape."""
    if row.residual is None or row.rank is None:
        return [f"{row.label}: the report gives it no residual or rank"]
    original, reduced = before.double(), after.double()
    norm = original.norm().item()
    residual = (original - reduced).norm().item()
    wrong = []
    if not abs(residual - row.residual) <= RESIDUAL_TOLERANCE * row.residual + RESIDUAL_FLOOR * norm:
        wrong.append(f"{row.label}: its residual is {residual:.6g}, the report says {row.residual:.6g}")
    if factored or not math.isfinite(residual):
        return wrong
    noise = rank_noise(row.dtype, reduced.norm().item(), reduced.numel())
    tail = numerical_tail(reduced, row.rank, noise)
    if tail > noise:
        wrong.append(
            f"{row.label}: its rank is above the reported {row.rank}: {tail:.3g} lies beyond it, "
            f"rounding explains {noise:.3g}"
        )
    return wrong


def verify(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> Verification:
    """Compare a result with its source and its report.

    Untouched tensors must be bitwise those of `src` (block-scaled fp8: its bf16 values), reduced ones (factors: their
    product) must have the residual (to 1e-3) and the rank that the report gives, side files must be there, and nothing may
    look unfinished.

    Raises:
        CheckpointError: `src` or `dst` is no checkpoint that can be read, or `dst` has no report.
    """
    source, destination = Path(src), Path(dst)
    with Reader(source) as before:
        leftovers = sorted(
            p.name for p in destination.glob(".*") if p.name.startswith(".laser") or p.suffix == ".partial"
        )
        if leftovers:
            return Verification((f"{destination}: is unfinished: it holds {', '.join(leftovers)}",), 0, 0)
        with Reader(destination) as after:
            report = Report.load(destination / REPORT_NAME)
            settings = report.settings
            if settings.get("output") == "lora":
                raise CheckpointError(f"{destination}: is an adapter, not a checkpoint: there is nothing to compare")
            output, ranks = settings.get("output", "dense"), settings.get("ranks")
            work = prepare(before, as_plan(report.plan), output=output, found=ranks)
            found = _headers(before, after, work.layouts) + _side_files(before, after, work)
            if found:
                return Verification(tuple(found), 0, 0, report)
            return _tensors(before, after, work, report)


def _headers(before: Reader, after: Reader, layouts: tuple[ShardLayout, ...]) -> list[str]:
    """Differences of file names, tensor names, dtypes, shapes and order."""
    found = []
    want, have = (
        {layout.file: layout for layout in layouts},
        {shard.file: shard for shard in after.shards},
    )
    found += [f"{after.folder}: lacks {file}" for file in want if file not in have]
    found += [f"{after.folder}: has {file}, which the source lacks" for file in have if file not in want]
    for file in sorted(want.keys() & have.keys()):
        metadata = before.shards[want[file].source].header.metadata
        if have[file].header.metadata != metadata:
            found.append(f"{file}: its metadata are {have[file].header.metadata}, not {metadata}")
        expected, got = want[file].entries, have[file].header.entries
        if got != expected:
            odd = next((e for e in expected if e not in got), None) or next((e for e in got if e not in expected), None)
            found.append(f"{file}: its tensors differ" + (f", first {odd.name!r}" if odd else " in order"))
    return found


def _side_files(before: Reader, after: Reader, work: Work) -> list[str]:
    """Side files that are missing or have other bytes."""
    found = []
    carried, _ = before.side_files()
    for file in carried:
        path = after.folder / file
        if not path.is_file():
            found.append(f"{path}: is missing")
        elif file == "config.json" and (config := work.config(before.config)) is not None:
            if read_json(path) != config:
                found.append(f"{path}: is not what the source's gives")
        elif path.read_bytes() != (before.folder / file).read_bytes():
            found.append(f"{path}: differs from the source's")
    if not (after.folder / CARD_NAME).is_file():
        found.append(f"{after.folder / CARD_NAME}: is missing")
    if before.index is not None and after.index != (work.index(before) or before.index):
        found.append(f"{after.folder / INDEX_NAME}: differs from what the source's gives")
    return found


def _tensors(before: Reader, after: Reader, work: Work, report: Report) -> Verification:
    """Compare all tensors, step by step as they were written."""
    rows = {row.label: row for row in report.rows}
    planned = {matrix.label for group in work.groups for matrix in group.matrices}
    found = [f"{label}: is in the report, not in its plan" for label in rows if label not in planned]
    found += [f"{label}: is in the plan, not in the report" for label in planned if label not in rows]
    different: dict[str, None] = {}
    positions = {shard.file: position for position, shard in enumerate(after.shards)}
    for layout in work.layouts:
        shard = positions[layout.file]
        for step in layout.steps:
            if isinstance(step, Copy):
                different.update(dict.fromkeys(_unequal(before, layout, step, after, shard)))
            elif isinstance(step, Convert):
                if not _converted(before, step, after, shard):
                    different[step.name] = None
            else:
                for matrix in step.matrices:
                    if matrix.label in rows:
                        found += _matrix(before, layout, step, matrix, after, shard, rows[matrix.label])
    found += [f"{name}: is not reduced, yet differs from the source" for name in different]
    reduced = sum(row.status != KEPT for row in report.rows)
    untouched = len(after.tensors) - len({row.name for row in report.rows}) - len(work.factored)  # those are two
    return Verification(tuple(found), reduced, untouched, report)


def _unequal(before: Reader, layout: ShardLayout, step: Copy, after: Reader, shard: int) -> list[str]:
    """The tensors in a copied range whose bytes differ, found chunk by chunk."""
    found: list[str] = []
    size = min(CHUNK, step.nbytes)
    left, right = memoryview(bytearray(size)), memoryview(bytearray(size))
    for done in range(0, step.nbytes, CHUNK):
        count = min(CHUNK, step.nbytes - done)
        before.read_into(layout.source, step.source + done, left[:count])
        after.read_into(shard, step.target + done, right[:count])
        if bytes(left[:count]) != bytes(right[:count]):
            start = step.target + done - len(layout.header)
            for entry in layout.entries:
                here = slice(max(0, entry.begin - start), max(0, min(count, entry.end - start)))
                if bytes(left[here]) != bytes(right[here]):
                    found.append(entry.name)
    return found


def _converted(before: Reader, step: Convert, after: Reader, shard: int) -> bool:
    for index, first, last, offset in converted_pieces(before, step.name):
        want = raw_bytes(rows := dequantized_rows(before, step.name, index, first, last))
        got = memoryview(bytearray(len(want)))
        after.read_into(shard, step.target + offset, got)
        if want != got or rows.numel() == 0:
            return False
    return True


def _written(reader: Reader, shard: int, group: Group, matrix: Matrix) -> torch.Tensor:
    """A matrix (m, n) of a group as the output's shard holds it, its factors multiplied in float64."""
    written = Loaded(replace(group, dtype=group.stored_dtype, matrices=(matrix,)))
    reader.read_into(shard, matrix.target, written.view[: group.written_bytes])
    if not group.factored:
        return written.tensor[0]
    b, a = unpack(written.tensor[0], matrix.rank)
    return b.double() @ a.double()


def _matrix(
    before: Reader,
    layout: ShardLayout,
    group: Group,
    matrix: Matrix,
    after: Reader,
    shard: int,
    row: Row,
) -> list[str]:
    original = load(before, layout.source, replace(group, matrices=(matrix,))).tensor[0]
    result = _written(after, shard, group, matrix)
    if row.status == KEPT:
        same = raw_bytes(original) == raw_bytes(result)
        return [] if same else [f"{matrix.label}: was kept for NaN or Inf, yet differs from the source"]
    if row.rank != matrix.rank:
        return [f"{matrix.label}: the report says rank {row.rank}, the plan {matrix.rank}"]
    return check_matrix(row, original, result, group.factored)


__all__ = ["CheckpointError", "Verification", "verify"]
