"""LoRAs in one file: kohya's and Comfy's (lora_up, lora_down, alpha), diffusers' (lora_A, lora_B without a configuration).

Source of names, scaling and metadata: kohya-ss/sd-scripts, networks/lora.py and networks/resize_lora.py;
library/train_util.py for the hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from laser_kernels.adapters import peft
from laser_kernels.adapters.factors import Adapter, factors_of, pairs_of
from laser_kernels.adapters.storage import load_tensors, save_tensors
from laser_kernels.errors import CheckpointError

ENDINGS = (
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
)
ALPHA = ".alpha"
MIDDLE = ".lora_mid.weight"  # LyCORIS: a third factor between B and A


def read(path: Path) -> Adapter:
    """The adapter in a file. Without an alpha a module's factor is 1, as its loaders take it.

    Raises:
        CheckpointError: no safetensors, no factors or half a pair, a third factor, part of a PEFT folder.
    """
    tensors, metadata = load_tensors(path)
    if any(name.startswith(peft.PREFIX) for name in tensors):
        raise CheckpointError(f"{path}: belongs to a PEFT folder, whose {peft.CONFIG} has the scaling: give the folder")
    keys = pairs_of(tensors, ENDINGS, str(path))
    factors = {}
    for name, (up, down) in keys.items():
        if name + MIDDLE in tensors:
            raise CheckpointError(f"{path}: {name} has three factors (lora_mid), which no truncation of two serves")
        alpha = tensors.get(name + ALPHA)
        value = None if alpha is None else alpha.item()
        factors[name] = factors_of(name, tensors.pop(up), tensors.pop(down), value)
    return Adapter(factors, keys, tensors, dict(metadata), "single")


def write(path: Path, adapter: Adapter) -> None:
    """Write an Adapter that `read` made: alphas, and kohya's metadata where the file had it, follow the factors."""
    if path.exists():
        raise CheckpointError(f"{path}: exists: name another file, or remove it")
    tensors = dict(adapter.others)
    for name, factors in adapter.factors.items():
        tensors.update(zip(adapter.keys[name], factors.stored(), strict=True))
        if name + ALPHA in tensors:
            tensors[name + ALPHA] = _alpha_like(tensors[name + ALPHA], factors.alpha)
        elif factors.alpha != factors.rank:
            raise ValueError(f"[laser_kernels::adapters] {name} has no alpha in the file: B and A must hold all")
    save_tensors(path, tensors, _metadata(adapter, tensors))


def _alpha_like(old: Tensor, value: float) -> Tensor:
    """The value in the old tensor's dtype where that holds it exactly, else in float32."""
    new = torch.tensor(value, dtype=torch.float64).to(old.dtype)
    return new if new.item() == value else torch.tensor(value, dtype=torch.float32)


def _metadata(adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """kohya's: one rank and alpha, or "Dynamic"; hashes of what is written. Untouched where the file has none of it."""
    metadata = dict(adapter.settings)
    metadata.pop("modelspec.hash_sha256", None)  # of the tensors as they were
    values = list(adapter.factors.values())
    for key, found in (("ss_network_dim", {f.rank for f in values}), ("ss_network_alpha", {f.alpha for f in values})):
        if key in metadata:
            metadata[key] = str(found.pop()) if len(found) == 1 else "Dynamic"
    if any(key.startswith(("ss_", "sshs_")) for key in metadata):
        # Only training metadata counts for the hashes, which other tools write into the rest.
        own = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        data = save(own, {key: value for key, value in metadata.items() if key.startswith("ss_")})
        start = 8 + int.from_bytes(data[:8], "little")
        metadata["sshs_model_hash"] = hashlib.sha256(data[start:]).hexdigest()
        metadata["sshs_legacy_hash"] = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    return metadata
