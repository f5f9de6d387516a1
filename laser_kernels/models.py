"""A plan on a model in memory: which of its parameters are reduced, and to what rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from laser_kernels.resolve import resolve
from laser_kernels.selection import Plan, Selection, select
from laser_kernels.shard import Entry
from laser_kernels.work import as_plan

# torch's names of floating dtypes as safetensors spells them; what is not here is not reducible.
_STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def targets_of(model: nn.Module, plan: str | Mapping[str, Any] | Plan) -> Selection:
    """The parameters that `plan` names in `model`, by the rules that hold for a checkpoint's tensors.

    `model.get_parameter(target.name)` is the weight. Tied parameters count once, under their first name.

    Args:
        model: any module; one of transformers (its `config` says which family) needs no regular expressions.
        plan: as for reduce_checkpoint: a Plan, a mapping {"rules": [...]}, or a YAML file.

    Raises:
        CheckpointError: a target names nothing in this model (the message says what it has), or a rank does not fit.
    """
    config: Any = getattr(model, "config", None)
    entries = [
        Entry(name, _STORED.get(str(p.dtype).removeprefix("torch."), str(p.dtype)), tuple(p.shape), 0, 0)
        for name, p in model.named_parameters()
    ]
    chosen = as_plan(plan)
    selection = select(entries, config.to_dict() if hasattr(config, "to_dict") else {}, chosen)

    def read(name: str, expert: int | None) -> Tensor:
        weight = model.get_parameter(name).detach()
        return weight if expert is None else weight[expert]

    return resolve(selection, chosen, read)[0]
