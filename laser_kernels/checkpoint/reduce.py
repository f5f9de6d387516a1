"""From checkpoint to checkpoint: what is to be done (headers only), then the doing."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.checkpoint import pipeline
from laser_kernels.checkpoint.journal import JOURNAL_NAME
from laser_kernels.checkpoint.layout import DEFAULT_BUDGET, Group, batching
from laser_kernels.checkpoint.reader import CARD_NAME, INDEX_NAME, REPORT_NAME, Reader
from laser_kernels.checkpoint.report import KEPT, Report, Row, model_card, versions
from laser_kernels.checkpoint.resolve import recorded
from laser_kernels.checkpoint.work import Work, as_plan, prepare
from laser_kernels.checkpoint.writer import Writer, check_destination, check_space
from laser_kernels.devices import Place, resolve_devices, workers
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.factors import factor, pack
from laser_kernels.info import Info
from laser_kernels.progress import Progress, automatic
from laser_kernels.run import EscalationWarning, warn_escalated
from laser_kernels.selection import Plan

if TYPE_CHECKING:
    import torch

ON_NONFINITE = ("error", "keep")
OUTPUTS = ("dense", "factored")


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def identity(reader: Reader, work: Work, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bits of the output, by the words in which a refused resume names it."""
    return {
        "source": reader.fingerprint(),
        "plan": work.plan.as_dict(),
        "selected tensors": _digest([asdict(target) for target in work.selection.targets]),
        **{
            key: settings[key]
            for key in ("tol", "seed", "device", "memory_budget", "output", "ranks")
            if key in settings
        },
        "size of batches": work.batch_bytes,
        "versions": versions(),
    }


def compute_with(tol: float, seed: int, device: str, on_nonfinite: str) -> pipeline.Compute:
    """The function by which one worker on `device` reduces a loaded group in place and gives its rows."""
    place = Place(device)

    def reduce_tensor(tensor: torch.Tensor, group: Group) -> list[Row]:
        with place.current():
            work = place.bring(tensor)
            infos = reduce_group(work, group, tol, seed, on_nonfinite)
            place.take_back(work, tensor)
        shape, stored = (group.rows, group.cols), group.written_numbers if group.factored else None
        return [
            Row.of(matrix.name, matrix.index, shape, group.stored_dtype, info, stored, group.dtype)
            for matrix, info in zip(group.matrices, infos, strict=True)
        ]

    return reduce_tensor


def reduce_group(work: torch.Tensor, group: Group, tol: float, seed: int, on_nonfinite: str) -> list[Info | None]:
    """Turns the matrices (b, m, n) of a group into what is written. None for those that `on_nonfinite` "keep" leaves."""

    def become(weights: torch.Tensor, which: Sequence[int]) -> list[Info]:
        import laser_kernels as lk

        ranks, keys = [group.matrices[i].rank for i in which], [group.matrices[i].key for i in which]
        if group.factored:
            b, a, infos = factor(weights, ranks[0], tol=tol, seed=seed, key=keys)
            pack(b, a, weights)
            return infos
        _, infos = lk.low_rank(weights, ranks, tol=tol, seed=seed, key=keys, out=weights, return_info=True)
        return infos

    every = range(len(group.matrices))
    infos: list[Info | None] = [None] * len(every)
    try:
        return list(become(work, every))
    except NonFiniteError as error:
        labels = [group.matrices[index].label for index in error.indices]
        if on_nonfinite == "error":
            keep = ", or leave it as it is with --on-nonfinite keep" if not group.factored else ""
            raise CheckpointError(
                f"{', '.join(labels[:5])}: holds NaN or Inf, so it has no low-rank approximation: repair it, "
                f"leave it out of the plan{keep}"
            ) from error
        good = [index for index in every if index not in set(error.indices)]
    if good:  # without the bad ones; they are never written to
        part = work[good]
        found = become(part, good)
        work[good] = part
        for index, info in zip(good, found, strict=True):
            infos[index] = info
    return infos


