"""The destination folder: shards are written beside their names and get them only when whole; the last rename makes the
checkpoint. Until then nothing in the folder can be taken for a finished one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from laser_kernels.checkpoint.journal import JOURNAL_NAME, Journal
from laser_kernels.checkpoint.layout import ShardLayout
from laser_kernels.checkpoint.reader import SINGLE_NAME, Reader
from laser_kernels.checkpoint.syncing import Syncer
from laser_kernels.errors import CheckpointError

CHUNK = 8 << 20


def partial_name(file: str) -> str:
    """The name under which `file` is written until it is whole."""
    head, _, tail = file.rpartition("/")
    return f"{head}/.{tail}.partial" if head else f".{tail}.partial"


def check_destination(source: Path, destination: Path, resume: bool) -> None:
    """Refuse a destination that is, or is in, the source, or that holds something else.

    Raises:
        CheckpointError: with the reason.
    """
    if destination.resolve() == source.resolve():
        raise CheckpointError(f"{destination}: is the source itself: name another folder")
    if destination.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{destination}: lies inside the source {source}: name a folder outside it")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise CheckpointError(f"{destination}: is not a folder")
    content = sorted(path.name for path in destination.iterdir())
    if content and not resume:
        unfinished = JOURNAL_NAME in content
        advice = "add --resume to finish it" if unfinished else "name a new folder"
        what = "holds an unfinished run" if unfinished else f"is not empty ({content[0]}, ...)"
        raise CheckpointError(f"{destination}: {what}: {advice}, or empty it")


def check_space(destination: Path, nbytes: int) -> None:
    """Raise CheckpointError if `nbytes` cannot fit where `destination` will be."""
    parent = next(path for path in (destination, *destination.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if nbytes > free:
        raise CheckpointError(
            f"{destination}: needs {nbytes / 2**30:.2f} GiB, its disk has {free / 2**30:.2f} GiB free: "
            "free some or name another"
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError on the way to `path` into a CheckpointError that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space and run the same command with --resume" if full else "see to it and use --resume"
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}): {advice}") from error


class Writer:
    """Writes the shards of `layouts` into `folder`, which it makes.

    Methods may be called from any thread. Steps that a journal of an earlier run holds are in `journal.done`.
    """

    def __init__(self, folder: Path, layouts: Sequence[ShardLayout], run: Mapping[str, Any]):
        self.folder = folder
        self.layouts = layouts
        self._lock = threading.RLock()
        self._open: dict[int, int] = {}
        self._syncing = threading.RLock()  # held while a file is synced or closed; taken before _lock
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in folder.iterdir() if path.name != JOURNAL_NAME]
            if others and not (folder / JOURNAL_NAME).is_file():
                raise CheckpointError(
                    f"{folder}: holds no unfinished run ({others[0]}, ...): name a new folder or empty it"
                )
            self.journal = Journal(folder, run)
            self._left = [
                sum((shard, step) not in self.journal.done for step in range(len(layout.steps)))
                for shard, layout in enumerate(layouts)
            ]
            try:
                for shard in range(len(layouts)):
                    self._take_over(shard)
            except BaseException:
                self._close_files()
                raise
        self._syncer = Syncer(self._sync_all)

    def _path(self, shard: int) -> Path:
        return self.folder / self.layouts[shard].file

    def _partial(self, shard: int) -> Path:
        return self.folder / partial_name(self.layouts[shard].file)

    def _take_over(self, shard: int) -> None:
        """Settle what an earlier run left of a shard: its steps count only if its file is there."""
        partial = self._partial(shard)
        if self.is_whole(shard):
            if self._left[shard]:  # cannot be, unless the journal lost lines: then they are done again
                os.rename(self._path(shard), partial)
            return
        if not (partial.is_file() and not partial.is_symlink() and partial.stat().st_size == self.layouts[shard].size):
            partial.unlink(missing_ok=True)  # its header had not been written
            self.journal.forget(shard)
            self._left[shard] = len(self.layouts[shard].steps)

    def is_whole(self, shard: int) -> bool:
        """Whether the shard has its final name."""
        return self._path(shard).is_file()

    def is_last(self, shard: int) -> bool:
        """Whether this shard's name alone would make the folder look finished, so that it must come last."""
        return len(self.layouts) == 1 or self.layouts[shard].file == SINGLE_NAME

    def _descriptor(self, shard: int) -> int:
        with self._lock:
            self._syncer.check()
            if shard not in self._open:
                layout, partial = self.layouts[shard], self._partial(shard)
                partial.parent.mkdir(parents=True, exist_ok=True)
                fresh = not partial.exists()
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if fresh else 0)
                self._open[shard] = os.open(partial, flags, 0o644)
                # Always: a power cut may leave the size without the header.
                self._write(self._open[shard], 0, memoryview(layout.header))
                if fresh:
                    os.ftruncate(self._open[shard], layout.size)  # from now on steps of this file may count
            return self._open[shard]

    @staticmethod
    def _write(descriptor: int, offset: int, view: memoryview) -> None:
        while len(view):
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def write(self, shard: int, offset: int, view: memoryview) -> None:
        """Put bytes at an offset (from the start of the file) of a shard."""
        with explained(self._path(shard)):
            self._write(self._descriptor(shard), offset, view)

    def copy(self, shard: int, offset: int, reader: Reader, source: int, start: int, nbytes: int) -> None:
        """Copy bytes of the reader's shard `source`; inside the kernel where that is possible."""
        with explained(self._path(shard)):
            inward, outward, done = reader.descriptor(source), self._descriptor(shard), 0
            try:
                while done < nbytes and hasattr(os, "copy_file_range"):
                    count = os.copy_file_range(
                        inward, outward, min(nbytes - done, 1 << 30), start + done, offset + done
                    )
                    if count == 0:
                        break
                    done += count
            except OSError as error:
                if error.errno not in (
                    errno.EXDEV,
                    errno.EINVAL,
                    errno.ENOSYS,
                    errno.EOPNOTSUPP,
                    errno.EPERM,
                    errno.EBADF,
                ):
                    raise
            buffer = memoryview(bytearray(min(CHUNK, nbytes - done)))
            while done < nbytes:
                piece = buffer[: min(CHUNK, nbytes - done)]
                reader.read_into(source, start + done, piece)
                self._write(outward, offset + done, piece)
                done += len(piece)

    def step_done(self, shard: int, step: int, nbytes: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note a finished step; the shard's file gets its name with the last one, unless it must come last of all."""
        with self._lock, explained(self.journal.path):
            self._syncer.check()
            self._left[shard] -= (shard, step) not in self.journal.done
            self.journal.add(shard, step, rows)
        self._syncer.wrote(nbytes)
        self.publish_if_complete(shard)

    def _sync_all(self) -> None:
        with self._lock:
            waiting = [shard for shard in self._open if self.journal.unsynced(shard)]
        for shard in waiting:
            self._sync(shard)

    def _sync(self, shard: int) -> None:
        """Write a shard through to the disk if it is open, and note which steps that makes safe."""
        with self._syncing:
            with self._lock:
                self._syncer.check()
                descriptor, steps = self._open.get(shard), self.journal.unsynced(shard)
            if descriptor is None:
                return
            try:
                with explained(self._path(shard)):
                    os.fsync(descriptor)
            except CheckpointError as error:
                self._lose(shard, descriptor, error)
                raise
            with explained(self.journal.path):
                with self._lock:
                    self.journal.synced(shard, steps)
                self.journal.flush()

    def _lose(self, shard: int, descriptor: int, error: CheckpointError) -> None:
        """A sync has failed: the system tells that once, and may have dropped any page that was not yet on the disk."""
        with self._lock:
            self._syncer.fail(error)
            try:
                self.journal.lost(shard, self.journal.unsynced(shard))
            except OSError:
                os.ftruncate(descriptor, 0)  # a partial file of the wrong size does not count

    def publish_if_complete(self, shard: int) -> None:
        """Give a shard its name if it is whole and its name does not make the checkpoint."""
        if not self._left[shard] and not self.is_last(shard):
            self.publish(shard)

    def publish(self, shard: int) -> None:
        """Give a complete shard its name."""
        if self.is_whole(shard):
            return
        with explained(self._path(shard)):
            self._descriptor(shard)  # an earlier run may have written all of it
            with self._syncing:
                self._sync(shard)
                with self._lock:
                    os.close(self._open.pop(shard))
            os.rename(self._partial(shard), self._path(shard))

    def put_file(self, file: str, data: bytes) -> None:
        """Write a small file in one go: beside its name, synced, renamed."""
        path, partial = self.folder / file, self.folder / partial_name(file)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                self._write(descriptor, 0, memoryview(data))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(partial, path)

    def copy_file(self, file: str, source: Path) -> None:
        """Carry a side file over, whatever its size."""
        path, partial = self.folder / file, self.folder / partial_name(file)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            with open(source, "rb") as stream, open(partial, "xb") as sink:
                while piece := stream.read(CHUNK):
                    sink.write(piece)
                sink.flush()
                os.fsync(sink.fileno())
            os.rename(partial, path)

    def finish(self, index: bytes | None, index_name: str) -> None:
        """The last steps: what makes the folder a checkpoint, then the journal goes."""
        for shard in range(len(self.layouts)):
            self.publish(shard)
        if index is not None:
            self.put_file(index_name, index)
        with explained(self.folder):
            self._sync_folder()
            self.journal.remove()
            self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close what is open. Partial files and the journal stay for a resume."""
        try:
            self._syncer.close()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])
            self.journal.close()
