"""What `laser-kernels bench` makes of rows: exponents, totals, tables, and the ladder of precisions."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

from laser_kernels.bench import precision, table
from laser_kernels.bench.growth import curves, exponent
from laser_kernels.bench.rows import row
from laser_kernels.bench.suites import load, problem
from laser_kernels.bench.timing import Samples
from laser_kernels.bench.totals import totals

ROOT = Path(__file__).parent.parent


def made(method, seconds, *, n=64, rank=0.1, count=None, reaches=True, **values):
    peer = None if method == "ours" else method
    details = {"source": "llm-like", "method": method, "rank": rank, "reaches": reaches, "count": count}
    fixed = {
        "op": "low_rank",
        "peer": peer,
        "shape": [n, n],
        "rank": max(1, int(rank * n)),
        "dtype": "float32",
        "tol": 1e-3,
    }
    fixed |= {"batch": 1, "excess": 1e-4, "details": details, "route": "randomized" if peer is None else None}
    return row(None if seconds is None else Samples([seconds]), **(fixed | values))


def test_exponent_is_the_slope_of_the_logarithms():
    assert exponent([(n, 3e-9 * n**2.5) for n in (64, 128, 256)]) == pytest.approx(2.5)


def test_curves_need_three_points_and_divide_by_the_batch():
    sizes = (64, 128, 256, 512)
    rows = [made("ours", 1e-9 * n**3 * (n // 64), n=n, batch=n // 64) for n in sizes]
    rows += [made("x", 1.0, n=n) for n in sizes[:2]]
    found = [c for c in curves(rows) if c.along == "n"]
    assert [(c.method, len(c.points)) for c in found] == [("ours", 4)]
    assert found[0].exponent == pytest.approx(3)
    assert "10% of n" in found[0].fixed


def test_totals_weigh_shapes_by_their_number_and_drop_incomplete_methods():
    rows = [made("ours", 0.4, n=64, batch=4, count=100), made("ours", 1.0, n=128, count=10)]
    rows += [made("x", 0.2, n=64, count=100), made("x", None, n=128, count=10, status="timeout")]
    found = totals(rows)
    assert [(t.method, t.matrices, t.seconds) for t in found] == [("ours", 110, pytest.approx(0.1 * 100 + 10))]


def test_tables_compare_per_matrix_and_mark_what_misses(monkeypatch):
    run = [made("ours", 4.0, n=2048, batch=1), made("torch.svd_lowrank", 2.0, n=2048, reaches=False, excess=0.1)]
    run += [made("sklearn.randomized_svd", 6.0, n=2048), made("torch.linalg.svd", 80.0, n=2048, excess=1e-14)]
    run += [made(table.LASER, 1.0, n=2048, excess=0.02)]
    line = table.headline(run).splitlines()[-1]
    assert line == (
        "| 2048x2048, 10% | 4 s | 1.0e-04 | 1.50x (sklearn.randomized_svd) | 20x (torch.linalg.svd) | 0.25x at 2.0e-02 |"
    )
    looped = [made("ours", 4.0, batch=8), made("torch.svd_lowrank", 2.0, batch=2)]
    looped += [made("numpy.linalg.svd", None, status="FAILED", excess=None, reaches=None)]
    assert table.methods([*run, *looped]).splitlines()[2:] == [
        "| 2048x2048, 10% | 4 s, randomized | 1.0e-04 | 0.50x at 1.0e-01 | 1.50x | 20x | 0.25x |  |",
        "| 8 x 64x64, 10% | 500 ms, randomized | 1.0e-04 | 2.0x |  |  |  | FAILED |",
    ]


def test_the_last_run_of_a_problem_counts():
    runs = [made("ours", 4.0, n=2048), made("torch.linalg.svd", 8.0, n=2048), made("ours", 5.0, n=2048)]
    assert [[r["seconds"] for r in run] for run in table.problems(runs)] == [[5.0]]


def test_documents_say_what_their_results_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sys.modules.pop("table", None)
    import table as script

    places = 0
    for name in script.DOCUMENTS:
        text = (ROOT / name).read_text()
        places += len(script.PLACE.findall(text))
        assert script.rendered(text) == text, f"{name} differs from its results: make bench-table"
    assert places >= 3


@pytest.mark.parametrize("document", ["README.md", "DEVNOTES.md", "bench/README.md"])
def test_scripts_that_documents_name_exist(document):
    named = set(re.findall(r"\bbench/\w+\.py", (ROOT / document).read_text()))
    assert named and [name for name in named if not (ROOT / name).is_file()] == []


def test_more_slices_are_nearer_the_float32_product():
    rows = precision.run(problem("96x64", rank=0.5), "precision", "cpu", print)
    error = {r["route"]: r["details"]["error"] for r in rows}
    assert set(error) == set(precision.PRODUCTS)
    assert 1e-4 < error["tf32"] < error["bf16"] < 2**-7
    assert error["3-slice"] < error["2-slice"] < error["tf32"] and error["fp32"] < 1e-6
    assert all(r["seconds"] is None and r["excess"] > -1e-6 for r in rows)  # no time; slices exceed rank r


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slices_add_up(count):
    x = torch.randn(40, 30)
    left = (x.double() - sum(part.double() for part in precision.slices(x, count))).abs() / x.abs()
    assert left.max() <= 2.0 ** -(9 * count - 1)  # 8 bits each, rounded to nearest


def test_tf32_keeps_ten_bits():
    x = torch.randn(1000)
    kept = precision.round_tf32(x)
    assert ((kept - x).abs() <= x.abs() * 2**-11).all() and not torch.equal(kept, x)
    assert math.frexp(kept[0].item())[0] * 2**11 % 1 == 0


def test_model_suites_count_the_models_matrices():
    counts = {"llama-2-7b": 224, "llama-3-8b": 224, "llama-3-70b": 560, "mixtral-8x7b": 896, "gpt2": 48}
    for name, expected in counts.items():
        per_rank = {}
        for one in load(name).problems:
            per_rank[one.rank] = per_rank.get(one.rank, 0) + one.count
        assert set(per_rank.values()) == {expected}, name
