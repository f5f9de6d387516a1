"""bench/speed_cuda.py on the CPU with tiny sizes, and the rules of its engine: no time without its error."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from laser_kernels.bench.rows import KEYS
from laser_kernels.bench.timing import Samples
from laser_kernels.dispatch import default_block

ROOT = Path(__file__).parent.parent
CASES = ("reconstruct", "rank10", "rank50", "rank1", "ranks", "llama2-7b", "experts", "cusolver", "smollm2", "svd")


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(rows, what was printed) of one dry run of every case."""
    out = tmp_path_factory.mktemp("dry") / "rows.jsonl"
    command = [sys.executable, ROOT / "bench" / "speed_cuda.py", "--dry-run", "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done.stdout


@pytest.fixture
def engine(monkeypatch):
    """cuda_timing and weights, imported from bench."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import cuda_timing
    import weights

    return cuda_timing, weights


def test_every_case_has_our_row_with_its_error(dry):
    rows, _ = dry
    ours = [row for row in rows if row["peer"] is None]
    cases = ("", " of several ranks", " llama2-7b", " experts", " SmolLM2-135M, 3 matrices x 1")
    reduced = {"low_rank" + case for case in cases}
    assert {row["op"] for row in ours} == reduced | {"reconstruct", "scale + reconstruct"}
    for row in ours:
        assert row["status"] == "ok" and row["seconds"] > 0 and row["p10"] <= row["p90"], row
        assert -1e-3 < row["excess"] <= 1e-3, row
        assert row["bound_share"] or row["op"] == "scale + reconstruct", row
    assert sum(row["op"] == "low_rank" for row in ours) == 9  # rank10, rank50 twice, cusolver, rank1, svd four times


def test_rows_have_the_keys_of_every_command_and_no_time_without_error(dry):
    for row in dry[0]:
        assert set(row) == set(KEYS)
        if row["seconds"] is not None and not row["op"].startswith("ceiling"):
            assert math.isfinite(row["excess"]), row
        if row["status"] != "ok":
            assert row["seconds"] is None, row


def test_what_needs_cuda_is_recorded_as_such(dry):
    rows, text = dry
    states = {row["peer"]: row["status"] for row in rows}
    for peer in ("cuSOLVER gesvdr", "cuSOLVER gesvdp", "cuSOLVER gesvdaStridedBatched"):
        assert states[peer].startswith("not reachable")
    assert "only supported on CUDA" in states["torch.linalg.svd driver=gesvdj"]
    assert states["torch.linalg.svd driver=None"] == "ok"
    assert all(f"{case}: goal" in text for case in CASES)


def test_a_loop_says_how_many_it_ran_on(dry):
    (row,) = [row for row in dry[0] if row["op"] == "low_rank experts" and "loop over" in (row["peer"] or "")]
    assert row["batch"] == 3 and "loop over 3" in row["peer"]


def test_excess_is_that_of_the_exact_svd(engine):
    _, weights = engine
    task = weights.Task(weights.Weights(weights.llm_like(2, 40, 24, 7, torch.device("cpu")), (0,)), 0.25)
    matrix, rank = task.matrices[0].double(), task.ranks[0]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert rank == 6 and abs(task.excess(0, best)) < 1e-12
    assert task.excess(0, torch.zeros_like(matrix)) == pytest.approx(s.norm().item() / s[rank:].norm().item() - 1)
    assert task.excess(1, best) == weights.UNKNOWN
    assert math.isnan(task.excess(1, best * math.nan)) and math.isnan(task.worst([best * math.nan]))
    assert task.disagreement([best, best], [s[rank:].norm().item(), task.residual(1, best).item()]) < 1e-12
    assert task.disagreement([best, best], [1.0, math.nan]) != task.disagreement([best, best], [1.0, 1.0])


def test_floor_counts_by_hand(engine):
    _, weights = engine
    task = weights.Task(weights.Weights(torch.zeros(1, 40, 24, dtype=torch.bfloat16), (0,)), 0.25)
    moved, flops = task.floor([0], 1e-3)
    final = 4 * 40 * 24 * 6
    assert moved == 2 * 2 * 40 * 24 and flops == 40 * 24**2 + final
    block = default_block(6, 24, 1e-3)
    through_a, through_gram = 4 * 40 * 24 * block * 3, 40 * 24**2 + 2 * 24**2 * block * 3
    assert task.floor([3], 1e-3) == (moved, min(through_a, through_gram) + final)


def outcomes(cuda_timing, methods, **options):
    settings = {"repeats": 3, "seconds": 10.0, "each": 5.0} | options
    return cuda_timing.measure(methods, cuda_timing.Timer(torch.device("cpu")), **settings)


def test_wrong_answers_have_no_time(engine):
    cuda_timing, _ = engine
    method = cuda_timing.Method
    errors = iter([1e-6, 1e-6, 0.5, 1e-6])

    def contradicts(i, value):
        raise ArithmeticError("says otherwise")

    found = outcomes(
        cuda_timing,
        {
            "right": method(lambda i: i, lambda i, value: 1e-6, limit=1e-3),
            "wrong": method(lambda i: i, lambda i, value: 0.5, limit=1e-3),
            "not a number": method(lambda i: i, lambda i, value: math.nan),
            "wrong later": method(lambda i: i, lambda i, value: next(errors), limit=1e-3),
            "contradicts": method(lambda i: i, contradicts),
        },
    )
    assert len(found["right"].samples.seconds) == 3 and found["right"].excess == 1e-6
    for name in ("wrong", "not a number", "wrong later", "contradicts"):
        assert found[name].status == "FAILED", name
        row = cuda_timing.row(torch.device("cpu"), Samples([1.0]), op=name, status=found[name].status)
        assert row["seconds"] is None


def test_a_peer_that_fails_costs_only_itself(engine):
    cuda_timing, _ = engine

    def fails(error):
        def call(i):
            raise error

        return cuda_timing.Method(call, lambda i, value: 0.0)

    found = outcomes(
        cuda_timing,
        {
            "memory": fails(torch.OutOfMemoryError("CUDA out of memory")),
            "missing": fails(cuda_timing.NotReachable("no such symbol")),
            "broken": fails(RuntimeError("cuSOLVER status 7\nmore")),
            "fine": cuda_timing.Method(lambda i: i, lambda i, value: 0.0),
        },
    )
    assert {name: outcome.status for name, outcome in found.items()} == {
        "memory": "out of memory",
        "missing": "not reachable: no such symbol",
        "broken": "error: cuSOLVER status 7",
        "fine": "ok",
    }


def test_slow_peers_keep_to_their_budget(engine):
    cuda_timing, _ = engine
    method = cuda_timing.Method
    methods = {
        "slow": method(lambda i: time.sleep(0.3), lambda i, value: 0.0),
        "fast": method(lambda i: time.sleep(0.001), lambda i, value: 0.0),
    }
    found = outcomes(cuda_timing, methods, each=0.4)
    assert len(found["fast"].samples.seconds) == 3
    assert found["slow"].note == " (first call only)" and found["slow"].samples.median == pytest.approx(0.3, abs=0.1)
    late = outcomes(cuda_timing, methods | {"never": methods["fast"]}, seconds=0.2)
    assert late["never"].status == "skipped: no time left" and not late["never"].samples.seconds


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures where there is a GPU")
def test_without_a_gpu_it_measures_nothing(engine, monkeypatch):
    import speed_cuda

    monkeypatch.setattr(sys, "argv", ["speed_cuda.py"])
    with pytest.raises(SystemExit, match="no CUDA device: nothing measured"):
        speed_cuda.main()
