"""The processes of a run: one per library, started when needed, replaced when lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any

from laser_kernels.bench.worker import Answer, Task

# Not -m: what a main module defines cannot be unpickled elsewhere.
START = "from laser_kernels.bench.worker import main; main()"
START_SECONDS = 180.0  # importing a library on a cold disk


class Lost(RuntimeError):
    """A call brought no answer; `status` is for its row."""

    def __init__(self, status: str, why: str = ""):
        super().__init__(f"{status}: {why}" if why else status)
        self.status, self.why = status, why


class Process:
    """A worker and the pipe to it."""

    def __init__(self, library: str, device: str):
        self.pipe, theirs = Pipe()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in stop()
        assert isinstance(theirs, Connection)
        command = [sys.executable, "-c", START, str(theirs.fileno()), library, device]
        self.child = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors
        )
        theirs.close()

    def ask(self, message: tuple[Any, ...] | None, limit: float) -> Any:
        """Send, and wait at most `limit` seconds for the answer."""
        try:
            if message is not None:
                self.pipe.send(message)
            if not self.pipe.poll(limit):
                self.stop()
                raise Lost("timeout", f"no answer in {limit:.0f} s")
            return self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self.child.wait()
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise Lost("crashed", f"{why} {self._last_words()}".strip()) from None

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1][:160] if lines else ""

    def stop(self) -> None:
        self.child.kill()
        self.child.wait()
        self.pipe.close()
        self.errors.close()


class Team:
    """Answers calls of any library, whatever happens to its process."""

    def __init__(self, device: str):
        self.device = device
        self.versions: dict[str, str] = {}  # of the libraries that were started
        self._processes: dict[str, Process] = {}
        self._loaded: dict[str, Any] = {}
        self._inputs: tuple[list[str], list[int]] = ([], [])

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for library in list(self._processes):
            self._drop(library)

    def inputs(self, files: Sequence[str | os.PathLike[str]], checked: Sequence[int]) -> None:
        """What the next calls work on: safetensors files with one stack "a" each."""
        self._inputs = ([os.fspath(file) for file in files], list(checked))
        self._loaded.clear()

    def _drop(self, library: str) -> None:
        self._loaded.pop(library, None)
        if process := self._processes.pop(library, None):
            process.stop() if process.child.poll() is None else None

    def call(self, library: str, task: Task, limit: float) -> Answer:
        """
        Raises:
            Lost: it failed, crashed, hung or ran out of memory.
        """
        try:
            if library not in self._processes:
                self._processes[library] = Process(library, self.device)
                kind, text = self._processes[library].ask(None, START_SECONDS)
                if kind != "ready":
                    raise Lost(kind, text)
                self.versions[library] = text
            process = self._processes[library]
            if library not in self._loaded:
                if (failed := process.ask(("load", *self._inputs), START_SECONDS)) is not None:
                    raise Lost(*failed)
                self._loaded[library] = True
            answer = process.ask(("call", task), limit)
        except Lost:
            self._drop(library)
            raise
        if isinstance(answer, tuple):
            raise Lost(*answer)
        return answer
