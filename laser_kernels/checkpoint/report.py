"""What a run did: one row per reduced matrix, as laser_report.json, and the model card of the result."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from laser_kernels.checkpoint.layout import label_of
from laser_kernels.checkpoint.reader import read_json
from laser_kernels.checkpoint.shard import DTYPE_BITS
from laser_kernels.errors import CheckpointError

if TYPE_CHECKING:
    from laser_kernels.info import Info

KEPT = "kept_nonfinite"


def versions() -> dict[str, str]:
    """Of what decides the bits of a result."""
    import torch

    import laser_kernels

    return {
        "laser_kernels": laser_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Row:
    """One reduced matrix: a tensor, or expert `index` of a fused one. `shape` is the matrix's, `dtype` as written.

    `parameters` and `bytes` are [before, after]: m n numbers, but where it is `factored` those of its factors.

    The rest is `laser_kernels.info.Info`. None stands for what does not exist: all of it where status is
    "kept_nonfinite" (NaN or Inf: the weight was left as it was).
    """

    name: str
    index: int | None
    shape: tuple[int, int]
    dtype: str
    rank: int | None = None
    route: str | None = None
    residual: float | None = None
    relative_residual: float | None = None
    excess_bound: float | None = None
    rounding: float | None = None
    iterations: int | None = None
    status: str = KEPT
    seconds: float | None = None
    factored: bool = False
    parameters: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        return label_of(self.name, self.index)

    @staticmethod
    def of(
        name: str,
        index: int | None,
        shape: tuple[int, int],
        dtype: str,
        info: Info | None,
        stored: int | None = None,
        source_dtype: str | None = None,
    ) -> Row:
        """The row of a matrix; `info` None: it was kept. `stored`: how many numbers its factors have, where it has become
        factors; `source_dtype`: its dtype before, where that is not the result's."""
        fields = {} if info is None else {key: _finite(value) for key, value in vars(info).items()}
        before = shape[0] * shape[1]
        after = before if stored is None else stored
        nbytes = before * DTYPE_BITS[source_dtype or dtype] // 8, after * DTYPE_BITS[dtype] // 8
        sizes: dict[str, Any] = {"factored": stored is not None, "parameters": (before, after), "bytes": nbytes}
        return Row(name, index, shape, dtype, **fields, **sizes)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Row:
        pairs = {key: tuple(data[key]) for key in ("shape", "parameters", "bytes") if data.get(key)}
        return Row(**{**data, **pairs})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity


