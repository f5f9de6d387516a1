"""Low-rank reduction of LLM weights at matrix-product speed, with a certified error. Contract: the docstrings in api.py."""

from laser_kernels import ranks
from laser_kernels.api import SVD, choose, explain, low_rank, svdvals, truncated_svd
from laser_kernels.checkpoint.factored import load_factored
from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.report import Report
from laser_kernels.checkpoint.verification import Verification, verify
from laser_kernels.deltas import svd_delta
from laser_kernels.dispatch import Problem, Route
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.factorization import Factorization, factorize
from laser_kernels.factorize_model import factorize_model_
from laser_kernels.info import Info
from laser_kernels.lora.extract import extract_lora
from laser_kernels.lora.output import reduce_to_lora
from laser_kernels.lora.resize import resize_lora
from laser_kernels.low_rank_linear import LowRankLinear
from laser_kernels.models import reduce_model_, reduced
from laser_kernels.products import svd_product
from laser_kernels.ranks import MarchenkoPastur, Threshold
from laser_kernels.run import EscalationWarning
from laser_kernels.selection import Plan
from laser_kernels.spectra import SpectrumStats, spectrum_stats
from laser_kernels.version import __version__
from laser_kernels.weighted import WeightedSVD, weighted_svd

__all__ = [
    "SVD",
    "CheckpointError",
    "EscalationWarning",
    "Factorization",
    "Info",
    "LowRankLinear",
    "MarchenkoPastur",
    "NonFiniteError",
    "Plan",
    "Problem",
    "Report",
    "Route",
    "SpectrumStats",
    "Threshold",
    "Verification",
    "WeightedSVD",
    "__version__",
    "choose",
    "explain",
    "extract_lora",
    "factorize",
    "factorize_model_",
    "load_factored",
    "low_rank",
    "ranks",
    "reduce_checkpoint",
    "reduce_model_",
    "reduce_to_lora",
    "reduced",
    "resize_lora",
    "spectrum_stats",
    "svd_delta",
    "svd_product",
    "svdvals",
    "truncated_svd",
    "verify",
    "weighted_svd",
]
