"""One problem of the benchmark: matrices of one shape, a rank, an accepted excess."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from laser_kernels.rank import resolve_rank

OPS = ("low_rank", "truncated_svd")
DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Problem:
    """`batch` matrices (rows, cols).

    Attributes:
        op: "low_rank" (dense in, dense out) or "truncated_svd" (dense in, factors out).
        rank: a count, or a fraction of the short side.
        source: a family of matrices.py, or "checkpoint".
        names: the tensors, where they come from a checkpoint.
        count: how many such matrices the model has, for totals; 0 where that is not the question.
        inputs: sets of matrices that the repetitions go through.
    """

    rows: int
    cols: int
    rank: int | float = 0.1
    op: str = "low_rank"
    batch: int = 1
    dtype: str = "float32"
    tol: float = 1e-3
    source: str = "llm-like"
    name: str = ""
    names: tuple[str, ...] = ()
    folder: str = ""
    count: int = 0
    inputs: int = 2

    @property
    def resolved(self) -> int:
        """The rank as a count."""
        return resolve_rank(self.rank, self.rows, self.cols)

    @property
    def matrices(self) -> tuple[Any, ...]:
        """What decides the numbers: problems that agree here share matrices and optima."""
        return (self.rows, self.cols, self.batch, self.dtype, self.source, self.names, self.folder, self.inputs)

    def __str__(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        share = f" ({self.rank:.0%})" if isinstance(self.rank, float) else ""
        what = f"{self.name} " if self.name else ""
        return (
            f"{self.op}: {what}{batch}{self.rows}x{self.cols} {self.dtype} {self.source}, rank {self.resolved}{share}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def floor(self) -> tuple[float, float]:
        """(bytes, flops) that no method of this benchmark does without.

        Bytes: each matrix read once, its result written once. Flops, 2 m n r each: one product with A to find a basis,
        one to project onto it, and for a dense result one to multiply out (Halko, Martinsson, Tropp 2011, algorithms
        4.1 and 5.1 without oversampling or iterations).
        """
        size = {"float64": 8, "float32": 4}.get(self.dtype, 2)
        dense, r = self.rows * self.cols, self.resolved
        out = size * dense if self.op == "low_rank" else max(4, size) * r * (self.rows + self.cols + 1)
        products = 3 if self.op == "low_rank" else 2
        return self.batch * float(size * dense + out), self.batch * 2.0 * products * dense * r