@contextmanager
def _threads_of(writer: Writer) -> Iterator[None]:
    """Work with as many threads as the run began with: their number decides the order of sums, hence bits."""
    import torch

    before = torch.get_num_threads()
    wanted = writer.journal.note("threads", before)
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


def reduce_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    plan: str | os.PathLike[str] | Mapping[str, Any] | Plan,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    memory_budget: int | None = None,
    resume: bool = False,
    on_nonfinite: str = "error",
    output: str = "dense",
    progress: Progress | None = None,
) -> Report:
    """Write to `dst` the checkpoint `src` with the weights that `plan` names replaced by low-rank approximations.

    Args:
        src: a folder with safetensors in the Hugging Face layout. Nothing in it is changed or executed.
        dst: a folder that is made, or empty. Nothing outside it is written.
        plan: a YAML file, a mapping or a Plan.
        tol: accepted excess over the optimal residual, as in `low_rank`.
        seed: with each tensor's name, decides the random sketch.
        device: "cpu", "cuda", "cuda:1", a list like "cuda:0,cuda:1", each of which takes its share, or "auto".
        memory_budget: bytes for weights and workspace, on the host: a GPU's memory is bounded by its size. It also decides
            which matrices are reduced in one call. Threads keep up to 256 MiB of working memory for the next call beside it
            (csrc/cpu/memory.hpp).
        resume: go on with what an interrupted run left in `dst`; the result is bitwise that of one run.
        on_nonfinite: "error", or "keep" to leave weights with NaN or Inf as they are (dense output only).
        output: "dense" writes A_r in the weight's place: every loader takes it, nothing is smaller. "factored" writes B and
            A in the place of weights that this makes smaller, for `load_factored`; the others as "dense".
        progress: called with (done, in all, name), first while rank rules look at the weights they must see (numbers), then
            for bytes written; None: a bar or lines on stderr.

    Returns:
        The report that `dst/laser_report.json` holds.

    Raises:
        CheckpointError: source or destination are not as they must be. `dst` then holds no finished checkpoint; unless
            nothing had begun, it holds what `resume` needs.
        ValueError: an argument or the plan makes no sense.
    """
    started = time.perf_counter()
    source, destination = Path(src), Path(dst)
    _check_arguments(tol, seed, on_nonfinite, output)
    devices = resolve_devices(device)
    chosen = as_plan(plan)
    with Reader(source) as reader:
        check_destination(source, destination, resume)
        known = recorded(destination, reader, chosen) if resume else {}
        names = workers(devices)
        work = prepare(
            reader,
            chosen,
            memory_budget,
            output,
            found=known,
            device=devices[0],
            workers=len(names),
            progress=progress,
        )
        settings = {
            **{
                "tol": tol,
                "seed": seed,
                "device": ",".join(devices),
                "memory_budget": memory_budget or DEFAULT_BUDGET,
            },
            **{"on_nonfinite": on_nonfinite, "output": output},
            **({"ranks": dict(work.found)} if work.found else {}),
        }
        who = identity(reader, work, settings)
        finished = _finished(destination, _digest(who)) if resume else None
        if finished is not None:
            _refuse_kept(finished.rows, on_nonfinite)
            return finished
        carried, left = reader.side_files()
        if not (destination / JOURNAL_NAME).exists():
            check_space(destination, work.output_bytes)
        writer = Writer(destination, work.layouts, who)
        try:
            _refuse_kept(_rows(writer, work), on_nonfinite)
            computes = [compute_with(tol, seed, name, on_nonfinite) for name in names]
            # One group in each worker's hands, one being read, one being written: more would only touch more pages.
            largest = max([work.batch_bytes, *(group.nbytes for group in work.groups)])
            parts = batching(devices[0]).parts
            limit = min((memory_budget or DEFAULT_BUDGET) // parts, (len(computes) + 2) * largest)
            with _threads_of(writer), warnings.catch_warnings():
                warnings.simplefilter("ignore", EscalationWarning)  # it knows positions; names follow below
                pipeline.run(reader, writer, work.layouts, computes, limit, progress or automatic())
            notes = work.notes + ((f"not copied: {', '.join(left)}",) if left else ())
            report = Report(
                rows=_rows(writer, work),
                plan=chosen.as_dict(),
                settings=settings,
                source={
                    "name": source.resolve().name,
                    "architecture": work.selection.architecture,
                    "fp8_to_bf16": len(work.fp8),
                },
                versions=versions(),
                run=_digest(who),
                notes=notes,
                tensors=len(reader.tensors),
                bytes=work.output_bytes,
                seconds=time.perf_counter() - started,
                sizes={
                    "parameters": [work.source_parameters, work.output_parameters],
                    "bytes": [reader.nbytes, work.output_bytes],
                },
            )
            _finish(reader, writer, work, carried, report)
        finally:
            writer.close()
    warn_escalated([row.label for row in report.rows if row.status == "escalated"])
    return report


def _check_arguments(tol: object, seed: object, on_nonfinite: str, output: str) -> None:
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0.0 <= tol < float("inf"):
        raise ValueError(f"tol must be a number >= 0; got {tol!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number in 0..2**63-1; got {seed!r}")
    if on_nonfinite not in ON_NONFINITE:
        raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}; got {on_nonfinite!r}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}; got {output!r}")
    if output == "factored" and on_nonfinite == "keep":
        raise ValueError(
            "output 'factored' cannot keep a weight with NaN or Inf: its place is laid out for factors before it is read; "
            "leave it out of the plan"
        )


