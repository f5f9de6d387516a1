"""Rank rules: objects that may stand wherever `rank` is, and find each matrix's own.

lk.low_rank(A, ranks.Energy(0.9))             the least rank that holds 90 % of ||A||_F^2
lk.low_rank(A, ranks.Threshold(0.5))          keeps the singular values above 0.5
lk.low_rank(A, ranks.MarchenkoPastur(0.02))   keeps those that noise of this standard deviation cannot explain

Names of other tools (Laser, Kohya, Peft, Mergekit, LyCORIS, Asvd) are theirs to the exact rank.
"""

from laser_kernels.rank import Rule
from laser_kernels.ranks.marchenko_pastur import MarchenkoPastur
from laser_kernels.ranks.own import Energy, Fixed, Fraction, Frobenius, Knee, Nuclear, ParamBudget, Ratio, Threshold
from laser_kernels.ranks.spec import RULES, from_spec, from_text
from laser_kernels.ranks.tools import Asvd, Kohya, Laser, LyCORIS, Mergekit, Peft

__all__ = [
    "RULES",
    "Asvd",
    "Energy",
    "Fixed",
    "Fraction",
    "Frobenius",
    "Knee",
    "Kohya",
    "Laser",
    "LyCORIS",
    "MarchenkoPastur",
    "Mergekit",
    "Nuclear",
    "ParamBudget",
    "Peft",
    "Ratio",
    "Rule",
    "Threshold",
    "from_spec",
    "from_text",
]
