"""One safetensors file: its header, checked before anything believes it, and how such a header is written.

The format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data. Offsets
are relative to the end of the header. Nothing here maps a file: mapped pages count as memory, and a checkpoint may be
larger than the memory it may use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laser_kernels.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

# Bits per element. A dtype that is not here is copied as bytes, its size being that of its data_offsets.
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard; `begin` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The checked header of one file. `raw` are its bytes as stored, the length field included.

    `entries` are in the order of the JSON text; `metadata` is the optional `__metadata__` (None where absent).
    """

    entries: tuple[Entry, ...]
    metadata: dict[str, str] | None
    raw: bytes
    file_size: int

    @property
    def data_start(self) -> int:
        return len(self.raw)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return result


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, value: object, where: str) -> Entry:
    """The entry that one JSON value describes, its byte count checked against shape and dtype."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(f"{where}: its header entry needs dtype, shape and data_offsets; got {value!r:.200}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise CheckpointError(f"{where}: dtype must be a string; got {dtype!r:.80}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: shape must be a list of sizes; got {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets must be [begin, end]; got {offsets!r:.80}")
    begin, end = offsets
    if end < begin:
        raise CheckpointError(f"{where}: data_offsets end before they begin: {offsets}")
    if dtype in DTYPE_BITS:
        bits = DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        if bits % 8 or bits // 8 != end - begin:
            raise CheckpointError(
                f"{where}: {dtype} of shape {shape} takes {bits / 8:g} bytes, "
                f"its data_offsets {offsets} hold {end - begin}"
            )
    return Entry(name, dtype, tuple(shape), begin, end)


def parse_header(text: bytes, data_bytes: int, file: str) -> tuple[tuple[Entry, ...], dict[str, str] | None]:
    """Entries and metadata of a header's JSON `text`, for `data_bytes` bytes of data behind it.

    Raises:
        CheckpointError: naming `file` and the tensor, for anything that does not describe those bytes exactly once.
    """
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not valid JSON ({error}): download the file again") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{file}: the header must be a JSON object; got {type(table).__name__}")
    metadata = table.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings")
    entries = tuple(_entry(name, value, f"{file}: tensor {name!r}") for name, value in table.items())
    position, before = 0, "the header"
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.end > data_bytes:
            raise CheckpointError(
                f"{file}: tensor {entry.name!r} ends at byte {entry.end} of the data, but the file holds {data_bytes}: "
                "it is truncated or its header lies; download it again"
            )
        if entry.begin != position:
            kind = "overlaps" if entry.begin < position else "leaves a hole after"
            raise CheckpointError(f"{file}: tensor {entry.name!r} {kind} {before} (byte {entry.begin}, not {position})")
        position, before = entry.end, f"{entry.name!r}"
    if position != data_bytes:
        raise CheckpointError(f"{file}: {data_bytes - position} bytes after {before} belong to no tensor")
    return entries, metadata


def read_header(path: Path) -> Header:
    """The checked header of the file at `path`; reads nothing else of it."""
    try:
        with open(path, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file; download it again")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: its header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed: "
                    "this is no safetensors file"
                )
            if 8 + length > size:
                raise CheckpointError(
                    f"{path}: its header claims {length} bytes, the file has {size}: it is truncated; download it again"
                )
            text = b""
            while len(text) < length:
                piece = stream.read(length - len(text))
                if not piece:
                    raise CheckpointError(f"{path}: the file shrank while its header was read")
                text += piece
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    entries, metadata = parse_header(text, size - 8 - length, str(path))
    return Header(entries, metadata, prefix + text, size)


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> tuple[bytes, tuple[Entry, ...]]:
    """Header bytes and entries for (name, dtype, shape) tensors laid out one after the other.

    The order is kept, unless it would put an element at an address that its size does not divide (readers that view the
    bytes in place then fail): in that case wide dtypes come first, as the safetensors library orders them.
    """

    def layout(order: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[Entry, ...]:
        entries, position = [], 0
        for name, dtype, shape in order:
            bits = DTYPE_BITS[dtype]
            for size in shape:
                bits *= size
            entries.append(Entry(name, dtype, shape, position, position + bits // 8))
            position += bits // 8
        return tuple(entries)

    entries = layout(tensors)
    if any(entry.begin % max(1, DTYPE_BITS[entry.dtype] // 8) for entry in entries):
        entries = layout(sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor[1]]))
    table: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    for entry in entries:
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as the format asks
    return len(text).to_bytes(8, "little") + text, entries