def total_sizes(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Parameters and bytes of these matrices together, each [before, after]."""

    def total(key: str) -> list[int]:
        pairs = [getattr(row, key) or (0, 0) for row in rows]  # reports of old have none
        return [sum(pair[side] for pair in pairs) for side in (0, 1)]

    return {key: total(key) for key in ("parameters", "bytes")}


@dataclass(frozen=True)
class ModelReport:
    """The result of reducing a model in memory: iterates over `rows`, one per matrix, in the order of the parameters.

    `notes`: what a reader should know, shared parameters for example.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Parameters and bytes of the reduced matrices together, each [before, after]."""
        return total_sizes(self.rows)


@dataclass(frozen=True)
class Report:
    """The result of `reduce_checkpoint`.

    Attributes:
        rows: one per reduced matrix, in the order of the tensors.
        plan: the rules, as `Plan.as_dict` gives them.
        settings: tol, seed, device, memory_budget, on_nonfinite, output.
        source: the name of the source folder (not its path), architecture, file fingerprint.
        versions: of laser_kernels, torch, python.
        notes: what a reader should know; files that were not copied.
        tensors, bytes: counts of the checkpoint.
        sizes: parameters and bytes (headers included) of the checkpoint, each [before, after]; for an adapter, of the
            weights that it changes and of itself.
        run: a hash of what decides the output.
        seconds: wall time of the (last) run.
    """

    rows: tuple[Row, ...]
    plan: dict[str, Any]
    settings: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]
    run: str
    notes: tuple[str, ...] = ()
    tensors: int = 0
    bytes: int = 0
    seconds: float = 0.0
    sizes: dict[str, list[int]] = field(default_factory=dict)
    format: int = field(default=1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """The report in a file. Raises CheckpointError where it is none."""
        data = read_json(Path(path))
        try:
            rows = tuple(map(Row.from_dict, data["rows"]))
            return Report(**{**data, "rows": rows, "notes": tuple(data["notes"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{os.fspath(path)}: is no report of laser-kernels ({error})") from None

    def summary(self) -> str:
        """One line for people."""
        kept = sum(row.status == KEPT for row in self.rows)
        reduced = len(self.rows) - kept
        text = f"{reduced} matrices reduced in {self.seconds:.1f} s, "
        text += f"{relative_residual(self.rows):.1%} of their norm removed"
        if self.sizes and self.sizes["parameters"][0] != self.sizes["parameters"][1]:
            text += "; {:,} parameters instead of {:,}".format(*reversed(self.sizes["parameters"]))
        return text + (f"; {kept} kept (NaN or Inf)" if kept else "")


def relative_residual(rows: Sequence[Row]) -> float:
    """||A - A_r|| / ||A|| over all reduced matrices together."""
    squares = norms = 0.0
    for row in rows:
        if row.residual and row.relative_residual:
            squares += row.residual**2
            norms += (row.residual / row.relative_residual) ** 2
    return math.sqrt(squares / norms) if norms else 0.0


_FRONT_MATTER = (
    "license",
    "license_name",
    "license_link",
    "language",
    "base_model",
    "pipeline_tag",
    "library_name",
    "tags",
)


def front_matter(card: str) -> dict[str, Any]:
    """What a card's YAML head says about licence and origin; empty where there is none that can be read."""
    lines = card.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return {}
    end = [line.strip() for line in lines[1:]].index("---") + 1
    try:
        head = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return {key: head[key] for key in _FRONT_MATTER if key in head} if isinstance(head, dict) else {}


def model_card(report: Report, original: str | None) -> str:
    """The README.md of the result. `original` is the source's card, whose licence and origin are kept."""
    head = front_matter(original or "")
    tags = head.get("tags")
    head["tags"] = [*(tags if isinstance(tags, list) else []), "laser", "low-rank"]
    name = report.source["name"]
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---", ""]
    lines += [f"# {name}, rank-reduced", ""]
    lines += [
        f"The checkpoint `{name}` with chosen weight matrices replaced by low-rank approximations (LASER, "
        f"arXiv 2312.13558), made by laser-kernels {report.versions['laser_kernels']}. All other tensors are "
        + (
            "those of the original, its fp8 weights as bf16."
            if report.source["fp8_to_bf16"]
            else "bitwise those of it."
        ),
        "",
        "| rule | targets | layers | rank |",
        "|---|---|---|---|",
    ]
    for number, rule in enumerate(report.plan["rules"], 1):
        targets = ", ".join(f"`{target}`" for target in rule["targets"]).replace("|", "\\|")
        lines.append(f"| {number} | {targets} | {rule['layers']} | {rule['rank']} |")
    kept = [row.label for row in report.rows if row.status == KEPT]
    reduced = [row for row in report.rows if row.status != KEPT]
    lines += ["", f"- matrices reduced: {len(reduced)}"]
    lines += [f"- removed: {relative_residual(reduced):.2%} of their Frobenius norm"]
    lines += [f"- tol {report.settings['tol']}, seed {report.settings['seed']}"]
    factored = sum(row.factored for row in reduced)
    if factored:
        sizes = "{:,} parameters, not {:,}".format(*reversed(report.sizes["parameters"]))
        lines += [f"- {factored} of them are stored as two factors, `X.weight` as `X.B` `X.A`: {sizes}"]
        lines += ["- `laser_kernels.load_factored` loads it; `from_pretrained` fills these weights with random numbers"]
    lines += [f"- left as they were, for NaN or Inf: {', '.join(f'`{label}`' for label in kept)}"] if kept else []
    lines += [f"- note: {note}" for note in report.notes]
    lines += [
        "",
        "Each matrix with its residual: `laser_report.json`. Check with `laser-kernels verify SRC DST`.",
        "",
    ]
    return "\n".join(lines)
