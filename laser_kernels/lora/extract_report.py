"""What extract_lora found, module by module, and what it left out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Extracted:
    """One module. residual: ||(tuned - base) - B A|| of the factors as stored; relative to ||tuned - base||."""

    name: str
    shape: tuple[int, int]
    rank: int
    residual: float
    relative_residual: float
    excess_bound: float
    route: str
    status: str


@dataclass(frozen=True)
class ExtractReport:
    """What extract_lora found.

    Attributes:
        rows: one per module of the adapter.
        unchanged: modules asked for in which nothing has changed; the adapter does without them.
        left_out: tensors that have changed and are not in the adapter: norms, biases, embeddings, what was not asked for.
        only_in_base, only_in_tuned, reshaped: tensors that have no counterpart.
        notes: what else a reader should know.
    """

    rows: tuple[Extracted, ...]
    unchanged: tuple[str, ...]
    left_out: tuple[str, ...]
    only_in_base: tuple[str, ...]
    only_in_tuned: tuple[str, ...]
    reshaped: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def summary(self) -> str:
        ranks, lost = [row.rank for row in self.rows], [row.relative_residual for row in self.rows]
        text = f"{len(ranks)} modules, rank {min(ranks)} to {max(ranks)}, relative residual {min(lost):.3g}-{max(lost):.3g}"
        counts = {
            "unchanged": self.unchanged,
            "changed but left out": self.left_out,
            "only in base": self.only_in_base,
            "only in tuned": self.only_in_tuned,
            "of another shape": self.reshaped,
        }
        return "; ".join([text, *(f"{len(names)} {what} ({names[0]}, ...)" for what, names in counts.items() if names)])
