"""LoRA adapters in the forms that other tools read and write."""

from __future__ import annotations

import os
from pathlib import Path

from laser_kernels.adapters import peft, single
from laser_kernels.adapters.factors import Adapter, Factors
from laser_kernels.adapters.peft import write_peft
from laser_kernels.errors import CheckpointError

__all__ = ["Adapter", "Factors", "check_new", "read_adapter", "write_adapter", "write_peft"]


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The LoRA in a PEFT folder, or in a single file of kohya's, Comfy's or diffusers' kind.

    Raises:
        CheckpointError: it is neither, or cannot be read; the message says why.
    """
    place = Path(path)
    if not place.exists():
        raise CheckpointError(f"{place}: does not exist: give a PEFT folder or a .safetensors file")
    return peft.read(place) if place.is_dir() else single.read(place)


def check_new(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where something is: asked before the work, not after it."""
    place = Path(path)
    if place.is_dir() and not any(place.iterdir()):
        return
    if place.exists():
        raise CheckpointError(f"{place}: exists: name another place, or remove it")


def write_adapter(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Write an adapter in the form it was read in: whole, or nothing that looks finished.

    Raises:
        CheckpointError: something is there already, or it cannot be written.
    """
    (peft if adapter.form == "peft" else single).write(Path(path), adapter)
