"""Where a search can act: matrices of one kind in one layer, and what one factorization makes of them at every rho."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor, nn

import laser_kernels as lk
from laser_kernels.architectures import GROUPS, architectures, layer_of
from laser_kernels.models import targets_of
from laser_kernels.selection import Plan, Rule, Target, parse_layers, parse_targets


@dataclass(frozen=True)
class Site:
    """The tensors that `lname` names in layer `lnum` (-1: they belong to no layer)."""

    lname: str
    lnum: int
    targets: tuple[Target, ...]

    def __str__(self) -> str:
        return f"{self.lname} of layer {self.lnum}" if self.lnum >= 0 else self.lname


def sites_of(model: nn.Module, matrices: str | Sequence[str], layers: object = None) -> list[Site]:
    """All sites that the names and layers mean, lowest layer first. A group (mlp, attn, all) is searched matrix by matrix.

    A tensor that several names hold (a fused Wqkv) is one site, under the first of them.

    Args:
        matrices: as for a plan's targets. layers: "9-29", 9, a list, or None for all.

    Raises:
        CheckpointError: a name matches nothing. For a model of no known family it says how to use re:REGEX.
    """
    words, chosen = parse_targets(matrices, "[laser_kernels::search] matrices"), parse_layers(layers)
    found: dict[tuple[int, str], list[Target]] = {}
    seen: set[str] = set()
    for word in words:
        selection = targets_of(model, Plan((Rule((word,), 1, chosen),)))
        family = next((one for one in architectures() if one.name == selection.architecture), None)
        for target in selection.targets:
            if target.name in seen:
                continue
            seen.add(target.name)
            names = family.aliases_of(target.name) if family and not word.startswith("re:") else ()
            label = next((name for name in names if name in GROUPS.get(word, (word,))), word)
            layer = layer_of(target.name)
            found.setdefault((-1 if layer is None else layer, label), []).append(target)
    return [Site(label, layer, tuple(found[layer, label])) for layer, label in sorted(found, key=lambda key: key[0])]


def tied(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """A line for each reduced parameter that the model also has under another name: it changes there, too."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    wanted = {target.name for site in sites for target in site.targets}
    return [
        f"{same[0]} is tied to {', '.join(same[1:])}: it is reduced once, for both"
        for same in names.values()
        if len(same) > 1 and same[0] in wanted
    ]


class Sweep:
    """A site's matrices in the model at any rho up to the largest, from one factorization of each.

    with Sweep(model, site, rhos) as sweep:
        sweep.to(0.05)    # the parameters now hold the rank-r approximations
                          # on leaving, also by an exception, they hold their old bits again

    Args:
        rhos: that will be asked for; the largest decides the rank that is computed.
        tol, seed: as for factorize.
    """

    def __init__(self, model: nn.Module, site: Site, rhos: Sequence[float], *, tol: float = 1e-3, seed: int = 0):
        self.site, self._largest, self._tol, self._seed = site, max(rhos), tol, seed
        self._weights: list[Tensor] = []
        for target in site.targets:
            weight = model.get_parameter(target.name).detach()
            self._weights += weight.unbind(0) if weight.dim() == 3 else [weight]
        self._originals: list[Tensor] = []
        self._factored: list[lk.Factorization] = []

    def __enter__(self) -> Sweep:
        return self

    def to(self, rho: float) -> None:
        """Write the approximations into the model. The first call factorizes."""
        if not self._factored:
            try:
                self._factored = [
                    lk.factorize(weight, self._largest, tol=self._tol, seed=self._seed) for weight in self._weights
                ]
            except ValueError as error:
                raise ValueError(f"{self.site.targets[0].name} ({self.site}): {error}") from error
            self._originals = [weight.to("cpu", copy=True) for weight in self._weights]
        for weight, factored in zip(self._weights, self._factored, strict=True):
            factored.reconstruct(rho, out=weight)

    def restore(self) -> None:
        """Write the original bits back, and forget the factors."""
        for weight, original in zip(self._weights, self._originals, strict=bool(self._originals)):
            weight.copy_(original)
        self._factored, self._originals = [], []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
