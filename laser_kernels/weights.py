"""Named weights of a checkpoint folder, a module or a state dict, looked at before they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laser_kernels.checkpoint.pipeline import dequantized_rows, torch_dtype
from laser_kernels.checkpoint.quantized import fp8_weights
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.shard import Entry
from laser_kernels.errors import CheckpointError
from laser_kernels.models import STORED


@dataclass(frozen=True)
class Weights:
    """Tensors by name, in the order of their source.

    Attributes:
        entries: name -> shape and dtype (as safetensors spells it).
        config: the model's configuration, empty where there is none.
        read: the tensor of a name, on the CPU for a folder; block-scaled fp8 as bfloat16.
        name: what an adapter's configuration may call this model; None where it has no name.
    """

    entries: dict[str, Entry]
    config: Mapping[str, Any]
    read: Callable[[str], Tensor]
    name: str | None


@contextmanager
def open_weights(source: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor]) -> Iterator[Weights]:
    """The weights of a folder (headers are read, tensors when asked for), a module or a state dict.

    Raises:
        CheckpointError: the folder cannot be read as a checkpoint.
    """
    if isinstance(source, (str, os.PathLike)):
        with Reader(source) as reader:
            entries = {name: located.entry for name, located in reader.tensors.items()}
            fp8 = frozenset(fp8_weights(entries, reader.config))
            yield Weights(entries, reader.config, lambda name: _read(reader, name, fp8), os.fspath(source))
        return
    tensors = dict(source.named_parameters() if isinstance(source, nn.Module) else source)
    config: Any = getattr(source, "config", None)
    table = config.to_dict() if hasattr(config, "to_dict") else {}
    entries = {name: Entry(name, _stored(t), tuple(t.shape), 0, t.nbytes) for name, t in tensors.items()}
    yield Weights(entries, table, lambda name: tensors[name].detach(), table.get("_name_or_path") or None)


def _stored(t: Tensor) -> str:
    return STORED.get(str(t.dtype).removeprefix("torch."), str(t.dtype))


def _read(reader: Reader, name: str, fp8: frozenset[str]) -> Tensor:
    entry = reader.tensors[name].entry
    if name in fp8 and len(entry.shape) == 2:
        return dequantized_rows(reader, name, None, 0, entry.shape[0])
    try:
        dtype = torch_dtype(entry.dtype)
    except KeyError:  # integers and the like are only ever compared
        dtype = torch.uint8
    data = torch.frombuffer(reader.read_bytes(name), dtype=dtype) if entry.nbytes else torch.empty(0, dtype=dtype)
    if data.numel() * data.element_size() != entry.nbytes:
        raise CheckpointError(f"{name}: holds {entry.nbytes} bytes, which {entry.dtype} does not divide")
    return data if dtype == torch.uint8 else data.view(entry.shape)
