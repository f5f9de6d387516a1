"""A checkpoint whose reduced weights are stored as factors: which of them, how config.json says so, how it is loaded.

In such a folder `X.weight` (m, n) has given way to `X.B` (m, r) and `X.A` (r, n), the parameters of the LowRankLinear that
takes the place of module X, and config.json has `"laser_kernels": {"format": 1, "ranks": {"X": r, ...}}`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.architectures import Architecture, architectures, layer_of
from laser_kernels.checkpoint.reader import Reader, read_json
from laser_kernels.errors import CheckpointError
from laser_kernels.factors import factor_names, shrinks
from laser_kernels.packages import require
from laser_kernels.selection import Selection, Target

if TYPE_CHECKING:
    from torch import nn

CONFIG_KEY = "laser_kernels"
FORMAT = 1


def split_targets(selection: Selection, reader: Reader) -> tuple[frozenset[str], tuple[str, ...]]:
    """The targets that become factors, and notes on those that stay dense.

    Raises:
        CheckpointError: there is no config.json to say it in, or a factor's name is taken.
    """
    if not reader.config:
        raise CheckpointError(f"{reader.folder}: has no config.json to say which weights are factors: write it dense")
    family = next((family for family in architectures() if family.name == selection.architecture), None)
    factored, dense = [], dict[str, list[str]]()
    for target in selection.targets:
        reason = stays_dense(target, family)
        if reason is not None:
            dense.setdefault(reason, []).append(target.name)
            continue
        for name in factor_names(target.name):
            if name in reader.tensors:
                raise CheckpointError(
                    f"{name}: is in the source, so it cannot name a factor of {target.name}: write it dense"
                )
        factored.append(target.name)
    notes = tuple(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: reduced, but dense: {reason}"
        for reason, names in dense.items()
    )
    return frozenset(factored), notes


def stays_dense(target: Target, family: Architecture | None) -> str | None:
    """Why a reduced weight is not written as factors; None where it is. Sees names and shapes only."""
    if shrinks(target.rows, target.cols, target.rank):
        return not_linear(target, family)
    return not_linear(target, family) or "factors of its rank are not smaller"


def not_linear(target: Target, family: Architecture | None) -> str | None:
    """Why a weight may be no Linear module's own; None where it is one. Sees names and shapes only."""
    if target.experts is not None or ".experts." in target.name:
        return "transformers holds the experts of a layer in one parameter, not in Linear modules"
    if not target.name.endswith(".weight"):
        return "it is not the weight of a module"
    if layer_of(target.name) is None or (family is not None and not family.aliases_of(target.name)):
        return "it may be no Linear module, or share its weight with another (embeddings, heads, routers)"
    return None


def as_factored(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """`config` with the note that the weights of these names are factors of these ranks."""
    modules = {name.removesuffix(".weight"): rank for name, rank in ranks.items()}
    return {**config, CONFIG_KEY: {"format": FORMAT, "ranks": modules}}


def ranks_in(config: Mapping[str, Any], where: str) -> dict[str, int]:
    """Module -> rank, as config.json has it.

    Raises:
        CheckpointError: it has none, or in another format.
    """
    note = config.get(CONFIG_KEY)
    if note is None:
        raise CheckpointError(f"{where}: has no {CONFIG_KEY!r} key: it holds no factors; load it with from_pretrained")
    ranks = note.get("ranks") if isinstance(note, dict) and note.get("format") == FORMAT else None
    good = isinstance(ranks, dict) and all(type(rank) is int and rank > 0 for rank in ranks.values())
    if not isinstance(ranks, dict) or not good:
        raise CheckpointError(f"{where}: needs {CONFIG_KEY!r} with format {FORMAT} and ranks; got {note!r:.120}")
    return ranks


def load_factored(folder: str | os.PathLike[str], *, dtype: Any = "auto", **options: Any) -> nn.Module:
    """The transformers model in a factored folder, its reduced modules as LowRankLinear.

    Strict: a tensor that the model lacks, or that the folder lacks, is an error, unlike in from_pretrained. No code of the
    folder is executed.

    Args:
        folder: what `reduce_checkpoint(..., output="factored")` wrote, or save_pretrained after `factorize_model_`.
        dtype: "auto" for the stored one, or a torch dtype.
        options: for the model's from_pretrained: device_map, attn_implementation, ...

    Raises:
        CheckpointError: the folder holds no factors, they do not fit the model, or transformers has no such class.
        ImportError: transformers is missing.
    """
    require("transformers", "load_factored", "hf")
    import transformers

    from laser_kernels.low_rank_linear import LowRankLinear, replace_module

    path = Path(folder)
    config = read_json(path / "config.json")
    ranks = ranks_in(config, str(path / "config.json"))
    names = config.get("architectures") or ["none"]
    base = getattr(transformers, str(names[0]), None)
    if not isinstance(base, type) or not issubclass(base, transformers.PreTrainedModel):
        raise CheckpointError(f"{path}: config.json names the class {names[0]!r}, which transformers does not have")

    def __init__(self: Any, *args: Any, **more: Any) -> None:
        base.__init__(self, *args, **more)
        for name, rank in ranks.items():
            module = module_at(self, name)
            try:
                replace_module(self, module, LowRankLinear.like(self.get_submodule(module), rank))
            except TypeError as error:
                raise CheckpointError(f"{path}: {name}: {error}") from None

    # A subclass, so that from_pretrained builds the modules before it fills them; its name decides how names on disk map.
    building: Any = type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})
    try:
        model, info = building.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    except RuntimeError as error:  # shapes that differ
        raise CheckpointError(f"{path}: its tensors do not fit the model: {error}") from None
    odd = [f"{kind.split('_')[0]}: {sorted(map(str, info[kind]))[:3]}" for kind in ODD_KEYS if info[kind]]
    if odd:
        raise CheckpointError(
            f"{path}: its tensors are not those of {base.__name__} with these ranks ({'; '.join(odd)})"
        )
    model.__class__ = base
    return model


ODD_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def module_at(model: Any, name: str) -> str:
    """Where in a transformers model the module is that a checkpoint calls `name`: with or without the base's prefix."""
    prefix = f"{model.base_model_prefix}."
    here = {name for name, _ in model.named_modules()}
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in here:
            return candidate
    raise CheckpointError(f"{name}: {type(model).__name__} has no such module, though config.json gives it a rank")
