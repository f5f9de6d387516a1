"""Three things at once: read the next group, reduce this one, write the last one; what they hold stays in a budget."""

from __future__ import annotations

import contextlib
import functools
import heapq
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laser_kernels.checkpoint.layout import Convert, Copy, Group, ShardLayout, Step
from laser_kernels.checkpoint.quantized import block_of, dequantize, scale_name
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.report import Row
from laser_kernels.checkpoint.writer import Writer

if TYPE_CHECKING:
    import torch

CONVERT_BYTES = 8 << 20  # fp8 bytes that are dequantized at a time

Compute = Callable[["torch.Tensor", Group], list[Row]]


class Stopped(Exception):
    """Another thread has failed, and says why."""


def fresh(nbytes: int) -> mmap.mmap:
    """Zeroed memory, given back to the system when the last reference goes.

    Private, because Linux gives huge pages to that and rarely to shared memory: 64 MB are then read into it in 9 ms
    instead of 45 (DEVNOTES.md, "Where a whole checkpoint's time goes").
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Buffers:
    """Memory for weights in flight: `limit` bytes, or one request, or a large matrix could never start.

    What comes back is lent again, whole: no page of it has to be zeroed anew.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lent = 0
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()
        self._stopped = False

    def take(self, nbytes: int) -> mmap.mmap:
        """`nbytes` bytes or more, page-aligned, that hold anything."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or not self._lent or self._roomy(nbytes) or self._lent + nbytes <= self._limit
            )
            if self._stopped:
                raise Stopped
            if roomy := self._roomy(nbytes):
                memory = min(roomy, key=len)
                self._free.remove(memory)
            else:
                while self._free and self._held() + nbytes > self._limit:
                    self._free.pop()
                memory = fresh(nbytes)
            self._lent += len(memory)
            return memory

    def give(self, memory: mmap.mmap) -> None:
        """Nobody uses `memory` any more."""
        with self._changed:
            self._lent -= len(memory)
            if self._held() + len(memory) <= self._limit:
                self._free.append(memory)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _held(self) -> int:
        return self._lent + sum(map(len, self._free))

    def _roomy(self, nbytes: int) -> list[mmap.mmap]:
        return [memory for memory in self._free if len(memory) >= nbytes]


@dataclass(frozen=True)
class Job:
    """Step `number` of a shard on its way through the threads; a group with its matrices, and once reduced its rows."""

    shard: int
    number: int
    step: Step
    loaded: Loaded | None = None
    rows: tuple[dict[str, Any], ...] = ()


class Lane:
    """A queue between two threads; the lower urgency number comes first, then what came first. None ends it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Job | None]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._stopped = False

    def put(self, urgency: int, item: Job | None) -> None:
        with self._changed:
            heapq.heappush(self._heap, (urgency, self._count, item))
            self._count += 1
            self._changed.notify()

    def get(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._heap or self._stopped)
            if self._stopped:
                raise Stopped
            return heapq.heappop(self._heap)[2]

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Loaded:
    """A group's matrices at the beginning of `memory`, or in memory of their own: `tensor` (b, m, n), `view` its bytes."""

    def __init__(self, group: Group, memory: mmap.mmap | None = None):
        import torch

        self.memory = fresh(group.nbytes) if memory is None else memory
        self.view = memoryview(self.memory)[: group.nbytes]
        count = len(group.matrices) * group.rows * group.cols
        flat = torch.frombuffer(self.memory, dtype=torch_dtype(group.stored_dtype), count=count)
        self.tensor = flat.view(len(group.matrices), group.rows, group.cols)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors floating dtype."""
    import torch

    table = {
        **{
            "F64": torch.float64,
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
        },
        **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    }
    return table[dtype]


def load_scale(reader: Reader, weight: str, index: int | None) -> torch.Tensor:
    """The block factors of an fp8 matrix."""
    import torch

    entry = reader.tensors[scale_name(weight)].entry
    data = reader.read_bytes(entry.name)
    scale = torch.frombuffer(data, dtype=torch_dtype(entry.dtype)).view(entry.shape)
    return scale if index is None else scale[index]


def dequantized_rows(reader: Reader, weight: str, index: int | None, first: int, last: int) -> torch.Tensor:
    """Rows first..last of an fp8 matrix as bfloat16; `first` must begin a block."""
    import torch

    located, block = reader.tensors[weight], block_of(reader.config)
    rows, cols = located.entry.shape[-2:]
    data = bytearray((last - first) * cols)
    reader.read_into(located.shard, located.offset + ((index or 0) * rows + first) * cols, memoryview(data))
    raw = torch.frombuffer(data, dtype=torch_dtype(located.entry.dtype)).view(last - first, cols)
    scale = load_scale(reader, weight, index)
    return dequantize(raw, scale[first // block[0] : -(-last // block[0])], block)


def row_blocks(reader: Reader, weight: str) -> list[tuple[int, int]]:
    """How the rows of an fp8 matrix are cut for streaming: (first, last), whole blocks, a few MiB each."""
    rows, cols = reader.tensors[weight].entry.shape[-2:]
    side = block_of(reader.config)[0]
    tall = max(1, CONVERT_BYTES // (cols * side)) * side
    return [(first, min(rows, first + tall)) for first in range(0, rows, tall)]


def converted_pieces(reader: Reader, weight: str) -> list[tuple[int | None, int, int, int]]:
    """An fp8 weight in pieces: (expert, first row, last row, offset of the piece's bytes in the bf16 tensor)."""
    shape = reader.tensors[weight].entry.shape
    rows, cols = shape[-2:]
    return [
        (index, first, last, 2 * ((index or 0) * rows + first) * cols)
        for index in ([None] if len(shape) == 2 else range(shape[0]))
        for first, last in row_blocks(reader, weight)
    ]


def load(reader: Reader, source: int, group: Group, memory: mmap.mmap | None = None) -> Loaded:
    """Read a group from the reader's shard `source`; fp8 is dequantized on the way."""
    loaded = Loaded(group, memory)
    for slot, matrix in enumerate(group.matrices):
        if group.dtype == group.stored_dtype:
            start = slot * group.matrix_bytes
            reader.read_into(source, matrix.source, loaded.view[start : start + group.matrix_bytes])
        else:
            for first, last in row_blocks(reader, matrix.name):
                loaded.tensor[slot, first:last] = dequantized_rows(reader, matrix.name, matrix.index, first, last)
    return loaded


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without numpy."""
    import ctypes

    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def _write_step(writer: Writer, reader: Reader, job: Job, layout: ShardLayout) -> None:
    shard, step = job.shard, job.step
    if isinstance(step, Copy):
        writer.copy(shard, step.target, reader, layout.source, step.source, step.nbytes)
    elif isinstance(step, Convert):
        for index, first, last, offset in converted_pieces(reader, step.name):
            rows = dequantized_rows(reader, step.name, index, first, last)
            writer.write(shard, step.target + offset, raw_bytes(rows))
    else:
        assert job.loaded is not None
        for slot, matrix in enumerate(step.matrices):
            start = slot * step.matrix_bytes
            writer.write(shard, matrix.target, job.loaded.view[start : start + step.written_bytes])


def run(
    reader: Reader,
    writer: Writer,
    layouts: Sequence[ShardLayout],
    computes: Sequence[Compute],
    limit: int,
    progress: Callable[[int, int, str], None],
) -> None:
    """Do all steps that the writer's journal does not hold.

    Groups are handed out in the order of the steps, each to whichever of `computes` is free: one runs in the calling
    thread, the others in threads of their own. A compute changes the tensor in place, into what is
    to be written.
    `limit`: bytes of weights that may be in memory at once. The first exception of any thread is raised; the other
    threads have ended by then.
    """
    todo = [
        Job(shard, number, step)
        for shard, layout in enumerate(layouts)
        for number, step in enumerate(layout.steps)
        if (shard, number) not in writer.journal.done
    ]
    total = sum(step.nbytes for layout in layouts for step in layout.steps)
    done = total - sum(job.step.nbytes for job in todo)
    buffers, to_compute, to_write = Buffers(limit), Lane(), Lane()
    failures: list[BaseException] = []

    def stop() -> None:
        for part in (buffers, to_compute, to_write):
            part.stop()

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)
            stop()

    def read() -> None:
        for job in todo:
            if isinstance(job.step, Group):
                memory = buffers.take(job.step.nbytes)
                to_compute.put(0, replace(job, loaded=load(reader, layouts[job.shard].source, job.step, memory)))
                del memory  # the writer gives it back
            else:
                to_write.put(1, job)
        to_compute.put(1, None)

    def write() -> None:
        nonlocal done
        while (job := to_write.get()) is not None:
            _write_step(writer, reader, job, layouts[job.shard])
            writer.step_done(job.shard, job.number, job.step.nbytes, job.rows)
            done += job.step.nbytes
            progress(done, total, job.rows[-1]["name"] if job.rows else layouts[job.shard].file)
            if job.loaded:
                buffers.give(job.loaded.memory)
            del job  # and with it the last reference to memory that is not kept

    def work(compute: Compute) -> None:
        while (job := to_compute.get()) is not None:
            assert job.loaded is not None and isinstance(job.step, Group)
            rows = tuple(dict(vars(row)) for row in compute(job.loaded.tensor, job.step))
            to_write.put(0, replace(job, rows=rows))
            del job  # the writer holds the last reference
        to_compute.put(1, None)  # for the next one

    for shard in range(len(layouts)):
        writer.publish_if_complete(shard)
    bodies = [read, write, *(functools.partial(work, compute) for compute in computes[1:])]
    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    try:
        for thread in threads:
            thread.start()
        work(computes[0])
        for thread in threads[2:]:
            thread.join()
        to_write.put(2, None)
        threads[1].join()
    except Stopped:
        pass
    finally:
        stop()  # nothing is left to do, or nothing more shall be done
        for thread in threads:
            if thread.ident is not None:  # it has been started
                thread.join()
    if failures:
        raise failures[0]