def _refuse_kept(rows: Sequence[Row], on_nonfinite: str) -> None:
    """A resume may come to keep what an error stopped, but not call an error what has been kept."""
    kept = [row.label for row in rows if row.status == KEPT]
    if kept and on_nonfinite == "error":
        raise CheckpointError(f"{kept[0]}: holds NaN or Inf and was kept by the run to resume: add --on-nonfinite keep")


def _finished(destination: Path, run: str) -> Report | None:
    """The report of a destination that this very run has already finished.

    Raises CheckpointError if another run has.
    """
    path = destination / REPORT_NAME
    if not path.is_file() or (destination / JOURNAL_NAME).exists():
        return None
    report = Report.load(path)
    if report.run != run:
        raise CheckpointError(
            f"{destination}: holds the finished result of another run (plan, source, settings or versions differ): "
            "name a new folder"
        )
    return report


def _rows(writer: Writer, work: Work) -> tuple[Row, ...]:
    """All rows, those of earlier runs included, in the order of the tensors."""
    order = {matrix.label: (matrix.order, matrix.index or 0) for group in work.groups for matrix in group.matrices}
    rows = [Row.from_dict(row) for rows in writer.journal.done.values() for row in rows]
    return tuple(sorted(rows, key=lambda row: order[row.label]))


def _finish(reader: Reader, writer: Writer, work: Work, carried: list[str], report: Report) -> None:
    """Side files, report and card; config.json after them, and last the name that makes a checkpoint of it all."""
    for file in carried:
        if file != "config.json":
            writer.copy_file(file, reader.folder / file)
    writer.put_file(REPORT_NAME, report.to_json().encode())
    card = reader.folder / CARD_NAME
    original = card.read_text("utf-8", errors="replace") if card.is_file() else None
    writer.put_file(CARD_NAME, model_card(report, original).encode())
    if "config.json" in carried:
        config = work.config(reader.config)
        if config is None:
            writer.copy_file("config.json", reader.folder / "config.json")
        else:
            writer.put_file("config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    index: bytes | None = None
    if reader.index is not None:
        changed = work.index(reader)
        own = (reader.folder / INDEX_NAME).read_bytes()
        index = own if changed is None else (json.dumps(changed, indent=2) + "\n").encode()
    writer.finish(index, INDEX_NAME)
