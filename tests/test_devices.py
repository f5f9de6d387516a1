"""Which devices a name stands for, and how workers share a checkpoint: with fakes, where there is no GPU."""

import threading

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file

from laser_kernels import devices
from laser_kernels.checkpoint import reduce
from laser_kernels.errors import CheckpointError

PLAN = {"rules": [{"targets": "all", "rank": 0.25}]}


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_auto_is_the_cpu_or_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.resolve_devices("auto") == ("cpu",)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve_devices("auto") == ("cuda:0", "cuda:1")


def test_a_list_names_different_gpus(three_gpus):
    assert devices.resolve_devices("cuda:2, cuda:0") == ("cuda:2", "cuda:0")
    assert devices.resolve_devices("cuda") == ("cuda",)
    for bad in ("cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "cuda:3", "tpu", "cuda:0,", ""):
        with pytest.raises(ValueError, match="device"):
            devices.resolve_devices(bad)


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA device here; use cpu"):
        devices.resolve_devices("cuda:1")


def test_gpus_take_turns():
    assert devices.workers(("cpu",)) == ("cpu",)
    assert devices.workers(("cuda:0", "cuda:1")) == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")


class Fake:
    """Stands for a GPU: computes as the CPU does, and lets nobody finish before `together` of its kind are at work."""

    def __init__(self, names, together=None, fails=None):
        self.names, self.fails = names, fails
        self.done = {name: [] for name in names}
        self.meeting = threading.Barrier(together) if together else None
        self.original = reduce.compute_with

    def compute_with(self, tol, seed, device, on_nonfinite):
        inner = self.original(tol, seed, "cpu", on_nonfinite)

        def compute(tensor, group):
            if not self.done[device] and self.meeting:
                self.meeting.wait(timeout=30)
            self.done[device].append(group.matrices[0].name)
            if device == self.fails:
                raise CheckpointError(f"{device} is on fire")
            return inner(tensor, group)

        return compute

    def install(self, monkeypatch):
        monkeypatch.setattr(reduce, "resolve_devices", lambda names: self.names)
        monkeypatch.setattr(reduce, "workers", lambda names: names)
        monkeypatch.setattr(reduce, "compute_with", self.compute_with)


def reduced(tmp_path, name):
    source = tmp_path / "source"
    if not source.exists():
        tiny.write(source, tiny.llama_tensors(layers=4), shards=3)
    report = reduce.reduce_checkpoint(source, tmp_path / name, PLAN, progress=lambda *_: None)
    tensors = {}
    for path in sorted((tmp_path / name).glob("*.safetensors")):
        tensors.update(load_file(path))
    return report, tensors


def test_every_device_has_its_share_and_the_bits_are_those_of_one(tmp_path, monkeypatch):
    alone, expected = reduced(tmp_path, "alone")
    fake = Fake(("cuda:0", "cuda:1", "cuda:2"), together=3)
    fake.install(monkeypatch)
    report, tensors = reduced(tmp_path, "together")
    assert all(fake.done.values())
    assert len({name for names in fake.done.values() for name in names}) == sum(map(len, fake.done.values()))
    assert [row.name for row in report.rows] == [row.name for row in alone.rows]
    assert expected.keys() == tensors.keys() and all(torch.equal(expected[k], tensors[k]) for k in expected)


def test_a_device_that_fails_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    Fake(("cuda:0", "cuda:1"), together=2, fails="cuda:1").install(monkeypatch)
    with pytest.raises(CheckpointError, match="cuda:1 is on fire"):
        reduced(tmp_path, "broken")
    assert not (tmp_path / "broken" / "laser_report.json").exists()
    assert not (tmp_path / "broken" / "model.safetensors.index.json").exists()


def test_batches_travel_through_one_piece_of_pinned_memory(monkeypatch):
    """Of several sizes and dtypes; the stream is waited for before what came back is read."""
    empty, waited, pinned = torch.empty, [], []

    class Stream:
        def synchronize(self):
            assert torch.equal(tensor, before)
            waited.append(True)

    def fake_empty(*shape, pin_memory=False, **options):
        pinned.append(shape[0]) if pin_memory else None
        return empty(*shape, **options)

    place = devices.Place("cpu")
    place._stream = Stream()
    monkeypatch.setattr(torch, "empty", fake_empty)
    batches = [((2, 3, 4), torch.bfloat16), ((5, 6, 7), torch.float32), ((1, 2, 3), torch.float64)]
    for count, (shape, dtype) in enumerate(batches, 1):
        tensor = torch.randn(shape).to(dtype)
        before, work = tensor.clone(), place.bring(tensor).clone()
        assert torch.equal(work, before)
        place.take_back(work * 2, tensor)
        assert torch.equal(tensor, before * 2) and len(waited) == count
    assert pinned == [48, 840]
