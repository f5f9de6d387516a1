"""`laser-kernels scan`: the spectra of a checkpoint, as Spectrum's files, CSV and a picture."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from laser_kernels.packages import require

if TYPE_CHECKING:
    from laser_kernels.scan.rows import Row

HELP = "spectra of a checkpoint: SNR, ranks, conditioning"
NAMED = 3  # skipped tensors of one kind that a line names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("source", metavar="DIR", help="folder of a safetensors checkpoint")
    parser.add_argument("--targets", help="as for reduce: only these (default: every matrix)")
    parser.add_argument("--layers", help="as for reduce: only these")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--name", help="the model's name for file names and titles (default: the folder's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Spectrum's JSON (snr_results_NAME.json)")
    beside = "; without FILE beside the JSON"
    parser.add_argument("--csv", nargs="?", const="", metavar="FILE", help="all statistics" + beside)
    parser.add_argument("--yaml", nargs="?", const="", metavar="FILE", help="Spectrum's unfrozen_parameters" + beside)
    parser.add_argument("--top-percent", type=int, default=50, help="of each type, for --yaml (50)")
    parser.add_argument("--plot", nargs="?", const="", metavar="FILE", help="a picture, PNG" + beside)


def _file(given: str | None, out: Path, ending: str) -> Path | None:
    """Where an optional output goes; None where it is not asked for."""
    return None if given is None else Path(given) if given else out.with_name(out.stem + ending)


def _writable(path: Path) -> None:
    """Found out before the run, not after; leaves no file where there was none."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a"):
        pass
    if new:
        path.unlink()


def summary(rows: Sequence[Row]) -> list[str]:
    """A line per type of matrix: medians."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.stats is not None:
            kinds.setdefault(row.type, []).append(row)
    width = max(map(len, kinds), default=4)
    lines = [f"{'type':{width}}  count  snr (spectrum)   stable rank  effective rank  MP count"]
    for kind, members in kinds.items():
        found = [row.stats for row in members if row.stats is not None]
        middle = [
            median(getattr(s, f) for s in found) for f in ("snr_spectrum", "stable_rank", "effective_rank", "mp_count")
        ]
        numbers = f"{middle[0]:14.4g}  {middle[1]:12.4g}  {middle[2]:14.4g}  {middle[3]:8.4g}"
        lines.append(f"{kind:{width}}  {len(found):5}  {numbers}")
    return lines


def skipped(rows: Sequence[Row]) -> list[str]:
    """A line per reason, naming the first tensors."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        why = row.why
        if row.stats is not None and not math.isfinite(row.stats.snr_spectrum):
            why = "no finite ratio, so it is not in the JSON: no singular value is noise, or all are 0"
        if why:
            reasons.setdefault(why, []).append(row.name)
    return [
        f"skipped {len(names)} ({why}): {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
        for why, names in reasons.items()
    ]


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        CheckpointError, ValueError, OSError: the folder, a target, an option or an output is not as it must be.
        ImportError: --plot without matplotlib.
    """
    from laser_kernels.devices import resolve_devices
    from laser_kernels.progress import automatic
    from laser_kernels.scan import files, plot
    from laser_kernels.scan.rows import scan

    if not 0 <= args.top_percent <= 100:
        raise ValueError(f"--top-percent must be in 0..100; got {args.top_percent}")
    name = args.name or Path(args.source).resolve().name
    out = args.out or Path(f"snr_results_{files.slug(name)}.json")
    table = _file(args.csv, out, ".csv")
    unfrozen = _file(args.yaml, out, f"_unfrozenparameters_{args.top_percent}percent.yaml")
    picture = _file(args.plot, out, ".png")
    if picture is not None:
        require("matplotlib", "--plot", "plot")
    written = [path for path in (out, table, unfrozen, picture) if path is not None]
    device = resolve_devices(args.device)[0]
    for path in written:
        _writable(path)
    rows = scan(args.source, targets=args.targets, layers=args.layers, device=device, progress=automatic())
    files.write_json(out, rows)
    if table is not None:
        files.write_csv(table, rows)
    if unfrozen is not None:
        files.write_yaml(unfrozen, rows, args.top_percent)
    if picture is not None:
        plot.write_plot(picture, rows, name)
    print("\n".join([*summary(rows), *map(str, written)]))
    for line in skipped(rows):
        print(f"laser-kernels: {line}", file=sys.stderr)
    return 0
