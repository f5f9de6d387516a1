"""Files of an adapter, in and out: each gets its name when it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laser_kernels.checkpoint.writer import partial_name
from laser_kernels.errors import CheckpointError


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata. Raises CheckpointError naming the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what `path` shall be: it gets its name at the end, and nothing is left where that is not reached."""
    partial = path.parent / partial_name(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.rename(partial, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({why}): make room, or name another place") from error
    finally:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises CheckpointError naming it."""
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    with _whole(path) as partial:
        save_file(own, partial, dict(metadata))


def save_text(path: Path, text: str) -> None:
    """Write a small text file in the same way."""
    with _whole(path) as partial:
        partial.write_text(text, "utf-8")
