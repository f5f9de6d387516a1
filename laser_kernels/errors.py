"""Exceptions a caller may want to tell apart. Everything else is a ValueError or TypeError with its reason."""

from __future__ import annotations

from collections.abc import Sequence


class NonFiniteError(ValueError):
    """A weight holds NaN or Inf. `indices` are the positions of such matrices in the batch or list that was passed;
    `names`, where they have some, what they are called instead."""

    def __init__(self, indices: Sequence[int], where: str = "low_rank", names: Sequence[str] = ()):
        self.indices = list(indices)
        shown = ", ".join(list(names or map(str, self.indices))[:5]) + (", ..." if len(self.indices) > 5 else "")
        super().__init__(
            f"[laser_kernels::{where}] NaN or Inf in matrix {shown}: a truncated SVD of it does not exist; "
            "repair or leave out that weight"
        )


class CheckpointError(ValueError):
    """A checkpoint folder cannot be read, or its destination cannot be written, as asked."""
