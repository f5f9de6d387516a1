"""A run killed anywhere leaves nothing that looks finished, and a resume ends with the bits of one run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny_checkpoints as tiny

from laser_kernels.checkpoint import pipeline, syncing, writer
from laser_kernels.checkpoint.journal import JOURNAL_NAME
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.work import prepare
from laser_kernels.cli import main
from laser_kernels.errors import CheckpointError
from laser_kernels.selection import Plan

PLAN = {"rules": [{"targets": ["all"], "layers": "all", "rank": 0.25}]}
BUDGET = 16 * 20000  # two or three matrices in a call, so that there are many steps


def reduce(src, dst, plan=PLAN, **options):
    options = {"memory_budget": BUDGET, **options}
    return reduce_checkpoint(src, dst, plan, progress=lambda *_: None, **options)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A one-file and a sharded checkpoint, with the results of runs that were not interrupted."""
    root = tmp_path_factory.mktemp("resume")
    result = {}
    for shards in (1, 4):
        tensors = tiny.llama_tensors(layers=12, width=60, wide=96)
        src = tiny.write(root / f"source{shards}", tensors, shards=shards)
        reduce(src, root / f"whole{shards}")
        result[shards] = src, root / f"whole{shards}"
    return result


def journal_lines(dst) -> int:
    try:
        return (dst / JOURNAL_NAME).read_bytes().count(b"\n")
    except OSError:
        return 0


def looks_finished(dst) -> bool:
    return any((dst / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))


def kill_after_lines(src, dst, lines: int, *more: str, kill: int = signal.SIGKILL) -> subprocess.Popen:
    """Start the CLI, and kill it when its journal has so many lines (or when it has ended)."""
    arguments = ["reduce", str(src), str(dst), "--targets", "all", "--rank", "0.25", "--memory-budget", str(BUDGET)]
    command = [sys.executable, "-m", "laser_kernels", *arguments, "--layers", "all", *more]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and journal_lines(dst) < lines and time.monotonic() < deadline:
        time.sleep(0.0005)
    if process.poll() is None:
        process.send_signal(kill)
    return process


@pytest.mark.parametrize(("shards", "lines"), [(1, 1), (1, 40), (4, 25)])
def test_killed_and_resumed_is_bitwise_one_run(sources, tmp_path, shards, lines):
    src, whole = sources[shards]
    process = kill_after_lines(src, tmp_path / "b", lines)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed: make the checkpoint larger"
    assert not looks_finished(tmp_path / "b")
    with pytest.raises(CheckpointError, match="unfinished run: add --resume"):
        reduce(src, tmp_path / "b")
    reduce(src, tmp_path / "b", resume=True)
    assert tiny.same_but_seconds(whole, tmp_path / "b")


