"""Which of two factors holds the singular values."""

from __future__ import annotations

from torch import Tensor

from laser_kernels.api import SVD

SPLITS = ("sqrt", "left", "right")


def check_split(split: str, where: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"[laser_kernels::{where}] split must be one of {', '.join(SPLITS)}; got {split!r}")


def factors_of(svd: SVD, split: str) -> tuple[Tensor, Tensor]:
    """B (m, r) and A (r, n) with B A = U diag(S) Vh.

    sqrt: B = U sqrt(S), A = sqrt(S) Vh, both of one size: kind to 16-bit storage and to further training. left: B = U S
    (kohya, PEFT's convert_to_lora). right: A = S Vh (mergekit without distribute_scale).
    """
    u, s, vh = svd
    if split == "left":
        return u * s, vh
    if split == "right":
        return u, s[:, None] * vh
    root = s.sqrt()
    return u * root, root[:, None] * vh
