"""Rules of other tools, to the exact rank, their slips included. Each names its source.

`count` repeats a tool's arithmetic in the dtype of the values it is given: the tools compute in float32. `of` finds
values in float64, so where a sum meets a target to float32's rounding, the tool's own rank may differ by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laser_kernels.rank import Rule
from laser_kernels.ranks import checks
from laser_kernels.ranks.crossing import Above, Crossing, Share
from laser_kernels.ranks.own import ShapeRule, spectrum


@dataclass(frozen=True)
class Laser(ShapeRule):
    """LASER's int(min(m, n) * ((10 - rate) * 0.1)) in binary floating point: rate 9.9 gives 9 of 1000, not 10.

    rate 10 gives 0, which is clamped to 1.

    References:
        pratyushasharma/laser, src/laser/matrix_utils.py, do_low_rank, and the `(10 - rate) * 0.1` of its callers.
    """

    rate: float
    name: ClassVar[str] = "laser"

    def __post_init__(self) -> None:
        checks.number(self, self.rate, 0, 10, what="a rate in 0..10, the tenths thrown away")

    def of_shape(self, rows: int, cols: int) -> int:
        return int(min(rows, cols) * ((10 - self.rate) * 0.1))


@dataclass(frozen=True)
class Asvd(ShapeRule):
    """ASVD's int(m n ratio) // (m + n), then up to a multiple of `rank_align`.

    References:
        hahnyuan/ASVD4LLM, modules/svd_linear.py, SVDLinear.from_linear.
    """

    ratio: float
    rank_align: int = 1
    name: ClassVar[str] = "asvd"

    def __post_init__(self) -> None:
        checks.number(self, self.ratio, 0, 1, above=True, what="a ratio in (0, 1] of the matrix's numbers")
        checks.whole(self, self.rank_align, "a multiple >= 1 for the rank (rank_align)")

    def of_shape(self, rows: int, cols: int) -> int:
        return math.ceil(int(rows * cols * self.ratio) // (rows + cols) / self.rank_align) * self.rank_align


@dataclass(frozen=True)
class Peft(Rule):
    """PEFT's convert_to_lora with a float rank: the least k with s_1^2 + ... + s_k^2 >= tau ||A||_F^2.

    Its documentation speaks of a sum of values; its code, and this rule, take squares.

    References:
        huggingface/peft, src/peft/tuners/lora/conversion.py, _find_cutoff_index.
    """

    tau: float
    name: ClassVar[str] = "peft"

    def __post_init__(self) -> None:
        checks.number(self, self.tau, 0, 1, above=True, what="a share in (0, 1] of ||A||_F^2")

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Share(self.tau)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        sums = spectrum(values).square().cumsum(0)
        return int(torch.searchsorted(sums, self.tau * sums[-1])) + 1


@dataclass(frozen=True)
class Mergekit(Rule):
    """mergekit-extract-lora's rank: at most `max_rank`, and only values above `eps` where that is > 0.

    References:
        arcee-ai/mergekit, mergekit/scripts/extract_lora.py (--max-rank, --sv-epsilon).
    """

    max_rank: int = 32
    eps: float = 0.0
    name: ClassVar[str] = "mergekit"

    def __post_init__(self) -> None:
        checks.whole(self, self.max_rank, "an int >= 1 (max_rank)")
        checks.number(self, self.eps, 0, what="a singular value >= 0 (eps)")

    def of_shape(self, rows: int, cols: int) -> int | None:
        return None if self.eps > 0 else min(self.max_rank, rows, cols)

    def crossing(self, shape: tuple[int, int]) -> Crossing:
        return Above(absolute=self.eps)

    def finish(self, count: int, shape: tuple[int, int], sigma_1: float) -> int:
        return min(self.max_rank, count)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values)
        return min(self.max_rank, int((s > self.eps).sum()) if self.eps > 0 else len(s))


KOHYA_METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")
KOHYA_ZERO = 1e-6  # its MIN_SV


@dataclass(frozen=True)
class Kohya(Rule):
    """The dynamic ranks of kohya's resize_lora.py.

    sv_ratio: s > s_1 / param; sv_fro: until sqrt(E_k / ||A||_F^2) reaches param; sv_cumulative: until the sum of values
    reaches param of the whole. s_1 <= 1e-6 gives 1.

    Args:
        method: sv_ratio, sv_fro or sv_cumulative.
        param: its parameter: > 1 for sv_ratio, in (0, 1] for the others.
        max_rank: the tool's --new_rank, a limit. None: no limit.
        plus_one: one rank more than the definition says (where 1 < k < min(m, n)), as before sd-scripts pull request
            2194 of 2025. Default: the corrected form.

    References:
        kohya-ss/sd-scripts, networks/resize_lora.py, rank_resize and index_sv_*.
    """

    method: str
    param: float
    max_rank: int | None = None
    plus_one: bool = False
    name: ClassVar[str] = "kohya"

    def __post_init__(self) -> None:
        checks.one_of(self, self.method, KOHYA_METHODS, "for method one of")
        if self.method == "sv_ratio":
            checks.number(self, self.param, 1, what="a ratio >= 1 as param of sv_ratio")
        else:
            checks.number(self, self.param, 0, 1, above=True, what=f"a share in (0, 1] as param of {self.method}")
        if self.max_rank is not None:
            checks.whole(self, self.max_rank, "an int >= 1 (max_rank), or None")
        if not isinstance(self.plus_one, bool):
            raise ValueError(f"[laser_kernels] Kohya takes True or False for plus_one; got {self.plus_one!r}")

    def crossing(self, shape: tuple[int, int]) -> Crossing | None:
        crossings = {"sv_ratio": Above(relative=1 / self.param), "sv_fro": Share(self.param**2)}
        return crossings.get(self.method)

    def finish(self, count: int, shape: tuple[int, int], sigma_1: float) -> int:
        if sigma_1 <= KOHYA_ZERO:
            return 1
        last = min(shape) - 1
        index = max(1, min(count, last)) if self.plus_one else max(0, min(count - 1, last))
        return min(index + 1, self.max_rank or index + 1)

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values)
        if self.method == "sv_ratio":
            found = int((s > s[0] / self.param).sum())
        else:
            parts, target = (s.square(), self.param**2) if self.method == "sv_fro" else (s, self.param)
            found = int(torch.searchsorted(parts.cumsum(0) / float(parts.sum()), target)) + 1
        return self.finish(found, shape or (len(s), len(s)), s[0].item())


LYCORIS_MODES = ("fixed", "threshold", "ratio", "quantile")


@dataclass(frozen=True)
class LyCORIS(Rule):
    """The ranks of LyCORIS' extract_linear.

    fixed: param; threshold: s > param; ratio: s > param s_1; quantile: the number of k with s_1 + ... + s_k < param
    (s_1 + s_2 + ...), one less than it takes to reach it. At least 1; from half the output side m on the tool keeps the
    dense matrix, which is rank min(m, n) here.

    References:
        KohakuBlueleaf/LyCORIS, lycoris/utils/__init__.py, extract_linear.
    """

    mode: str
    param: float
    name: ClassVar[str] = "lycoris"

    def __post_init__(self) -> None:
        checks.one_of(self, self.mode, LYCORIS_MODES, "for mode one of")
        if self.mode == "fixed":
            checks.whole(self, self.param, "an int >= 1 as param of fixed")
        elif self.mode == "threshold":
            checks.number(self, self.param, 0, what="a singular value >= 0 as param of threshold")
        else:
            checks.number(self, self.param, 0, 1, what=f"a share in 0..1 as param of {self.mode}")

    def of_shape(self, rows: int, cols: int) -> int | None:
        return self.finish(int(self.param), (rows, cols), 1.0) if self.mode == "fixed" else None

    def crossing(self, shape: tuple[int, int]) -> Crossing | None:
        crossings = {"threshold": Above(absolute=self.param), "ratio": Above(relative=self.param)}
        return crossings.get(self.mode)

    def finish(self, count: int, shape: tuple[int, int], sigma_1: float) -> int:
        rank = min(*shape, max(1, count))
        return min(shape) if rank >= shape[0] / 2 else rank

    def count(self, values: Tensor | Sequence[float], shape: tuple[int, int] | None = None) -> int:
        s = spectrum(values)
        found = {
            "fixed": lambda: int(self.param),
            "threshold": lambda: int((s > self.param).sum()),
            "ratio": lambda: int((s > s.max() * self.param).sum()),
            "quantile": lambda: int((s.cumsum(0) < self.param * s.sum()).sum()),
        }[self.mode]()
        return self.finish(found, shape or (len(s), len(s)), 1.0)
