"""choose() and escalate(): pure, printable, and sane at the ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_kernels import _core
from laser_kernels.dispatch import Problem, Route, choose, escalate
from laser_kernels.rank import resolve_rank
from laser_kernels.status import Status

sides = st.integers(1, 30000)


@given(sides, sides, st.floats(0.001, 1), st.sampled_from(["float32", "float64", "bfloat16"]),
       st.sampled_from([None, 0, 1e-4, 1e-3, 1e-1]),
       st.sampled_from([("cpu", ""), ("cpu", "bf16"), ("cuda", "9.0"), ("cuda", "12.0"), ("xpu", "")]))  # fmt: skip
def test_choose_always_answers_with_a_route_that_fits(m, n, fraction, dtype, tol, device):
    rank = resolve_rank(fraction, m, n)
    problem = Problem(m, n, rank, dtype, tol, device[0], 3, device[1])
    route = choose(problem)
    assert route == choose(problem) and route == choose(problem._replace(rows=n, cols=m))
    assert rank <= route.block <= min(m, n)
    assert route.seconds > 0 and route.reason
    assert route.wide or (dtype != "float64" and tol != 0 and route.name != "full_svd")


@given(sides, sides, st.floats(0.001, 1), st.sampled_from([Status.PRECISION, Status.NOT_CONVERGED]))
def test_escalation_ends_in_a_full_svd(m, n, fraction, status):
    problem = Problem(m, n, resolve_rank(fraction, m, n))
    for name in ("randomized", "gram_eigh", "full_svd"):
        route: Route | None = choose(problem, name)
        seen = []
        while route is not None:
            assert (route.name, route.wide) not in seen
            seen.append((route.name, route.wide))
            route = escalate(problem, route, status)
        assert seen[-1] == ("full_svd", True) and len(seen) <= 4
        wide = [one for _, one in seen]
        assert wide == sorted(wide)  # never back to float32
        double = choose(problem._replace(dtype="float64"), name)
        onward = escalate(problem._replace(dtype="float64"), double, status)
        assert onward is None or onward.wide


def test_small_ranks_are_randomized_and_large_ones_exact():
    for side in (1024, 2048, 4096):
        assert choose(Problem(side, side, side // 100)).name == "randomized"
        assert choose(Problem(side, side, side // 2)).name == "gram_eigh"
    assert choose(Problem(64, 64, 6)).name == "gram_eigh"  # a call costs more than its flops
    assert choose(Problem(2048, 2048, 2048)).name == "full_svd"


def test_iterating_on_the_gram_matrix_pays_for_tall_matrices():
    assert choose(Problem(11008, 2048, 400), "randomized").gram
    assert not choose(Problem(4096, 4096, 16), "randomized").gram


def test_half_precision_is_for_large_float32_problems_on_a_cpu_that_has_it():
    problem = Problem(2048, 2048, 20, capability="bf16")
    assert choose(problem).half and choose(problem).seconds < choose(problem._replace(capability="")).seconds
    for other in ({"capability": ""}, {"dtype": "float64"}, {"tol": None}, {"tol": 0}, {"rows": 20, "cols": 20}):
        assert not choose(problem._replace(**other)).half, other
    assert not escalate(problem, choose(problem), Status.PRECISION).half


def test_time_grows_with_the_batch_and_with_precision():
    one, many = choose(Problem(1000, 800, 80)), choose(Problem(1000, 800, 80, batch=10))
    assert many.seconds == pytest.approx(10 * one.seconds)
    assert choose(Problem(1000, 800, 80, "float64")).seconds > one.seconds


def test_perturbation_loss_is_zero_without_error_and_capped_by_the_gap():
    spectrum = [4.0, 3.0, 2.0, 1.0]
    assert _core.perturbation_loss(spectrum, 2, 0.0) == 0
    # pairs (i <= 2 < j): gaps 2, 3, 1, 2
    assert _core.perturbation_loss(spectrum, 2, 0.1) == pytest.approx(0.01 * (1 / 2 + 1 / 3 + 1 + 1 / 2))
    assert _core.perturbation_loss(spectrum, 2, 10.0) == pytest.approx(2 + 3 + 1 + 2)
    assert _core.perturbation_loss([1.0] * 6, 3, 1e-3) == 0  # a cluster may swap freely


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_resolve_rank_is_exact(numerator, side):
    fraction = min(numerator, 10**6) / 10**6
    assert resolve_rank(fraction, side, side) == max(1, min(numerator, 10**6) * side // 10**6)


def test_a_gpu_works_on_batches_and_reads_bfloat16_as_it_is():
    alone = Problem(4096, 4096, 409, "bfloat16", 1e-3, "cuda", 1, "9.0")
    route, many = choose(alone), choose(alone._replace(batch=32))
    assert route.name == "randomized" and route.half and not route.wide
    assert many.seconds < 32 * route.seconds  # what a call costs is shared
    assert choose(alone._replace(capability="7.0")) == route  # no row of its own
    assert not choose(alone._replace(tol=None)).half


def test_gpus_are_told_apart_by_their_capability():
    h200 = Problem(4096, 4096, 409, "bfloat16", 1e-3, "cuda", 32, "9.0")
    seconds = [choose(h200._replace(capability=which)).seconds for which in ("8.0", "12.0", "9.0", "10.0")]
    assert seconds == sorted(seconds, reverse=True) and len(set(seconds)) == 4
    # float64 is no way out where it is 64 times slower
    exact = [choose(h200._replace(tol=0, capability=which)).seconds for which in ("9.0", "12.0")]
    assert exact[1] > 10 * exact[0]
