"""Writes the tables of README.md and DEVNOTES.md from the committed results: `make bench-table`.

    python bench/table.py [--check]

A document holds, in lines of their own,
    <!-- table NAME FILE -->  ...generated...  <!-- end of table -->
NAME is one of laser_kernels.bench.table.TABLES, FILE a results file. --check changes nothing and exits 1 where a document
is not what its results say.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from laser_kernels.bench import table
from laser_kernels.bench.problem import OPS
from laser_kernels.bench.rows import read

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "DEVNOTES.md")
PLACE = re.compile(r"(<!-- table (\w+) (\S+) -->\n).*?(<!-- end of table -->)", re.S)


def rendered(text: str) -> str:
    """The document with every table made anew.

    Raises:
        KeyError: no such table. OSError, ValueError: no such results.
    """

    def fill(match: re.Match[str]) -> str:
        jobs = match[2] == "jobs"
        rows = read(ROOT / match[3])
        used = [row for row in rows if (row["op"].startswith(table.JOBS) if jobs else row["op"] in OPS)]
        return f"{match[1]}{table.TABLES[match[2]](used)}\n\n{table.provenance(used)}\n{match[4]}"

    return PLACE.sub(fill, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        before = (ROOT / name).read_text()
        after = rendered(before)
        stale += [name] * (before != after)
        if not check:
            (ROOT / name).write_text(after)
    print(f"{'differ from their results' if check else 'rewritten'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
