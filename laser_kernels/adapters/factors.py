"""What an adapter adds to a weight, whatever file it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from laser_kernels.errors import CheckpointError


class Factors(NamedTuple):
    """The change of one module's weight: delta = (alpha / r) B A.

    Attributes:
        B: (out, r).
        A: (r, in); for a convolution (r, channels * kernel), flattened.
        alpha: by LoRA's convention the factor alpha / r belongs to the change; alpha = r means 1.
        kernel: the sizes behind r in a convolution's A, (channels, height, width); () for a linear layer.
    """

    B: Tensor
    A: Tensor
    alpha: float
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def stored(self) -> tuple[Tensor, Tensor]:
        """B and A in the shapes that files hold: with a convolution's kernel sizes."""
        if not self.kernel:
            return self.B, self.A
        ones = (1,) * (len(self.kernel) - 1)
        return self.B.reshape(*self.B.shape, *ones), self.A.reshape(self.rank, *self.kernel)


def factors_of(name: str, up: Tensor, down: Tensor, alpha: float | None) -> Factors:
    """The Factors of two stored tensors; alpha None: r, as loaders take it.

    Raises:
        ValueError: shapes that do not belong together; `name` is in the message.
    """
    kernel = tuple(down.shape[1:]) if down.dim() > 2 else ()
    fits = down.dim() >= 2 and up.dim() == down.dim() and up.shape[1] == down.shape[0]
    if not fits or min(*up.shape, *down.shape) == 0 or any(size != 1 for size in up.shape[2:]):
        raise ValueError(
            f"[laser_kernels::adapters] {name}: B must be (out, r) and A (r, in), or (out, r, 1, 1) and (r, in, kh, kw); "
            f"got {tuple(up.shape)} and {tuple(down.shape)}"
        )
    return Factors(up.flatten(1), down.flatten(1), float(down.shape[0] if alpha is None else alpha), kernel)


@dataclass(frozen=True)
class Adapter:
    """An adapter file or folder, taken apart.

    Attributes:
        factors: module name -> its Factors, in the order of the file.
        keys: module name -> the names under which the file holds B and A.
        others: every other tensor (alphas, biases, magnitudes, whole modules), which writing carries over.
        settings: PEFT's adapter_config.json; a single file's metadata.
        form: "peft" or "single": who reads and writes it.
    """

    factors: dict[str, Factors]
    keys: dict[str, tuple[str, str]]
    others: dict[str, Tensor]
    settings: dict[str, Any]
    form: str

    def with_factors(self, factors: Mapping[str, Factors]) -> Adapter:
        """The same adapter with other Factors for its modules."""
        assert factors.keys() == self.keys.keys()
        return replace(self, factors=dict(factors))


def pairs_of(names: Collection[str], endings: Sequence[tuple[str, str]], where: str) -> dict[str, tuple[str, str]]:
    """Module -> names of B and A, by the endings that some tool gives them.

    Raises:
        CheckpointError: there is no pair, or half of one; `where` names the file.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        for pair in endings:
            ending = next((ending for ending in pair if name.endswith(ending)), None)
            if ending is None:
                continue
            module = name.removesuffix(ending)
            found[module] = (module + pair[0], module + pair[1])
            if missing := [key for key in found[module] if key not in names]:
                raise CheckpointError(f"{where}: has {name!r} without {missing[0]!r}: half of a pair is missing")
    if not found:
        raise CheckpointError(
            f"{where}: holds no LoRA factors; its tensors are, for example, {', '.join([*names][:4])}"
        )
    return found
