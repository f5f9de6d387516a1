"""What an unfinished run has done: a file of JSON lines in DST that `--resume` reads and the end of a run removes.

The first line says what the run is; each further one that a step's bytes are in the partial shard (with the report's
rows where the step reduced something). The system may lose written bytes when it goes down, not when the process does:
so steps that no `synced` line names count only if the machine has not been started again since.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laser_kernels.errors import CheckpointError

JOURNAL_NAME = ".laser_resume.jsonl"
FORMAT = 2
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Rows = list[dict[str, Any]]


def _boot() -> str | None:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


class Journal:
    """An open journal. `done` maps (shard, step) to the report rows of that step."""

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        """Open the journal in `folder`, or begin one if there is none.

        Raises:
            CheckpointError: the one that is there belongs to another run; it says what differs.
        """
        self.path = folder / JOURNAL_NAME
        self.done: dict[tuple[int, int], Rows] = {}
        self._unsynced: dict[int, set[int]] = {}  # shard -> steps
        self.notes: dict[str, Any] = {}
        self.run = dict(run)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system drops it with the process
            self._load(self.path.read_bytes())
        except BlockingIOError:
            self.close()
            raise CheckpointError(f"{folder}: another run is writing it: wait for it, or stop it") from None
        except BaseException:
            self.close()
            raise

    def _load(self, data: bytes) -> None:
        lines, length = [], 0
        for line in data.splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    break
                lines.append(json.loads(line))
            except ValueError:
                break  # torn by a crash: nothing behind it counts
            length += len(line)
        os.ftruncate(self._descriptor, length)
        boot = _boot()
        if not lines:
            self._append({"format": FORMAT, "run": self.run})
        else:
            self._compare(lines[0])
            pending: dict[tuple[int, int], Rows] = {}
            last_boot = None
            for line in lines[1:]:
                if "boot" in line:
                    if line["boot"] != last_boot:
                        pending.clear()
                    last_boot = line["boot"]
                elif "note" in line:
                    self.notes.setdefault(line["note"], line["value"])
                elif "synced" in line:
                    keys = [(line["synced"], step) for step in line["steps"]]
                    self.done.update((key, pending.pop(key)) for key in keys if key in pending)
                elif "lost" in line:
                    for key in [(line["lost"], step) for step in line["steps"]]:
                        pending.pop(key, None)
                        self.done.pop(key, None)
                else:
                    pending[line["shard"], line["step"]] = line["rows"]
            if boot is not None and boot == last_boot:
                self.done.update(pending)
                for shard, step in pending:
                    self._unsynced.setdefault(shard, set()).add(step)
            # What does not count is done again, and its rows come again: a later line replaces an earlier one.
        self._append({"boot": boot})

    def _compare(self, first: Any) -> None:
        before = first.get("run", {}) if isinstance(first, dict) and first.get("format") == FORMAT else {}
        for key in sorted(self.run.keys() | before.keys()):
            if self.run.get(key) != before.get(key):
                raise CheckpointError(
                    f"{self.path.parent}: holds an unfinished run with another {key.replace('_', ' ')} (then "
                    f"{before.get(key)!r:.120}, now {self.run.get(key)!r:.120}): "
                    "repeat it as it was begun, or delete the folder"
                )

    def _append(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        if os.write(self._descriptor, data) != len(data):
            raise OSError(28, "No space left on device", str(self.path))

    def add(self, shard: int, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note that a step's bytes have been written."""
        self.done[shard, step] = [dict(row) for row in rows]
        self._append({"shard": shard, "step": step, "rows": list(rows)})
        self._unsynced.setdefault(shard, set()).add(step)

    def note(self, name: str, value: Any) -> Any:
        """What this run noted first under `name`: `value`, unless it was begun with another."""
        if name not in self.notes:
            self.notes[name] = value
            self._append({"note": name, "value": value})
        return self.notes[name]

    def unsynced(self, shard: int) -> list[int]:
        """The steps of a shard that a power cut might undo."""
        return sorted(self._unsynced.get(shard, ()))

    def synced(self, shard: int, steps: Sequence[int]) -> None:
        """Note that these steps of a shard would survive a power cut; `flush` makes the note survive it too."""
        self._append({"synced": shard, "steps": list(steps)})
        self._unsynced.get(shard, set()).difference_update(steps)

    def lost(self, shard: int, steps: Sequence[int]) -> None:
        """Note, for good, that what these steps of a shard wrote is not there, or may not be."""
        self._append({"lost": shard, "steps": list(steps)})
        self.flush()
        self._unsynced.get(shard, set()).difference_update(steps)
        for step in steps:
            self.done.pop((shard, step), None)

    def forget(self, shard: int) -> None:
        """Drop the steps of a shard whose partial file is gone."""
        if steps := [step for of, step in self.done if of == shard]:
            self.lost(shard, steps)

    def flush(self) -> None:
        """Let all notes so far survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # its number may soon be another file's
        os.close(descriptor)

    def remove(self) -> None:
        self.path.unlink()
