"""Reading a folder: a lying header, index or link is refused with a reason; side files."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from laser_kernels.checkpoint.reader import INDEX_NAME, Reader
from laser_kernels.checkpoint.shard import build_header, parse_header, read_header
from laser_kernels.errors import CheckpointError


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


BAD_FILES = {
    "empty": (b"", "too few"),
    "short": (b"\1\0\0", "too few"),
    "longer-than-file": (file_of({}, length=1000), "claims 1000 bytes"),
    "absurd": (file_of({}, length=2**62), "no safetensors"),
    "no-json": (file_of(b"{nope"), "not valid JSON"),
    "no-utf8": (file_of(b'{"\xff":1}'), "not valid JSON"),
    "deep": (file_of(b"[" * 100_000), "not valid JSON"),
    "a-list": (file_of([]), "JSON object"),
    "twice": (file_of(b'{"a":1,"a":2}'), "occurs twice"),
    "truncated": (file_of({"a": tensor(0, 8)}, b"1234"), "'a' ends at byte 8"),
    "overlap": (file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "'b' overlaps 'a'"),
    "hole": (file_of({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)), "'b' leaves a hole after 'a'"),
    "rest": (file_of({"a": tensor(0, 4)}, bytes(12)), "8 bytes after 'a'"),
    "backwards": (file_of({"a": tensor(4, 0, [1])}, bytes(4)), "end before they begin"),
    "shape": (file_of({"a": tensor(0, 8, [3])}, bytes(8)), "'a'.*takes 12 bytes"),
    "negative": (file_of({"a": tensor(0, 4, [-1])}, bytes(4)), "'a'.*shape"),
    "float-shape": (file_of({"a": tensor(0, 4, [1.0])}, bytes(4)), "'a'.*shape"),
    "offsets": (file_of({"a": {**tensor(0, 4), "data_offsets": [0]}}, bytes(4)), "'a'.*data_offsets"),
    "no-dtype": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "'a'.*dtype"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_shard_is_refused_with_its_name(tmp_path, kind):
    data, why = BAD_FILES[kind]
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=why) as caught:
        Reader(tmp_path)
    assert "model.safetensors" in str(caught.value)


SHARD = save({"b": torch.arange(6).float(), "a": torch.ones(2, 3).bfloat16()}, {"format": "pt"})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(SHARD) - 1), st.integers(0, 255), st.integers(0, len(SHARD)))
def test_a_damaged_header_is_read_exactly_or_refused(tmp_path, position, value, length):
    damaged = bytearray(SHARD)
    damaged[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(damaged[:length] if position % 2 else damaged))
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert sum(entry.nbytes for entry in header.entries) == path.stat().st_size - header.data_start


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_refused_or_covers_the_data(value):
    try:
        entries, _ = parse_header(json.dumps(value).encode(), 8, "file")
    except CheckpointError as error:
        assert "file" in str(error)
    else:
        assert sum(entry.nbytes for entry in entries) == 8


def test_headers_agree_with_the_library(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    path = folder / "model.safetensors"
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    data = path.read_bytes()
    for name, want in load_file(path).items():
        entry = next(entry for entry in header.entries if entry.name == name)
        assert entry.shape == tuple(want.shape)
        got = data[header.data_start + entry.begin : header.data_start + entry.end]
        assert got == want.contiguous().view(torch.uint8).numpy().tobytes()


def test_built_headers_are_aligned_and_read_by_the_library(tmp_path):
    raw, entries = build_header([("odd", "U8", (3,)), ("w", "BF16", (2, 2)), ("f", "F32", (1,))], {"format": "pt"})
    assert [entry.name for entry in entries] == ["f", "w", "odd"]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw + bytes(entries[-1].end))
    assert load_file(path)["w"].shape == (2, 2)
    _, kept = build_header([("w", "BF16", (2, 2)), ("odd", "U8", (3,))], None)
    assert [entry.name for entry in kept] == ["w", "odd"]


def index_of(folder: Path, change) -> None:
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.update({NORM: "model-00009.safetensors"}), "model-00009.safetensors.*missing"),
        (lambda w: w.update({NORM: "../model.safetensors"}), "outside the folder"),
        (lambda w: w.update({NORM: "/etc/hostname"}), "outside the folder"),
        (lambda w: w.update({NORM: "model-00001-of-00002.safetensors"}), f"{NORM}.*lacks it"),
        (lambda w: w.update({"ghost.weight": "model-00001-of-00002.safetensors"}), "ghost.weight.*lacks it"),
        (lambda w: w.update({NORM: 3}), "weight_map"),
        (lambda w: w.clear(), "names no file"),
    ],
)
def test_a_lying_index_is_refused(tmp_path, change, why):
    folder = tiny.llama(tmp_path / "outer" / "a", shards=2)
    (tmp_path / "outer" / "model.safetensors").write_bytes(SHARD)
    index_of(folder, change)
    with pytest.raises(CheckpointError, match=why):
        Reader(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = tiny.llama(tmp_path / "a", shards=2)
    file = folder / "model-00003.safetensors"
    file.write_bytes(save({NORM: torch.ones(2)}))
    index_of(folder, lambda w: w.update({NORM: file.name}))
    with pytest.raises(CheckpointError, match=f"{NORM}.*in both"):
        Reader(folder)


def test_a_shard_that_links_out_of_the_folder_is_refused(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    os.rename(folder / "model.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="outside the folder"):
        Reader(folder)


def test_the_hub_cache_layout_is_read(tmp_path):
    folder = tiny.llama(tmp_path / "models--a" / "snapshots" / "abc")
    blobs = tmp_path / "models--a" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        os.rename(path, blobs / path.name)
        path.symlink_to(os.path.join("..", "..", "blobs", path.name))
    reader = Reader(folder)
    assert len(reader.tensors) == 26
    assert reader.side_files()[0] == ["config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.write_text(""), "is not a folder"),
        (lambda folder: folder.mkdir(), "no safetensors"),
        (lambda folder: (folder.mkdir(), (folder / "pytorch_model.bin").write_text("")), "unpickling runs"),
        (lambda folder: (tiny.llama(folder, 2), (folder / INDEX_NAME).unlink()), "download the index"),
        (lambda folder: (tiny.llama(folder, 2), (folder / "model.safetensors").write_bytes(SHARD)), "holds both"),
        (lambda folder: (tiny.llama(folder, 2), (folder / INDEX_NAME).write_text("{")), "not valid JSON"),
        (lambda folder: (tiny.llama(folder), (folder / "config.json").write_text("[")), "not valid JSON"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, why):
    make(tmp_path / "a")
    with pytest.raises(CheckpointError, match=why):
        Reader(tmp_path / "a")


def test_side_files_leave_other_weights_behind(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    (folder / "1_Pooling").mkdir()
    (folder / ".git").mkdir()
    for name in ("pytorch_model.bin", "x.gguf", "a.pkl", "1_Pooling/config.json", ".git/HEAD", "merges.txt"):
        (folder / name).write_text(name)
    (folder / "consolidated.safetensors").write_bytes(SHARD)
    carried, left = Reader(folder).side_files()
    assert sorted(carried) == ["1_Pooling/config.json", "config.json", "merges.txt", "tokenizer.json"]
    assert sorted(left) == ["a.pkl", "consolidated.safetensors", "pytorch_model.bin", "x.gguf"]


def test_a_side_file_that_links_out_of_the_folder_is_refused(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"vocab\.txt.*link out"):
        Reader(folder).side_files()
