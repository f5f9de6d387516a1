"""LASER's own words for what to reduce (lname, lnum, rate), and the Plan that says the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from torch import nn

from laser_kernels.models import targets_of
from laser_kernels.rank import resolve_rank
from laser_kernels.selection import Plan, Rule, parse_targets

# The paper's names of the two MLP matrices it searches (section 3), as its code spells them.
PAPER = {"U_in": "fc_in", "U_out": "fc_out"}


def rho_of(rate: float) -> float:
    """The fraction of the rank that LASER's rate keeps: 1 - rate / 10 in decimal, so that 9.9 gives 0.01."""
    return float((10 - Decimal(repr(rate))) / 10)


@dataclass(frozen=True, order=True)
class Intervention:
    """Reduce the matrices that `lname` names in layer `lnum` by LASER's `rate`.

    Guarantees: `rho` and `rank` are exact in decimal: rank = floor(rho * min(m, n)), at least 1. What LASER's code makes of
    the rate in binary floating point, int(min(m, n) * ((10 - rate) * 0.1)), is 1 less for some sides (1000 at rate 9.9:
    9, not 10); ask for it with compat=True.

    Args:
        lname: q_proj k_proj v_proj out_proj fc_in fc_up fc_out mlp attn all, the paper's U_in or U_out, or `re:REGEX`.
        lnum: the 0-based layer; -1 for every layer.
        rate: in [0, 10): the tenths of the rank that are dropped. 10 would leave the zero matrix, of rank 0.

    Raises:
        ValueError: an unknown name (it lists the known ones), a layer below -1, a rate outside [0, 10).

    References:
        pratyushasharma/laser: src/laser/matrix_utils.py and the *_laser.py files (names). Paper: arXiv 2312.13558.
    """

    lname: str
    lnum: int
    rate: float

    def __post_init__(self) -> None:
        if self.lname in PAPER:
            object.__setattr__(self, "lname", PAPER[self.lname])
        names = parse_targets(self.lname, "[laser_kernels::laser] lname")
        if len(names) > 1:
            raise ValueError(
                f"[laser_kernels::laser] lname must be one name; got {self.lname!r}: make one Intervention each"
            )
        if isinstance(self.lnum, bool) or not isinstance(self.lnum, int) or self.lnum < -1:
            raise ValueError(f"[laser_kernels::laser] lnum must be a layer >= 0, or -1 for all; got {self.lnum!r}")
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 <= self.rate < 10:
            raise ValueError(
                f"[laser_kernels::laser] rate must be in [0, 10): rho = 1 - rate / 10 of the rank stays; got {self.rate!r}"
            )

    @staticmethod
    def keeping(lname: str, lnum: int, rho: float) -> Intervention:
        """The intervention that keeps the fraction rho in (0, 1] of the rank: the paper's [tau, l, rho]."""
        if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 < rho <= 1:
            raise ValueError(f"[laser_kernels::laser] rho must be in (0, 1]; got {rho!r}")
        return Intervention(lname, lnum, float(10 - 10 * Decimal(repr(rho))))

    @property
    def rho(self) -> float:
        """The fraction of min(m, n) that is kept."""
        return rho_of(self.rate)

    def rank(self, rows: int, cols: int, compat: bool = False) -> int:
        """The rank of a (rows, cols) matrix; compat: LASER's own rounding, which may be 0 for a small matrix."""
        return int(min(rows, cols) * ((10 - self.rate) * 0.1)) if compat else resolve_rank(self.rho, rows, cols)

    def plan(self) -> Plan:
        """The same as a Plan, for models in memory and for checkpoints."""
        return compose([self])

    def __str__(self) -> str:
        return f"[{self.lname}, {'all layers' if self.lnum < 0 else f'layer {self.lnum}'}, rho {self.rho:g}]"


def compose(interventions: Iterable[Intervention]) -> Plan:
    """One Plan that does what the interventions do one after another, in whichever order.

    A matrix that several name takes the smallest rank: the best rank-r approximation of a best rank-s one, s >= r, is
    that of the matrix itself (Eckart-Young). So the rules stand by rho, smallest first, and the first that matches decides.
    """
    ordered = sorted(interventions, key=lambda one: one.rho)
    if not ordered:
        raise ValueError("[laser_kernels::laser] nothing to compose: pass at least one Intervention")
    return Plan(tuple(Rule((one.lname,), one.rho, None if one.lnum < 0 else frozenset({one.lnum})) for one in ordered))


def compat_plan(model: nn.Module, interventions: Sequence[Intervention]) -> Plan:
    """`compose` with the ranks that LASER's code would take on this model's shapes.

    Raises:
        ValueError: a rank would be 0, as LASER's rounding gives for small matrices.
    """
    ordered = sorted(interventions, key=lambda one: one.rho)
    rules = []
    for target in targets_of(model, compose(ordered)).targets:
        one = ordered[target.rule]
        rank = one.rank(target.rows, target.cols, compat=True)
        if rank == 0:
            raise ValueError(
                f"[laser_kernels::laser] {target.name}: LASER's rounding gives rank 0 for {target.rows}x{target.cols} at "
                f"rate {one.rate:g}: use compose, which keeps at least 1"
            )
        rules.append(Rule((f"re:^{re.escape(target.name)}$",), rank))
    return Plan(tuple(rules))


def interventions_of(plan: Plan) -> list[Intervention]:
    """A plan in LASER's vocabulary: one Intervention per target and layer of each rule.

    Raises:
        ValueError: a rank that is a count (rate speaks of fractions), or rules whose order matters and cannot be said.
    """
    found: list[Intervention] = []
    smallest = 0.0
    for rule in plan.rules:
        if not isinstance(rule.rank, float) or rule.rank < smallest:
            raise ValueError(
                f"[laser_kernels::laser] a rate is a fraction, and of two the smaller one wins; rule {rule.as_dict()} has "
                "no such form: use fractions in ascending order"
            )
        smallest = rule.rank
        layers = [-1] if rule.layers is None else sorted(rule.layers)
        found += [Intervention.keeping(name, layer, rule.rank) for name in rule.targets for layer in layers]
    return found
