"""Which weights a LoRA can change: those of linear layers, by the names that their modules have in a model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from laser_kernels.errors import CheckpointError
from laser_kernels.selection import Plan, Rule, select
from laser_kernels.weights import Weights

# Models whose matrices are transformers' Conv1D, stored (in, out), and the names of those matrices.
# Source: transformers, models/{gpt2,decision_transformer,openai,imagegpt}/modeling_*.py.
CONV1D_MODELS = ("gpt2", "decision_transformer", "openai-gpt", "imagegpt")
CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")

# Lookup tables rather than matrix products: PEFT wraps them in another way.
EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "embed_in",
    "tok_embeddings",
    "shared",
)

# How the names of a model without a head begin.
BARE = r"(?:h|layers|layer|blocks)\.\d"


def module_of(name: str) -> str:
    """The module whose weight has this name."""
    return name.removesuffix(".weight")


def linear_weights(same: Sequence[str], new: Weights, asked: Rule) -> tuple[list[str], list[str]]:
    """The weights of linear layers that `asked` names, and notes about what else it names."""
    selection = select([new.entries[name] for name in same], new.config, Plan((asked,)))
    names, notes = [], list(selection.notes)
    for target in selection.targets:
        embedding = module_of(target.name).rpartition(".")[2] in EMBEDDINGS
        if target.experts is None and target.name.endswith(".weight") and not embedding:
            names.append(target.name)
        else:
            what = "an embedding" if embedding else "no weight of a linear layer of its own"
            notes.append(f"{target.name} is {what}, which this adapter cannot hold")
    if not names:
        raise CheckpointError(f"{'; '.join(notes)}: name linear layers")
    return names, notes


def stored_transposed(names: Sequence[str], new: Weights) -> frozenset[str]:
    """Those of `names` that are stored (in, out)."""
    kind = new.config.get("model_type")
    suspects = frozenset(name for name in names if module_of(name).rpartition(".")[2] in CONV1D_MODULES)
    if suspects and kind is None:
        raise CheckpointError(
            f"{min(suspects)}: may be stored (in, out), as GPT-2 does, or (out, in), and without a configuration nothing "
            "says which: pass folders or modules that have one"
        )
    return suspects if kind in CONV1D_MODELS else frozenset()


def refuse_bare(names: Sequence[str], task_type: str) -> None:
    """Raise CheckpointError for names that no model with a head gives its modules."""
    if bare := [name for name in names if re.match(BARE, name)]:
        raise CheckpointError(
            f"{bare[0]}: is the name that a bare model gives, and PEFT would not find it in a {task_type} model: pass "
            "modules with a head instead of folders, or task_type=None for an adapter of the bare model"
        )