def test_ctrl_c_exits_with_130_and_can_be_resumed(sources, tmp_path):
    src, whole = sources[1]
    process = kill_after_lines(src, tmp_path / "b", 15, kill=signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "--resume" in err and "Traceback" not in err and out == ""
    assert not looks_finished(tmp_path / "b")
    reduce(src, tmp_path / "b", resume=True)
    assert tiny.same_but_seconds(whole, tmp_path / "b")


class Crash(BaseException):
    """Stands for a sudden end inside this process."""


def crash_at(monkeypatch, call: int) -> None:
    """Let the call-th operation that changes the folder (write, rename, sync) be the last one."""
    counter = iter(range(10**9))
    for name in ("pwrite", "rename", "fsync", "ftruncate"):
        real = getattr(os, name)

        def wrapped(*arguments, real=real):
            if next(counter) >= call:
                raise Crash
            return real(*arguments)

        monkeypatch.setattr(os, name, wrapped)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_crash_point_can_be_resumed(tmp_path, monkeypatch, shards):
    src = tiny.llama(tmp_path / "a", shards=shards)
    plan = {"rules": [{"targets": ["fc_in", "v_proj"], "layers": "1-2", "rank": 3}]}
    reduce(src, tmp_path / "whole", plan)
    for call in range(200):
        dst = tmp_path / f"b{call}"
        with monkeypatch.context() as patch:
            crash_at(patch, call)
            try:
                reduce(src, dst, plan)
            except Crash:
                finished = False
            else:
                finished = True
        if not finished and looks_finished(dst):  # only the journal's removal was left
            left = tiny.contents(dst).keys() - {JOURNAL_NAME}
            assert left == tiny.contents(tmp_path / "whole").keys()
        reduce(src, dst, plan, resume=True)
        assert tiny.same_but_seconds(tmp_path / "whole", dst), call
        if finished:
            break
    assert finished and call > 15


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    src = tiny.llama(tmp_path / "a")
    report = reduce(src, tmp_path / "b")
    before = tiny.contents(tmp_path / "b")
    assert reduce(src, tmp_path / "b", resume=True) == report
    assert tiny.contents(tmp_path / "b") == before
    with pytest.raises(CheckpointError, match="finished result of another run"):
        reduce(src, tmp_path / "b", resume=True, seed=1)


def test_resume_with_nothing_there_is_a_run(tmp_path):
    src = tiny.llama(tmp_path / "a")
    (tmp_path / "b").mkdir()
    reduce(src, tmp_path / "b", resume=True)
    reduce(src, tmp_path / "c", resume=True)
    assert tiny.same_but_seconds(tmp_path / "b", tmp_path / "c")


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A source and a destination in which a few steps have been done."""
    src = tiny.llama(tmp_path / "a", layers=6)
    with monkeypatch.context() as patch:
        crash_at(patch, 35)
        with pytest.raises(Crash):
            reduce(src, tmp_path / "b")
    return src, tmp_path / "b"


def test_finished_work_is_not_done_again(interrupted, tmp_path, monkeypatch):
    src, dst = interrupted
    lines = (dst / JOURNAL_NAME).read_text().splitlines()
    reduced = sum(bool(json.loads(line).get("rows")) for line in lines)
    loads = []
    real = pipeline.load
    monkeypatch.setattr(pipeline, "load", lambda *args: loads.append(1) or real(*args))
    reduce(src, dst, resume=True)
    resumed = len(loads)
    loads.clear()
    reduce(src, tmp_path / "c")
    assert 0 < resumed == len(loads) - reduced < len(loads)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 1}, "seed"),
        ({"tol": 1e-2}, "tol"),
        ({"memory_budget": BUDGET * 2}, "memory budget"),
        ({"plan": {"rules": [{"targets": ["all"], "layers": "all", "rank": 0.5}]}}, "plan"),
    ],
)
def test_another_run_is_not_resumed(interrupted, change, word):
    src, dst = interrupted
    before = tiny.contents(dst)
    with pytest.raises(CheckpointError, match=f"another {word}"):
        reduce(src, dst, resume=True, **change)
    assert tiny.contents(dst) == before


def test_a_changed_source_is_not_resumed(interrupted):
    src, dst = interrupted
    tensors = tiny.llama_tensors(layers=6)
    tensors["model.norm.weight"] += 1
    path = src / "model.safetensors"
    path.unlink()
    tiny.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="another source"):
        reduce(src, dst, resume=True)


def test_a_torn_journal_line_and_a_lost_partial_file_are_survived(interrupted, tmp_path):
    src, dst = interrupted
    reduce(src, tmp_path / "whole")
    with open(dst / JOURNAL_NAME, "ab") as stream:
        stream.write(b'{"shard": 0, "st')
    (dst / ".model.safetensors.partial").unlink()
    reduce(src, dst, resume=True)
    assert tiny.same_but_seconds(tmp_path / "whole", dst)


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk whose first sync of a shard begins, and ends when told."""
    begun, go_on = threading.Event(), threading.Event()
    real = os.fsync

    def fsync(descriptor):
        if not begun.is_set() and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial"):
            begun.set()
            go_on.wait(10)
        real(descriptor)

    monkeypatch.setattr(syncing, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", fsync)
    return begun, go_on


def other_boot(dst) -> None:
    """As if the machine had been started again."""
    lines = [json.loads(line) for line in (dst / JOURNAL_NAME).read_text().splitlines()]
    assert any("shard" in line for line in lines)
    for line in lines:
        if "boot" in line:
            line["boot"] = "another start of the machine"
    (dst / JOURNAL_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_after_a_power_cut_only_synced_steps_count(interrupted, tmp_path):
    src, dst = interrupted
    reduce(src, tmp_path / "whole")
    other_boot(dst)
    partial = dst / ".model.safetensors.partial"
    partial.write_bytes(bytes(partial.stat().st_size))  # what had not been synced is lost, the header too
    reduce(src, dst, resume=True)
    assert tiny.same_but_seconds(tmp_path / "whole", dst)


def test_steps_that_end_during_a_sync_are_not_called_safe(tmp_path, slow_disk):
    begun, go_on = slow_disk
    with Reader(tiny.llama(tmp_path / "a")) as reader:
        layouts = prepare(reader, Plan.from_dict(PLAN)).layouts
    dst = tmp_path / "b"
    first = writer.Writer(dst, layouts, {})
    first.write(0, layouts[0].size - 1, b"\0")
    first.step_done(0, 0, 1, ())
    assert begun.wait(10)  # in a thread of its own: this one goes on
    first.step_done(0, 1, 0, ())
    go_on.set()
    first.close()
    other_boot(dst)
    second = writer.Writer(dst, layouts, {})
    assert second.journal.done.keys() == {(0, 0)}
    second.close()


@pytest.mark.parametrize("moment", ["early", "while publish waits", "in publish"])
def test_a_failed_sync_is_told_and_what_it_lost_is_done_again(moment, tmp_path, monkeypatch):
    """The system drops pages that it cannot write, and tells it once."""
    src, dst = tiny.llama(tmp_path / "a", layers=6), tmp_path / "b"
    reduce(src, tmp_path / "whole")
    failed, publishing = [], threading.Event()
    real, real_publish = os.fsync, writer.Writer.publish

    def fsync(descriptor):
        here = "in publish" if threading.current_thread() is threading.main_thread() else "beside the work"
        shard = os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors.partial")
        if failed or not shard or (here == "in publish") != (moment == "in publish"):
            return real(descriptor)
        if moment == "while publish waits":
            assert publishing.wait(10)
        failed.append(here)
        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
        raise OSError(errno.ENOSPC, "No space left on device")

    def publish(self, shard):
        publishing.set()
        real_publish(self, shard)

    with monkeypatch.context() as patch:
        patch.setattr(syncing, "SYNC_BYTES", 1 if moment != "in publish" else 1 << 40)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(writer.Writer, "publish", publish)
        with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be written \(No space left"):
            reduce(src, dst)
    assert failed and not looks_finished(dst)
    reduce(src, dst, resume=True)
    assert tiny.same_but_seconds(tmp_path / "whole", dst)


def test_a_closed_writer_writes_nothing(tmp_path):
    """A thread that outlives the run, after two Ctrl-C, must not hit a file that has taken over a number."""
    with Reader(tiny.llama(tmp_path / "a")) as reader:
        layouts = prepare(reader, Plan.from_dict(PLAN)).layouts
    late = writer.Writer(tmp_path / "b", layouts, {})
    late.write(0, layouts[0].size - 1, b"\0")
    late.close()
    before = tiny.contents(tmp_path / "b")
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    for act in (lambda: late.write(0, 100, b"\1"), lambda: late.step_done(0, 0, 1, ()), lambda: late.publish(0)):
        with pytest.raises(RuntimeError, match="the writer is closed"):
            act()
    with pytest.raises(OSError):
        late.journal.add(0, 0, ())
    assert tiny.contents(tmp_path / "b") == before and os.fstat(other).st_size == 0
    os.close(other)


def test_a_partial_file_lost_before_a_second_crash_is_not_missed(interrupted, tmp_path, monkeypatch):
    """The steps of the lost file do not count later, when there is a file again."""
    src, dst = interrupted
    reduce(src, tmp_path / "whole")
    (dst / ".model.safetensors.partial").unlink()
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            reduce(src, dst, resume=True)
    assert (dst / ".model.safetensors.partial").exists()
    reduce(src, dst, resume=True)
    assert tiny.same_but_seconds(tmp_path / "whole", dst)


def test_two_runs_do_not_share_a_destination(interrupted):
    import fcntl

    src, dst = interrupted
    with open(dst / JOURNAL_NAME, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another run is writing"):
            reduce(src, dst, resume=True)


def test_the_command_line_resumes(interrupted, capsys):
    src, dst = interrupted
    arguments = ["reduce", str(src), str(dst), "--targets", "all", "--rank", "0.25", "--memory-budget", str(BUDGET)]
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
