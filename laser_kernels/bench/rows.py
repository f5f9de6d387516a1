"""Rows of results: one JSON object per line, the same keys from every command."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from laser_kernels.bench.timing import Samples

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; elsewhere there is no .git there
KEYS = (
    "op", "route", "peer", "shape", "rank", "batch", "dtype", "device", "seconds", "p10", "p90",
    "excess", "residual", "iterations", "bound_share", "ratio_best_peer", "peak_bytes", "threads",
    "gpu", "commit", "versions", "command", "status",
)  # fmt: skip
MORE = ("tol", "details")  # only in rows of commands that have them


@functools.cache
def commit() -> str | None:
    """The commit that is checked out; where there is no checkout or no git, what LASER_COMMIT says, or None."""
    if (ROOT / ".git").exists() and (git := shutil.which("git")):
        done = subprocess.run([git, "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return os.environ.get("LASER_COMMIT")


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "laser-kernels" if name == "__main__.py" else name


def processor() -> str:
    """The CPU's name, and the widest vector instructions that torch uses on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str | None]:
    """Of what every row depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "cpu": processor()}


def row(samples: Samples | None = None, **values: Any) -> Row:
    """One row with every key, the environment filled in.

    A row whose status is not "ok" has no time: a wrong answer or a crash keeps its error and its reason only.
    """
    unknown = set(values) - {*KEYS, *MORE}
    if unknown:
        raise KeyError(f"no such row key: {sorted(unknown)}")
    made: Row = dict.fromkeys(KEYS)
    made |= {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": versions(),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "status": "ok",
    }
    if samples is not None:
        made |= {"seconds": samples.median, "p10": samples.quantile(0.1), "p90": samples.quantile(0.9)}
    made |= values
    if made["status"] == "FAILED":
        made |= {"seconds": None, "p10": None, "p90": None, "ratio_best_peer": None}
    return made


def method(row: Row) -> str:
    """The method of a row, without its setting."""
    details = row.get("details")
    named = details.get("method") if isinstance(details, dict) else None
    return str(named or row["peer"] or f"laser_kernels [{row['route']}]")


def append(file: Path | None, rows: Iterable[Row]) -> None:
    """Append rows to a JSON lines file; nothing where `file` is None."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(made) + "\n" for made in rows)


def read(file: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ValueError: a line is not a row; names file and line.
    """
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            made = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}:{number}: not JSON ({error.msg}): a results file has one JSON object per line"
            ) from None
        if not isinstance(made, dict) or not set(KEYS) <= set(made):
            lacks = sorted(set(KEYS) - set(made)) if isinstance(made, dict) else "an object"
            raise ValueError(f"{file}:{number}: not a benchmark row: lacks {lacks}")
        found.append(made)
    return found
