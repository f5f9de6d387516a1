"""Files of an adapter, in and out: each gets its name when it is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laser_kernels.errors import CheckpointError
from laser_kernels.writer import explained, partial_name


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata. Raises CheckpointError naming the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file beside its name, and give it the name when it is whole."""
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    partial = path.parent / partial_name(path.name)
    with explained(path):
        try:
            save_file(own, partial, dict(metadata))
        except SafetensorError as error:
            partial.unlink(missing_ok=True)
            raise OSError(None, str(error)) from error
        os.rename(partial, path)


def save_text(path: Path, text: str) -> None:
    """Write a small text file in the same way."""
    partial = path.parent / partial_name(path.name)
    with explained(path):
        partial.write_text(text, "utf-8")
        os.rename(partial, path)
