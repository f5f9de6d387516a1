"""A checkpoint folder in the Hugging Face layout, opened for reading: shards, index, config, side files."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from laser_kernels.checkpoint.shard import Entry, Header, read_header
from laser_kernels.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
REPORT_NAME = "laser_report.json"
CARD_NAME = "README.md"

# Weights in other forms: they would hold the unreduced model, and some of them run code when they are opened.
OTHER_WEIGHTS = {
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".h5", ".msgpack"),
    *(".onnx", ".ot", ".tflite", ".npz", ".safetensors", ".data"),
}


@dataclass(frozen=True)
class Shard:
    """One safetensors file of the folder: its name relative to the folder, and its header."""

    file: str
    path: Path
    header: Header


@dataclass(frozen=True)
class Located:
    """A tensor and the shard (by position) it lies in; `offset` counts from the start of the file."""

    shard: int
    entry: Entry
    offset: int


def read_json(path: Path) -> Any:
    """The JSON value in `path`; CheckpointError names the file where there is none."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None


def confined(folder: Path, path: Path) -> bool:
    """Whether `path` really lies in `folder`, links followed.

    The hub's cache is the one exception: `snapshots/REVISION/file` links to `blobs/HASH` beside `snapshots`.
    """
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")


class Reader:
    """A checkpoint folder whose headers have all been read and checked; no tensor is read until it is asked for.

    Attributes:
        folder: where it is.
        shards: the safetensors files in order of their names.
        tensors: name -> where it lies.
        config: config.json as a dict, empty where there is none.
        index: the parsed index, None for a single file.

    Raises:
        CheckpointError: naming file and tensor, for a folder that is not one consistent safetensors checkpoint.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"{self.folder}: {what}: give the folder of a Hugging Face checkpoint")
        self.index = self._read_index()
        self.shards = tuple(self._open(file) for file in self._files())
        self.tensors = self._locate()
        config = self.folder / "config.json"
        self.config: dict[str, Any] = read_json(config) if config.exists() else {}
        if not isinstance(self.config, dict):
            raise CheckpointError(f"{config}: must hold a JSON object")
        self._descriptors: dict[int, int] = {}
        self._opening = threading.Lock()  # the reading and the copying thread share the descriptors

    def _read_index(self) -> dict[str, Any] | None:
        path = self.folder / INDEX_NAME
        if not path.exists():
            return None
        index = read_json(path)
        table = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            raise CheckpointError(f"{path}: needs a weight_map from tensor names to file names")
        return index

    def _files(self) -> list[str]:
        """Names of the shards: those the index gives, or the only safetensors file."""
        here = sorted(path.name for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))
        if self.index is not None:
            files = sorted(set(self.index["weight_map"].values()))
            if SINGLE_NAME in here and SINGLE_NAME not in files:
                raise CheckpointError(
                    f"{self.folder}: holds both {SINGLE_NAME} and an index of other files, and loaders disagree on "
                    "which counts: remove one of them"
                )
            if not files:
                raise CheckpointError(f"{self.folder / INDEX_NAME}: names no file")
            return files
        if SINGLE_NAME in here or len(here) == 1:
            return [SINGLE_NAME] if SINGLE_NAME in here else here
        if here:
            raise CheckpointError(
                f"{self.folder}: {len(here)} safetensors files ({here[0]}, ...) "
                f"but no {INDEX_NAME}: download the index too"
            )
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        if pickles:
            raise CheckpointError(
                f"{self.folder}: holds pickled weights ({pickles[0]}) and no safetensors: unpickling runs whatever "
                "code the file carries, so it is refused; convert it to safetensors where you trust it"
            )
        raise CheckpointError(f"{self.folder}: holds no safetensors file")

    def _open(self, file: str) -> Shard:
        pure, path = PurePosixPath(file), self.folder / file
        if pure.is_absolute() or ".." in pure.parts or "\\" in file or "\0" in file or not confined(self.folder, path):
            raise CheckpointError(
                f"{self.folder}: the file {file!r} lies outside the folder: a checkpoint may only name files of its own"
            )
        if not path.is_file():
            raise CheckpointError(f"{self.folder / INDEX_NAME}: names {file!r}, which is missing: download it")
        return Shard(file, path, read_header(path))

    def _locate(self) -> dict[str, Located]:
        found: dict[str, Located] = {}
        for position, shard in enumerate(self.shards):
            for entry in shard.header.entries:
                if entry.name in found:
                    first = self.shards[found[entry.name].shard].file
                    raise CheckpointError(f"{self.folder}: tensor {entry.name!r} is in both {first} and {shard.file}")
                found[entry.name] = Located(position, entry, shard.header.data_start + entry.begin)
        for name, file in (self.index or {"weight_map": {}})["weight_map"].items():
            if name not in found or self.shards[found[name].shard].file != file:
                raise CheckpointError(f"{self.folder / INDEX_NAME}: puts tensor {name!r} in {file}, which lacks it")
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.header.file_size for shard in self.shards)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def descriptor(self, shard: int) -> int:
        """An open file descriptor of a shard, for positioned reads; the Reader closes it."""
        with self._opening:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self.shards[shard].path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[shard]

    def read_into(self, shard: int, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a shard from `offset` (counted from the start of the file)."""
        descriptor, done = self.descriptor(shard), 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.shards[shard].path}: cannot be read ({error.strerror})") from None
            if count == 0:
                raise CheckpointError(f"{self.shards[shard].path}: shrank while it was read")
            done += count

    def read_bytes(self, name: str) -> bytearray:
        """All bytes of one tensor: for small ones."""
        located = self.tensors[name]
        data = bytearray(located.entry.nbytes)
        self.read_into(located.shard, located.offset, memoryview(data))
        return data

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes, times and headers (not a hash of the weights: that would read them)."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            state = shard.path.stat()
            digest.update(json.dumps([shard.file, state.st_size, state.st_mtime_ns]).encode())
            digest.update(shard.header.raw)
        return digest.hexdigest()

    def side_files(self) -> tuple[list[str], list[str]]:
        """Relative paths of the files to carry over, and of those that are not (other weights, linked folders).

        The shards, their index, the report and the card belong to neither list: they are written anew.
        """
        own = {shard.file for shard in self.shards} | {INDEX_NAME, REPORT_NAME, CARD_NAME}
        carried: list[str] = []
        left: list[str] = []
        for root, folders, files in os.walk(self.folder):
            links = [name for name in folders if (Path(root) / name).is_symlink()]
            left += [(Path(root) / name).relative_to(self.folder).as_posix() for name in links]
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
            for name in sorted(files):
                path = Path(root) / name
                relative = path.relative_to(self.folder).as_posix()
                if relative in own or name.startswith("."):
                    continue
                other = path.suffix.lower() in OTHER_WEIGHTS or name.endswith(".safetensors.index.json")
                if other or name.endswith(".bin.index.json") or not path.is_file():
                    left.append(relative)
                elif not confined(self.folder, path):
                    raise CheckpointError(f"{path}: is a link out of the folder: replace it by the file, or remove it")
                else:
                    carried.append(relative)
        return carried, left
