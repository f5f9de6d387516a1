"""`laser-kernels bench`: bad input, peers that die or hang, and what rows say."""

from __future__ import annotations

import json

import pytest
import torch

from laser_kernels.bench.compare import compare
from laser_kernels.bench.optimum import Optimum
from laser_kernels.bench.rows import KEYS, read
from laser_kernels.bench.suites import known, load, problem
from laser_kernels.bench.team import Lost, Process
from laser_kernels.bench.tuning import tune
from laser_kernels.cli import main


def bench(*words: str) -> int:
    return main(["bench", *words])


@pytest.mark.parametrize(
    "words, expected",
    [
        (("--suite", "nope"), "known: cpu, deepseek-r1"),
        (("--peers", "nope"), "known: LASER's svd_lowrank, torch.svd_lowrank"),
        (("--device", "tpu"), "known: cpu"),
        (("--routes", "nope"), "known: auto, randomized"),
        (("--shape", "12"), "shape must look like 4096x11008"),
        (("--shape", "12x9", "--out", "/proc/nope/rows.jsonl"), "/proc/nope"),
    ],
)
def test_bad_input_is_one_line_that_lists_what_is_known(words, expected, capsys):
    assert bench(*words) == 2
    assert expected in capsys.readouterr().err


def test_own_problem_gives_rows_with_every_key_and_errors(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    peers = ["gram + torch.linalg.eigh", "LASER's svd_lowrank"]
    problem = ["--shape", "48x32", "--rank", "0.25", "--batch", "2", "--repeats", "2"]
    assert bench(*problem, "--peers", ",".join(peers), "--out", str(out)) == 0
    rows = read(out)
    assert [row["peer"] for row in rows] == [None, *peers]
    for row in rows:
        assert set(KEYS) < set(row)
        assert row["status"] == "ok" and 0 < row["p10"] <= row["seconds"] <= row["p90"]
    assert rows[0]["excess"] <= 1e-3 and rows[0]["ratio_best_peer"] > 0
    print(capsys.readouterr().out)


def test_crash_and_hang_of_a_process_are_reported():
    crashed = Process("torch", "cpu")
    crashed.ask(None, 120)
    crashed.child.kill()
    with pytest.raises(Lost, match="crashed: signal SIGKILL"):
        crashed.ask(("load", [], []), 20)
    crashed.stop()
    hung = Process("torch", "cpu")
    with pytest.raises(Lost, match="timeout"):
        hung.ask(None, 0.01)  # it is still importing


@pytest.mark.parametrize("name", sorted(set(known()) - {"smollm2"}))
def test_suites_are_valid(name):
    assert load(name).problems


def test_optimum_judges_by_the_contract():
    a = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    best = Optimum.of(a, [2])[2]
    assert best.tail == pytest.approx(5**0.5)
    assert best.reaches(5**0.5 * 1.0009, 1e-3, "float32") and not best.reaches(5**0.5 * 1.0011, 1e-3, "float32")
    assert best.impossible(1.0) and best.impossible(6.0) and not best.impossible(5**0.5)


def test_tune_finds_the_fastest_setting_that_reaches():
    cost = lambda s: (s["oversample"] + 10) * s["niter"]  # noqa: E731
    found = tune(lambda s: (cost(s), s["oversample"] * s["niter"] >= 40), [20, 10, 5], lambda: False)
    assert found == {"oversample": 20, "niter": 2}


def test_compare_shows_a_regression_but_not_drift():
    def row(peer, seconds):
        made = dict.fromkeys(KEYS) | {"op": "low_rank", "peer": peer, "status": "ok", "route": "randomized"}
        return made | {"seconds": seconds, "p10": 0.9 * seconds, "p90": 1.1 * seconds}

    old = [row(None, 1.0), row("x", 2.0)]
    assert compare(old, [row(None, 2.0), row("x", 4.0)])[1] == []
    assert len(compare(old, [row(None, 2.0), row("x", 2.0)])[1]) == 1


def test_problem_floor_counts_bytes_and_products():
    assert problem("100x50", rank=10).floor() == (2 * 4 * 5000, 6 * 5000 * 10)
    assert json.dumps(problem("100x50").as_dict())
