"""A thread beside the computing that writes what has gathered through to the disk, so that little is left for the end."""

from __future__ import annotations

import threading
from collections.abc import Callable

# About this much work is lost when the machine goes down.
SYNC_BYTES = 32 << 20
SYNC_SECONDS = 20.0


class Syncer:
    """Calls `sync`, in a thread of its own, whenever SYNC_BYTES have been written or SYNC_SECONDS have passed.

    The first failure ends it, and is what `check` raises from then on.
    """

    def __init__(self, sync: Callable[[], None]):
        self._sync = sync
        self._changed = threading.Condition()
        self._gathered = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._gathered >= SYNC_BYTES, SYNC_SECONDS)
                    if self._closing:
                        return
                    self._gathered = 0
                self._sync()
        except BaseException as error:
            self.fail(error)

    def wrote(self, nbytes: int) -> None:
        """Note that `nbytes` wait to be synced."""
        with self._changed:
            self._gathered += nbytes
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """From now on `check` raises `error`, unless something else had failed before."""
        self._failure = self._failure or error

    def check(self) -> None:
        """Raise the first failure, or RuntimeError once closed."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise RuntimeError("the writer is closed")

    def close(self) -> None:
        """End the thread, once the sync that it is at has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
