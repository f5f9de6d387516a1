"""Memory of the checkpoint pipeline: bounded, and lent again."""

from __future__ import annotations

import threading

import pytest
import tiny_checkpoints as tiny

from laser_kernels.checkpoint import pipeline
from laser_kernels.checkpoint.layout import BATCHING, Batching
from laser_kernels.checkpoint.pipeline import Buffers, Stopped
from laser_kernels.checkpoint.reduce import reduce_checkpoint


def request(buffers: Buffers, nbytes: int) -> threading.Event:
    """A request from another thread; the event says that it was served."""
    served = threading.Event()
    threading.Thread(target=lambda: (buffers.take(nbytes), served.set()), daemon=True).start()
    return served


def waits(buffers: Buffers, nbytes: int, until) -> bool:
    """Whether a request has to wait for `until()`, and is then served."""
    served = request(buffers, nbytes)
    waited = not served.wait(0.2)
    until()
    assert served.wait(10)
    return waited


def test_what_comes_back_is_lent_again():
    buffers = Buffers(100)
    small, large = buffers.take(30), buffers.take(60)
    buffers.give(large)
    buffers.give(small)
    assert buffers.take(20) is small  # the smallest that suffices
    assert buffers.take(20) is large


def test_no_more_than_the_limit_is_held():
    buffers = Buffers(100)
    first = buffers.take(60)
    assert waits(buffers, 60, until=lambda: buffers.give(first))
    buffers = Buffers(100)
    first, second = buffers.take(40), buffers.take(40)
    buffers.give(first)
    buffers.give(second)
    third = buffers.take(90)  # neither suffices: both are let go
    assert len(third) == 90
    assert waits(buffers, 40, until=lambda: buffers.give(third))


def test_one_request_passes_always_and_is_not_kept():
    buffers = Buffers(100)
    giant = buffers.take(1000)
    assert waits(buffers, 10, until=lambda: buffers.give(giant))
    assert request(buffers, 50).wait(10)


def test_stop_ends_those_who_wait():
    buffers = Buffers(100)
    buffers.take(100)
    stopped = []

    def ask():
        with pytest.raises(Stopped):
            buffers.take(1)
        stopped.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()  # it waits
    buffers.stop()
    thread.join(10)
    assert stopped


def test_groups_of_all_sizes_go_through_memory_that_is_lent_again(tmp_path, monkeypatch):
    """Bits do not depend on what a buffer held before."""
    made = []

    class Spied(Buffers):
        def __init__(self, limit):
            super().__init__(limit)
            made.append(self)
            self.taken = []

        def take(self, nbytes):
            memory = super().take(nbytes)
            memory[:] = b"\xff" * len(memory)
            self.taken.append(memory)  # the object: numbers of objects that are gone come again
            return memory

    src = tiny.llama(tmp_path / "a", layers=6)
    plan = {"rules": [{"targets": ["all"], "layers": "all", "rank": 0.25}]}

    def run(name, budget=16 * 4000):
        reduce_checkpoint(src, tmp_path / name, plan, memory_budget=budget, progress=lambda *_: None)

    run("plain")
    monkeypatch.setattr(pipeline, "Buffers", Spied)
    run("spied")
    taken = made[0].taken
    print(f"{len(taken)} groups through {len(set(map(id, taken)))} buffers")
    assert len(set(map(id, taken))) < len(taken) / 2
    assert tiny.same_but_seconds(tmp_path / "plain", tmp_path / "spied")


def test_a_matrix_larger_than_a_group_does_not_stop_the_overlap(tmp_path, monkeypatch):
    """One in the worker's hands, one being read, one being written, whatever their size."""
    limits = []

    class Spied(Buffers):
        def __init__(self, limit):
            super().__init__(limit)
            limits.append(limit)

    src = tiny.llama(tmp_path / "a")
    monkeypatch.setitem(BATCHING, "cpu", Batching(100, 4, 3, mixed=False))
    monkeypatch.setattr(pipeline, "Buffers", Spied)
    plan = {"rules": [{"targets": ["fc_in"], "layers": "all", "rank": 4}]}
    reduce_checkpoint(src, tmp_path / "b", plan, progress=lambda *_: None)
    assert limits[0] >= 3 * 40 * 24 * 2
