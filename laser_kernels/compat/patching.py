"""patch(tool): an unmodified library on this backend, for as long as a `with` lasts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from laser_kernels.compat import accuracy, mergekit, peft
from laser_kernels.compat.cut import seams_of
from laser_kernels.compat.pytorch import svd_lowrank, torchs_own
from laser_kernels.compat.scikit_learn import randomized_svd, sklearns_own
from laser_kernels.compat.seams import Seam, close_seam, open_seam, seam
from laser_kernels.packages import require

TOOLS = ("torch", "peft", "mergekit", "sklearn")
SVD_LOWRANK = seam("torch.svd_lowrank", torchs_own, svd_lowrank)


@functools.cache
def _seams(tool: str) -> tuple[Seam, ...]:
    if tool == "torch":
        return (SVD_LOWRANK,)
    wanted_by = f'patch("{tool}")'
    if tool == "sklearn":
        require("sklearn", wanted_by, "tools", "scikit-learn")
        return tuple(seam(f"sklearn.utils.extmath.{f.__name__}", f, randomized_svd) for f in sklearns_own())
    require(tool, wanted_by, "tools")
    cut = seams_of(peft.SITES if tool == "peft" else mergekit.SITES)
    if len(cut) == 1:
        raise ImportError(
            f"[laser_kernels::compat] {wanted_by}: this version of {tool} has none of the functions that we know: "
            "install the one that laser-kernels[tools] names"
        )
    return (SVD_LOWRANK, *cut)


@contextmanager
def patch(tool: str, *, tol: float = accuracy.DEFAULT_TOL) -> Iterator[tuple[str, ...]]:
    """Inside `with patch(tool)`, that library computes its truncated SVDs by this backend.

    "torch": torch.svd_lowrank becomes compat.svd_lowrank, under every name that any module has given it. torch.linalg.svd
    stays: its callers are entitled to all singular values. "peft", "mergekit": that, and where the tool makes a full SVD
    and keeps a known number of triples, only those are computed (compat/peft.py and compat/mergekit.py list the
    places). "sklearn": randomized_svd, and so PCA, TruncatedSVD and NMF where they use it.

    Guarantees: on leaving, by an exception too, every name is what it was, names that were imported inside included.
    Patches nest, the same tool twice included. Not guaranteed: threads. Names are exchanged for the whole process: other
    threads use this backend too while any patch is open, which is safe but may surprise.

    Args:
        tool: "torch", "peft", "mergekit" or "sklearn".
        tol: the excess over the optimal residual that is accepted where the tool would have computed an exact SVD, and at
            most accepted elsewhere. Of nested patches the innermost counts.

    Yields:
        The names of the functions that were replaced: what the installed version has of those we know.

    Raises:
        ValueError: unknown tool, or a bad tol. ModuleNotFoundError: the tool is not installed. RuntimeError: something else
        has replaced a function already.
    """
    if tool not in TOOLS:
        raise ValueError(f"[laser_kernels::compat] patch() knows {', '.join(TOOLS)}; got {tool!r}")
    if not (isinstance(tol, (int, float)) and 0 <= tol < float("inf")):
        raise ValueError(f"[laser_kernels::compat] tol must be a number >= 0 (the excess you accept); got {tol!r}")
    with ExitStack() as undo:
        seams = _seams(tool)
        accuracy.asked[this := object()] = tol
        undo.callback(accuracy.asked.pop, this)
        for each in seams:
            open_seam(each)
            undo.callback(close_seam, each)
        yield tuple(each.name for each in seams)
