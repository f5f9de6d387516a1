"""sklearn.utils.extmath.randomized_svd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laser_kernels.api import truncated_svd
from laser_kernels.arrays import to_tensor
from laser_kernels.compat.accuracy import accepted
from laser_kernels.packages import require

OVERSAMPLES = 10  # scikit-learn's default
# Its defaults leave an excess of 1e-11...7e-3 on the families of laser_kernels.testing: below this where it does better.
DEFAULT_TOL = 1e-5
DRIVERS = ("gesdd", "gesvd")

_NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "QR": lambda x: torch.linalg.qr(x).Q,
    "LU": lambda x: torch.matmul(*torch.linalg.lu(x)[:2]),
    "none": lambda x: x,
}


@functools.cache
def sklearns_own() -> tuple[Callable[..., Any], ...]:
    """scikit-learn's functions of this signature, the innermost first: estimators call that one from version 1.9 on."""
    extmath = require("sklearn.utils.extmath", "randomized_svd", "tools", "scikit-learn")
    found = (getattr(extmath, name, None) for name in ("_randomized_svd", "randomized_svd"))
    return tuple(f for f in found if f is not None)


def randomized_svd(
    M: Any,
    n_components: int,
    *,
    n_oversamples: int = OVERSAMPLES,
    n_iter: int | str = "auto",
    power_iteration_normalizer: str = "auto",
    transpose: bool | str = "auto",
    flip_sign: bool = True,
    random_state: Any = None,
    svd_lapack_driver: str = "gesdd",
) -> tuple[Any, Any, Any]:
    """The leading min(n_components, m, n) singular triples (u, s, vh) of M, as NumPy arrays.

    Guarantees: with n_oversamples, n_iter and power_iteration_normalizer left at their defaults, those of truncated_svd
    at tol=1e-5: orthonormal factors, a residual of at most 1.00001 times the optimum. Where one of the three is given,
    scikit-learn's algorithm, literally: the same random matrix, so many columns and iterations, that normalization; the
    same numbers to rounding. float32 in, float32 out; all other types are computed in float64. With flip_sign the
    largest |entry| of each column of u is positive. Sparse input, and scikit-learn's array API mode, go to scikit-learn.

    Args:
        M: array-like (m, n), checked by scikit-learn.
        n_components: how many triples; fewer than 1 is left to scikit-learn.
        n_oversamples, n_iter, power_iteration_normalizer: see above; "auto" | int, and "auto" | "QR" | "LU" | "none".
        transpose: work on M^T ("auto": where m < n); matters only where the algorithm is literal.
        random_state: None, an int or a RandomState, which is advanced.
        svd_lapack_driver: "gesdd" or "gesvd"; the same result to rounding, from torch's LAPACK call (gesdd).

    Raises:
        ModuleNotFoundError: scikit-learn is missing. ValueError: as scikit-learn's check_array (NaN, shape), or an option
        that does not exist.

    References:
        scikit-learn/scikit-learn, sklearn/utils/extmath.py. Halko, Martinsson, Tropp (2011), algorithms 4.3 and 4.4.
    """
    own, checking = sklearns_own()[0], sklearns_own()[-1]  # the outermost checks its arguments
    from sklearn import get_config
    from sklearn.utils.validation import check_array, check_random_state

    if power_iteration_normalizer not in ("auto", *_NORMALIZERS):
        raise ValueError(
            "[laser_kernels::randomized_svd] power_iteration_normalizer must be auto, QR, LU or none; "
            f"got {power_iteration_normalizer!r}"
        )
    if svd_lapack_driver not in DRIVERS:
        raise ValueError(
            f"[laser_kernels::randomized_svd] svd_lapack_driver must be gesdd or gesvd; got {svd_lapack_driver!r}"
        )
    array_api = get_config().get("array_api_dispatch", False)
    checked = M if array_api else check_array(M, accept_sparse=True)
    if array_api or not isinstance(checked, np.ndarray) or n_components < 1:
        return (own if n_components >= 1 else checking)(
            checked,
            n_components,
            n_oversamples=n_oversamples,
            n_iter=n_iter,
            power_iteration_normalizer=power_iteration_normalizer,
            transpose=transpose,
            flip_sign=flip_sign,
            random_state=random_state,
            svd_lapack_driver=svd_lapack_driver,
        )
    a = to_tensor(checked if checked.dtype in (np.float32, np.float64) else checked.astype(np.float64))
    assert a is not None
    rank, generator = min(n_components, *a.shape), check_random_state(random_state)
    unsaid = (n_oversamples, n_iter, power_iteration_normalizer) == (OVERSAMPLES, "auto", "auto")
    if unsaid and a.any():  # any vectors are right for the zero matrix; scikit-learn's tests want those of LAPACK
        seed = int(generator.randint(np.iinfo(np.int32).max))
        return tuple(x.numpy() for x in truncated_svd(a, rank, tol=min(accepted(), DEFAULT_TOL), seed=seed))
    iterations = int((7 if n_components < 0.1 * min(a.shape) else 4) if n_iter == "auto" else n_iter)
    normalizer = power_iteration_normalizer
    if normalizer == "auto":
        normalizer = "none" if iterations <= 2 else "LU"
    across = a.shape[0] < a.shape[1] if transpose == "auto" else transpose
    columns = n_components + n_oversamples
    u, s, vh = _literal(a.T if across else a, columns, iterations, _NORMALIZERS[normalizer], generator)
    if across:
        u, vh = vh.T, u.T
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    if flip_sign:
        signs = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))  # (1, rank)
        u, vh = u * signs, vh * signs.T
    return u.numpy(), s.numpy(), vh.numpy()


def _literal(
    a: Tensor, columns: int, iterations: int, normalize: Callable[[Tensor], Tensor], generator: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 4.4 (4.3 without normalization) and 5.1 of Halko, Martinsson, Tropp on a (m, n), from scikit-learn's
    random numbers."""
    q = torch.from_numpy(generator.normal(size=(a.shape[1], columns))).to(a.dtype)  # (n, columns)
    for _ in range(iterations):
        q = normalize(a.T @ normalize(a @ q))
    q = torch.linalg.qr(a @ q).Q
    u, s, vh = torch.linalg.svd(q.T @ a, full_matrices=False)
    return q @ u, s, vh
