"""A scan as a picture: how signal and rank of each type of matrix go through the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from laser_kernels.scan.rows import Row
from laser_kernels.spectra import SpectrumStats

MOST = 12  # lines that can still be told apart
PANELS = (
    ("snr", "signal / noise (laserRMT)"),
    ("effective_rank", "effective rank / short side"),
    ("stable_rank", "stable rank"),
)


def _value(stats: SpectrumStats, field: str) -> float:
    value = float(getattr(stats, field))
    return value / min(stats.shape) if field == "effective_rank" else value


def curves(rows: Sequence[Row], field: str) -> dict[str, list[tuple[int, float]]]:
    """type -> (layer, median over its experts), ascending; matrices without a layer, and infinite values, left out."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row.stats is not None and row.layer is not None and math.isfinite(value := _value(row.stats, field)):
            found.setdefault(row.type, {}).setdefault(row.layer, []).append(value)
    return {kind: [(layer, median(each[layer])) for layer in sorted(each)] for kind, each in found.items()}


def write_plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """PNG: one panel per measure, one line per type of matrix (the first 12 types)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 9), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for (field, label), one in zip(PANELS, axes, strict=True):
        for kind, points in list(curves(rows, field).items())[:MOST]:
            one.plot(*zip(*points, strict=True), marker=".", label=kind)
        one.set_ylabel(label)
        one.grid(alpha=0.3)
    axes[-1].set_xlabel("layer")
    handles, labels = axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
