"""Low-rank reduction of LLM weights at matrix-product speed, with a certified error. Contract: the docstrings in api.py."""

from laser_kernels import ranks
from laser_kernels.api import SVD, choose, explain, low_rank, svdvals, truncated_svd
from laser_kernels.dispatch import Problem, Route
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.factorization import Factorization, factorize
from laser_kernels.info import Info
from laser_kernels.ranks import MarchenkoPastur, Threshold
from laser_kernels.reduce import reduce_checkpoint
from laser_kernels.report import Report
from laser_kernels.run import EscalationWarning
from laser_kernels.selection import Plan
from laser_kernels.spectra import SpectrumStats, spectrum_stats
from laser_kernels.verification import Verification, verify
from laser_kernels.version import __version__

__all__ = [
    "SVD",
    "CheckpointError",
    "EscalationWarning",
    "Factorization",
    "Info",
    "MarchenkoPastur",
    "NonFiniteError",
    "Plan",
    "Problem",
    "Report",
    "Route",
    "SpectrumStats",
    "Threshold",
    "Verification",
    "__version__",
    "choose",
    "explain",
    "factorize",
    "low_rank",
    "ranks",
    "reduce_checkpoint",
    "spectrum_stats",
    "svdvals",
    "truncated_svd",
    "verify",
]
