"""A scan as files: Spectrum's JSON and YAML, and a CSV with everything."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from laser_kernels.scan.rows import Row
from laser_kernels.spectra import ENERGY_SHARES

FIELDS = (
    *("sigma_1", "frobenius", "nuclear", "stable_rank", "effective_rank", "condition", "snr", "snr_spectrum"),
    *("mp_threshold", "mp_count", "edge", "edge_count"),
)


def slug(model: str) -> str:
    """Spectrum's spelling of a model's name in file names."""
    return model.replace("/", "-").replace("_", "-")


def snr(rows: Iterable[Row]) -> dict[str, dict[str, object]]:
    """Spectrum's results: {name: {"snr": ..., "type": ...}}, of the matrices that have a finite ratio."""
    return {
        row.name: {"snr": row.stats.snr_spectrum, "type": row.type}
        for row in rows
        if row.stats is not None and math.isfinite(row.stats.snr_spectrum)
    }


def write_json(path: Path, rows: Iterable[Row]) -> None:
    path.write_text(json.dumps(snr(rows), indent=4) + "\n", "utf-8")


def unfrozen(rows: Iterable[Row], percent: float) -> dict[str, list[str]]:
    """By type, the names with the highest Spectrum ratio: int(count * percent / 100) of each."""
    by_type: dict[str, list[tuple[str, float]]] = {}
    for name, found in snr(rows).items():
        by_type.setdefault(str(found["type"]), []).append((name, float(found["snr"])))  # type: ignore[arg-type]
    best = {kind: sorted(names, key=lambda pair: pair[1], reverse=True) for kind, names in by_type.items()}
    return {kind: [name for name, _ in names[: int(len(names) * percent / 100)]] for kind, names in best.items()}


def write_yaml(path: Path, rows: Iterable[Row], percent: float) -> None:
    """Spectrum's list of parameters to train: head and embedding, then the top of each type. For axolotl's
    `unfrozen_parameters`.

    References:
        cognitivecomputations/spectrum, spectrum.py, generate_unfrozen_params_yaml.
    """
    lines = ["unfrozen_parameters:", "- ^lm_head.weight$", "- ^model.embed_tokens.weight$"]
    for kind, names in unfrozen(rows, percent).items():
        lines += [f"# {kind} layers", *(f"- {_scalar(name)}" for name in names)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _scalar(name: str) -> str:
    return yaml.safe_dump(name, width=10**6).removesuffix("\n").removesuffix("\n...")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All that was found: one line per matrix, and one per skipped tensor with the reason."""
    shares = [f"rank_at_{share:g}_of_energy" for share in ENERGY_SHARES]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "type", "layer", "expert", "rows", "cols", *FIELDS, *shares, "skipped"])
        for row in rows:
            layer = "" if row.layer is None else row.layer
            head = [row.name, row.type, layer, "" if row.expert is None else row.expert]
            if row.stats is None:
                table.writerow([*head, *[""] * (2 + len(FIELDS) + len(shares)), row.why])
            else:
                numbers = [getattr(row.stats, field) for field in FIELDS]
                table.writerow([*head, *row.stats.shape, *numbers, *(k for _, k in row.stats.energy_ranks), ""])
