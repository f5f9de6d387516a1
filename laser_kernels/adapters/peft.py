"""PEFT's LoRA folders: adapter_config.json and adapter_model.safetensors.

Source of names and of the scaling: huggingface/peft, src/peft/tuners/lora (config.py, layer.py), utils/other.py.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from laser_kernels.adapters.factors import Adapter, Factors, factors_of, pairs_of
from laser_kernels.adapters.storage import load_tensors, save_tensors, save_text
from laser_kernels.checkpoint.reader import read_json
from laser_kernels.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
ENDINGS = ((".lora_B.weight", ".lora_A.weight"), (".lora_embedding_B", ".lora_embedding_A"))


def _common_and_pattern(values: Mapping[str, float]) -> tuple[Any, dict[str, Any]]:
    """The largest value, and PEFT's pattern where not all are equal.

    PEFT takes the first key of a pattern that the module's name ends with: longer names stand first.
    """
    # Twelve digits: what the root of a rank, taken and undone, leaves of an alpha.
    rounded = {name: float(f"{value:.12g}") for name, value in values.items()}
    values = {name: int(value) if value == int(value) else value for name, value in rounded.items()}
    common = max(values.values())
    if all(value == common for value in values.values()):
        return common, {}
    return common, {name: values[name] for name in sorted(values, key=lambda name: (-len(name), name))}


def with_ranks(config: Mapping[str, Any], factors: Mapping[str, Factors]) -> dict[str, Any]:
    """`config` with the ranks and alphas of `factors`: PEFT then scales each as Factors.scale says."""
    root = bool(config.get("use_rslora"))  # scaling = alpha / sqrt(r), PEFT's layer.py
    r, ranks = _common_and_pattern({name: f.rank for name, f in factors.items()})
    alpha, alphas = _common_and_pattern(
        {name: f.scale * math.sqrt(f.rank) if root else f.alpha for name, f in factors.items()}
    )
    return {
        **config,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], texts: Mapping[str, str]
) -> None:
    """Write an adapter folder. Each file gets its name when it is whole, the configuration last: PEFT needs both."""
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists():
            raise CheckpointError(f"{folder}: holds an adapter already ({name}): name another folder, or remove it")
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    for name, text in {**texts, CONFIG: json.dumps(config, indent=2) + "\n"}.items():
        save_text(folder / name, text)


def write(folder: Path, adapter: Adapter, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write an Adapter that `read` or `fresh` made; `texts`: other files of the folder."""
    tensors = dict(adapter.others)
    for name, factors in adapter.factors.items():
        tensors.update(zip(adapter.keys[name], factors.stored(), strict=True))
    _write_folder(folder, tensors, with_ranks(adapter.settings, adapter.factors), texts)


def fresh(
    factors: Mapping[str, Factors], base_model: str | None, task_type: str | None, fan_in_fan_out: bool
) -> Adapter:
    """A new LoRA for inference on `base_model`."""
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted(factors),
    }
    up, down = ENDINGS[0]
    keys = {name: (f"{PREFIX}{name}{up}", f"{PREFIX}{name}{down}") for name in factors}
    return Adapter(dict(factors), keys, {}, config, "peft")


def _for_module(pattern: Mapping[str, Any], name: str, common: Any) -> float:
    """PEFT's get_pattern_key: the first key that the name is, or ends with after a dot."""
    hits = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name))
    return float(next(hits, common))


def read(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        CheckpointError: files are missing, another method than LoRA, ranks that the tensors do not have.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointError(f"{folder / CONFIG}: must have peft_type LORA; got {kind!r}: only LoRA has factors B, A")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder}: lacks {WEIGHTS} (pickled adapters are not opened): save it as safetensors")
    tensors, _ = load_tensors(folder / WEIGHTS)
    factors, keys = {}, {}
    for stem, (up, down) in pairs_of(tensors, ENDINGS, str(folder / WEIGHTS)).items():
        name, rank = stem.removeprefix(PREFIX), tensors[down].shape[0]
        r = _for_module(config.get("rank_pattern") or {}, name, config.get("r", 8))
        alpha = _for_module(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
        if r != rank:
            raise CheckpointError(f"{folder}: {name} has rank {rank} in {WEIGHTS} and {r:g} in {CONFIG}: one is wrong")
        if config.get("use_rslora"):
            alpha *= math.sqrt(rank)
        keys[name] = (up, down)
        factors[name] = factors_of(name, tensors.pop(up), tensors.pop(down), alpha)
    return Adapter(factors, keys, tensors, config, "peft")


def write_peft(
    folder: str | os.PathLike[str],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    *,
    base_model: str,
    alpha: Mapping[str, float] | None = None,
    task_type: str | None = "CAUSAL_LM",
    fan_in_fan_out: bool = False,
) -> None:
    """Write a PEFT LoRA folder: each module's weight changes by (alpha / r) B A.

    `peft.PeftModel.from_pretrained(model, folder)` loads it. Ranks may differ from module to module. If anything fails,
    the folder holds no adapter_config.json, without which nothing takes it for an adapter.

    Args:
        folder: is made where it is missing; must hold no adapter yet.
        factors: module name as `model.named_modules()` has it (no ".weight") -> B (out, r), A (r, in); for a convolution
            (out, r, 1, 1), (r, in, kh, kw). Stored in their dtype.
        base_model: name or path of the model that it belongs to.
        alpha: module name -> alpha; r where it is missing, so that the factor is 1.
        task_type: PEFT's; None fits any module, without generate() of its own.
        fan_in_fan_out: whether the base stores its weights (in, out), as GPT-2's Conv1D does. B and A are as above anyway.

    Raises:
        ValueError: no factors, shapes that do not fit, names that end in ".weight", alphas of modules that are not there.
        CheckpointError: the folder cannot be written, or holds an adapter.

    References:
        Hu et al.: LoRA, arXiv 2106.09685. huggingface/peft, src/peft/tuners/lora/config.py.
    """
    given = dict(alpha or {})
    if not factors:
        raise ValueError("[laser_kernels::write_peft] factors is empty: an adapter changes at least one module")
    if wrong := [name for name in factors if name.endswith(".weight") or not name]:
        raise ValueError(
            f"[laser_kernels::write_peft] factors takes module names; got the parameter {wrong[0]!r}: leave out '.weight'"
        )
    if unknown := sorted(given.keys() - factors.keys()):
        raise ValueError(f"[laser_kernels::write_peft] alpha names {unknown[0]!r}, which factors lacks")
    if bad := [name for name, value in given.items() if not math.isfinite(value)]:
        raise ValueError(f"[laser_kernels::write_peft] alpha of {bad[0]} must be finite; got {given[bad[0]]}")
    checked = {name: factors_of(name, b, a, given.get(name)) for name, (b, a) in factors.items()}
    write(Path(folder), fresh(checked, base_model, task_type, fan_in_fan_out))
