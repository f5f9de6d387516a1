"""Low-rank reduction of LLM weights at matrix-product speed, with a certified error. Contract: the docstrings in api.py."""

from laser_kernels.api import (
    SVD,
    Factorization,
    choose,
    explain,
    factorize,
    low_rank,
    svdvals,
    truncated_svd,
)
from laser_kernels.dispatch import Problem, Route
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.info import Info
from laser_kernels.run import EscalationWarning
from laser_kernels.version import __version__

__all__ = [
    "SVD",
    "CheckpointError",
    "EscalationWarning",
    "Factorization",
    "Info",
    "NonFiniteError",
    "Problem",
    "Route",
    "__version__",
    "choose",
    "explain",
    "factorize",
    "low_rank",
    "svdvals",
    "truncated_svd",
]
