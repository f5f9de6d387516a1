"""What a search has tried: a file of JSON lines that a killed search goes on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laser_kernels.errors import CheckpointError
from laser_kernels.laser.interventions import Intervention

FORMAT = 1
# A base score recomputed on a resume: another thread count rounds differently, another model scores differently.
SAME = 1e-4


@dataclass(frozen=True)
class Trial:
    """The validation scores of a task with these interventions in the model, all at once."""

    task: str
    edits: tuple[Intervention, ...]
    accuracy: float
    log_loss: float

    @property
    def order(self) -> tuple[float, float]:
        """Sorts trials, best first: by accuracy, ties by log-loss."""
        return (-self.accuracy, self.log_loss)

    @property
    def label(self) -> str:
        return " + ".join(map(str, self.edits))

    def as_dict(self) -> dict[str, Any]:
        edits = [[one.lname, one.lnum, one.rho] for one in self.edits]
        return {"task": self.task, "edits": edits, "accuracy": self.accuracy, "log_loss": self.log_loss}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Trial:
        edits = tuple(Intervention.keeping(*edit) for edit in data["edits"])
        return Trial(data["task"], edits, data["accuracy"], data["log_loss"])


def _differs(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return not math.isclose(old, new, rel_tol=SAME, abs_tol=SAME)
    if isinstance(old, dict) and isinstance(new, dict):
        return any(_differs(old[key], new[key]) for key in old.keys() & new.keys())
    return bool(old != new)


class Trials:
    """All trials of a search, in order; where `path` is given, each is in that file as soon as it is known.

    Args:
        path: the file, or None to remember in memory only.
        settings: what decides the scores besides the edits. Tasks may be added on a resume.
        resume: go on with a file that is there.

    Raises:
        CheckpointError: the file is there and resume is not asked for, or it belongs to other settings (it says which).
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any], resume: bool = False):
        self._known: dict[tuple[str, frozenset[Intervention]], Trial] = {}
        self._file = None
        if path is None:
            return
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines: list[Any] = []
        if file.exists() and file.stat().st_size:
            if not resume:
                raise CheckpointError(
                    f"{file}: holds the trials of an earlier search: resume it, or name another folder"
                )
            lines = _read(file)
        if lines:
            self._check(file, lines[0], settings)
            for line in lines[1:]:
                self._keep(Trial.from_dict(line))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        file.write_text(text, "utf-8")  # without a line that the last run did not finish
        self._file = file.open("a", encoding="utf-8")
        if not lines:
            self._write({"laser_search": FORMAT, **settings})

    @staticmethod
    def _check(file: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        if old.get("laser_search") != FORMAT:
            raise CheckpointError(f"{file}: is not the file of a search (first line {old!s:.80}): name another folder")
        different = [key for key in new if _differs(old.get(key), new[key])]
        if different:
            raise CheckpointError(
                f"{file}: belongs to a search with other {', '.join(different)}: name another folder, or search as before "
                f"({', '.join(f'{key} {old.get(key)!r:.120}' for key in different)})"
            )

    def get(self, task: str, edits: Sequence[Intervention]) -> Trial | None:
        """What is known of these edits, in whichever order."""
        return self._known.get((task, frozenset(edits)))

    def add(self, trial: Trial) -> None:
        self._keep(trial)
        self._write(trial.as_dict())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _keep(self, trial: Trial) -> None:
        self._known[trial.task, frozenset(trial.edits)] = trial

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _read(file: Path) -> list[Any]:
    """The lines up to the first that is not whole."""
    lines = []
    for line in file.read_text("utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
