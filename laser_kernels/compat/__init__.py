"""Drop-ins: the signatures of other tools on this backend, and `patch`, which makes those tools use it unmodified."""

from laser_kernels.compat.laser import do_low_rank
from laser_kernels.compat.patching import patch
from laser_kernels.compat.pytorch import svd_lowrank
from laser_kernels.compat.scikit_learn import randomized_svd

__all__ = ["do_low_rank", "patch", "randomized_svd", "svd_lowrank"]
