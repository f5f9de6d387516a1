"""The route SPECTRAL (csrc/core/spectral.cpp) and the pure functions it is made of. Bad input ends elsewhere, and right."""

import math
import warnings

import pytest
import torch

import laser_kernels as lk
from laser_kernels import _core, dispatch, ops
from laser_kernels.run import EscalationWarning
from laser_kernels.status import Status
from laser_kernels.testing import (
    eps,
    gaussian,
    llm_like,
    norm,
    optimal_residual,
    orthonormality_bound,
    residual,
    residual_bound,
    with_spectrum,
)


def window(n):
    return max(8, round(0.02 * n))


def attempt(a, rank, tol=1e-3, half=False, wide=False, seed=0):
    """The route alone on a batch: results and one dict of the certificate's columns for each."""
    out = torch.full_like(a, math.nan)
    rows = ops.backend(a.device).low_rank(
        a, out, rank, "spectral", rank, True, wide, half, tol, 64, seed, list(range(len(a)))
    )
    return out, [dict(zip(ops.CERTIFICATE, row, strict=True)) for row in rows.tolist()]


# --- pure functions


@pytest.mark.parametrize("low", [1e-4, 0.02, 0.05, 0.5])
def test_quintics_map_everything_above_low_to_one(low):
    steps = _core.sign_quintics(low, 0.01)
    x = torch.logspace(math.log10(low), 0, 20001, dtype=torch.float64)
    for a, b, c in steps:
        x = x * (a + x**2 * (b + x**2 * c))
    print(f"low {low}: {len(steps)} quintics, {(x - 1).abs().max():.2e} from 1")
    assert (x - 1).abs().max() <= 0.0101
    plain, taylor = torch.tensor(low, dtype=torch.float64), 0
    while abs(plain - 1) > 0.01:
        plain, taylor = plain * (15 - 10 * plain**2 + 3 * plain**4) / 8, taylor + 1
    assert len(steps) <= taylor


@pytest.mark.parametrize("low", [0.01, 0.02, 0.1])
def test_rounding_above_one_does_not_grow(low):
    """bfloat16 may put values up to 2^-8 above what the step before promised."""
    x = torch.linspace(low, 1, 5001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for a, b, c in _core.sign_quintics(low, 0.01):
        x = x * (1 + 2.0**-8 * (2 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 1))
        x = x * (a + x**2 * (b + x**2 * c))
    assert (x - 1).abs().max() <= 0.05


@pytest.mark.parametrize("spectrum", ["uniform", "two clusters", "edge"])
def test_level_of_counts_from_moments(spectrum):
    n, order = 500, 128
    t = {
        "uniform": torch.linspace(-0.99, 0.99, n),
        "two clusters": torch.cat([torch.full((n // 2,), -0.6), torch.full((n // 2,), 0.4)]),
        "edge": 1 - torch.linspace(0, 1.4, n) ** 2,
    }[spectrum].double()
    moments = torch.cos(torch.arange(order).double()[:, None] * torch.acos(t)).sum(1).tolist()
    for count in (50, 125, 400, 450):
        level = _core.level_of(moments, float(count))
        width = math.pi / order * max(math.sin(math.acos(level)), 3 * math.pi / order)  # Jackson's resolution
        most, least = (t > level - 3 * width).sum().item(), (t > level + 3 * width).sum().item()
        assert least <= count <= most, (spectrum, count, level)


@pytest.mark.parametrize("spectrum", ["power", "exponential", "gap"])
def test_the_energy_of_the_tail_from_moments(spectrum):
    """Never much too small, and right where the tail is no less than what the kernel smears there."""
    n, order = 500, 128
    index = torch.arange(1, n + 1).double()
    eigenvalues = {"power": index**-1.2, "exponential": (-index / 60).exp(), "gap": torch.where(index <= 250, 1, 0.05)}
    values = eigenvalues[spectrum].double()
    for count in (125, 250, 400):
        mu = values[count - 1 : count + 1].mean().item()
        t = (values - mu) / (values + mu)
        moments = torch.cos(torch.arange(order).double()[:, None] * torch.acos(t.clamp(-1, 1))).sum(1).tolist()
        level = _core.level_of(moments, float(count))
        found, tail = mu * _core.sum_below(moments, level), values[count:].sum().item()
        print(f"{spectrum} {count}: {found:.4g}, {tail:.4g}")
        assert 0.9 * tail <= found
        assert spectrum == "gap" or found <= 1.1 * tail


# --- the route


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("family", ["gaussian", "llm_like", "power_law"])
def test_excess_count_and_bound(family, share, half):
    m, n = 300, 256
    a = {
        "gaussian": lambda: gaussian(m, n, 1).float(),
        "llm_like": lambda: llm_like(m, n, 2),
        "power_law": lambda: with_spectrum(m, n, torch.arange(1, n + 1).double() ** -0.7).float(),
    }[family]()
    rank = round(share * n)
    out, (row,) = attempt(a[None], rank, half=half)
    tail = optimal_residual(a, rank)
    excess = row["unrounded"] / tail - 1
    print(f"{family} {rank} half={half}: excess {excess:.1e} <= {row['bound']:.1e}, {row['iterations']:.0f} products")
    assert row["status"] == Status.OK
    assert excess <= row["bound"] <= 1e-3
    assert math.isclose(row["residual"], residual(a, out[0]), rel_tol=1e-6)
    assert abs(row["projected"] - (rank - window(n))) <= window(n)
    assert torch.linalg.matrix_rank(out[0].double(), rtol=1e-6) == rank


def test_bfloat16_is_simulated_and_escalates_by_the_certificate():
    """A Gaussian matrix has no gap at the cut, so that a projector from rounded products cannot meet a small tol."""
    a = gaussian(300, 256, 1)[None].float()
    exact, (full,) = attempt(a, 128, tol=1e-4)
    rounded, (half,) = attempt(a, 128, tol=1e-4, half=True)
    assert full["status"] == half["status"] == Status.OK and max(full["bound"], half["bound"]) <= 1e-4
    assert not torch.equal(exact, rounded)
    _, (loose,) = attempt(a, 128, half=True)
    assert loose["bound"] > 2 * half["bound"]
    print(f"products: fp32 {full['iterations']:.0f}, bf16 {half['iterations']:.0f}, tol 1e-3 {loose['iterations']:.0f}")


@pytest.mark.parametrize("kappa, tol", [(1e3, 1e-6), (1e6, 1e-5)])
def test_float64_reaches_small_tolerances_and_bad_conditions(kappa, tol):
    n = 200
    a = with_spectrum(n, n, torch.logspace(0, -math.log10(kappa), n, dtype=torch.float64))[None]
    for rank in (40, 100, 150):
        out, (row,) = attempt(a, rank, tol=tol, wide=True)
        assert row["status"] == Status.OK, (rank, row)
        assert residual(a[0], out[0]) <= residual_bound(a[0], rank, tol)


@pytest.mark.parametrize("kappa", [1e4, 1e6])
def test_what_rounding_hides_is_seen_before_a_projector_is_made(kappa):
    """The search alone, two transforms, of about 10 products where n is as small as this."""
    n = 256
    a = with_spectrum(n, n, torch.logspace(0, -math.log10(kappa), n, dtype=torch.float64))[None].float()
    for rank in (128, 200):
        tail = optimal_residual(a[0], rank) / norm(a[0])
        _, (row,) = attempt(a, rank, tol=1e-4)
        print(f"kappa {kappa:.0e}, rank {rank}: tail {tail:.1e}, {row['iterations']:.0f} products")
        assert row["status"] == Status.PRECISION and row["projected"] == 0
        assert row["iterations"] <= 20
        _, (row,) = attempt(a.double(), rank, tol=1e-4, wide=True)
        assert row["status"] == Status.OK and row["iterations"] > 30


def test_real_weights(smollm2):
    for name, w in smollm2.items():
        n = min(w.shape)
        for share in (0.25, 0.5):
            rank = round(share * n)
            _, (row,) = attempt(w[None], rank, half=True)
            assert row["status"] == Status.OK, (name, row)
            assert row["unrounded"] <= (1 + row["bound"]) * optimal_residual(w, rank) * (1 + 1e-6), (name, rank)
            assert abs(row["projected"] - (rank - window(n))) <= window(n)


def test_factors_are_orthonormal_and_exactly_of_the_rank():
    a = llm_like(200, 320)
    u, s, vh = lk.truncated_svd(a, 90, route="spectral")
    bound = orthonormality_bound(torch.float32, 90)
    assert u.shape == (200, 90) and vh.shape == (90, 320)
    assert (u.mT @ u - torch.eye(90)).abs().max() <= bound and (vh @ vh.mT - torch.eye(90)).abs().max() <= bound
    assert (s > 0).all() and (s.diff() <= 0).all()
    assert residual(a, (u.double() * s) @ vh.double()) <= residual_bound(a, 90, 1e-3)


def test_ragged_ranks_and_neighbours_do_not_disturb_each_other():
    stack = torch.stack([llm_like(160, 128, i) * 10.0**i for i in range(3)])
    ranks = [32, 64, 100]
    together, infos = lk.low_rank(stack, ranks, route="spectral", return_info=True)
    for a, rank, x, info in zip(stack, ranks, together, infos, strict=True):
        assert (info.rank, info.route, info.status) == (rank, "spectral", "ok")
        assert residual(a, x) <= residual_bound(a, rank, 1e-3)
        assert torch.linalg.matrix_rank(x.double(), rtol=1e-6) == rank
    again = lk.low_rank(stack, ranks, route="spectral")
    assert all(torch.equal(x, y) for x, y in zip(together, again, strict=True))
    mixed = torch.stack([stack[0], torch.zeros_like(stack[0]), stack[1]])
    out, rows = attempt(mixed, 32)
    assert [row["status"] for row in rows] == [Status.OK, Status.NOT_CONVERGED, Status.OK]
    assert out[1].isnan().all() and residual(mixed[2], out[2]) <= residual_bound(mixed[2], 32, 1e-3)


def test_without_a_tolerance_it_is_uncertified_and_close():
    a = llm_like(200, 160)
    x, info = lk.low_rank(a, 80, route="spectral", tol=None, max_iter=8, return_info=True)
    assert (info.status, info.route) == ("uncertified", "spectral")
    assert residual(a, x) <= 1.01 * optimal_residual(a, 80)


def at_cuts(a, rank, locked, cuts, half=False, max_iter=8):
    out = torch.full_like(a, -7)
    sigma = [value for cut in cuts for value in cut]
    rows = torch.ops.laser_kernels.low_rank_at(a, out, rank, locked, sigma, half, max_iter, 0, list(range(len(a))))
    return out, [dict(zip(ops.CERTIFICATE, row, strict=True)) for row in rows.tolist()]


def cuts_of(a, rank, locked):
    """A level between two singular values, and the smallest wanted one."""
    sigma = torch.linalg.svdvals(a.double())
    return [((s[locked - 1] * s[locked]).sqrt().item(), s[rank - 1].item()) for s in sigma]


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_given_cuts_it_does_not_search(half, smollm2):
    real = min(smollm2.values(), key=torch.Tensor.numel)
    for a in (real, gaussian(300, 200, 5).float() * 1e12, llm_like(200, 300).bfloat16()):
        rank = min(a.shape) // 2
        locked = rank - window(min(a.shape))
        out, (row,) = at_cuts(a[None], rank, locked, cuts_of(a[None], rank, locked), half)
        assert row["status"] == Status.UNCERTIFIED
        excess = row["unrounded"] / optimal_residual(a, rank) - 1
        print(f"excess {excess:.1e}")
        assert row["residual"] == pytest.approx(residual(a, out[0]), rel=1e-3) and -1e-6 < excess <= 1e-3


def test_wrong_cuts_cost_accuracy_and_the_residual_says_so():
    a = llm_like(200, 160)
    rank, locked = 80, 72
    tail = optimal_residual(a, rank)
    sigma = torch.linalg.svdvals(a.double())
    for shift in (-12, -4, 4, 12):
        level, edge = (sigma[locked + shift].item(), sigma[rank + shift].item())
        out, (row,) = at_cuts(a[None], rank, locked, [(level, edge)])
        print(f"{shift:+}: excess {row['unrounded'] / tail - 1:.1e}")
        assert row["status"] == Status.UNCERTIFIED
        assert row["residual"] == pytest.approx(residual(a, out[0]), rel=1e-3)
        assert torch.linalg.matrix_rank(out[0].double(), rtol=1e-5) == rank
        assert -1e-6 <= row["unrounded"] / tail - 1 <= 0.2


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_the_bound_holds_on_random_spectra(half):
    """Steps, clusters and spikes; a certificate without a factor of safety fails once in 2000 of these."""
    generator = torch.Generator().manual_seed(7)

    def uniform(low, high):
        return low + (high - low) * torch.rand(1, generator=generator).item()

    certified, worst = 0, 0.0
    for case in range(120):
        n = (64, 100)[case % 2]
        part = 10 + int(uniform(0, n - 20))
        noise = torch.rand(n, generator=generator, dtype=torch.float64)
        sigma = {
            0: torch.cat([1 + noise[:part], (1 + noise[part:]) * uniform(0.05, 0.99)]),
            1: torch.cat([torch.full((part,), 10 ** uniform(-1, 1)), torch.full((n - part,), 10 ** uniform(-1, 1))]),
            2: torch.cat([10 ** (1 + noise[: n // 8]), noise[n // 8 :]]),
        }[case % 3].double().sort(descending=True).values  # fmt: skip
        a = with_spectrum(n + 20, n, sigma, seed=case).float()
        for rank in (part, 9 + int(uniform(0, n - 12))):
            if rank <= window(n) or rank >= n:
                continue
            _, (row,) = attempt(a[None], rank, half=half, seed=case)
            if row["status"] != Status.OK or row["bound"] == 0:
                continue
            certified += 1
            rounding = 4 * eps(torch.float32) * norm(a) / optimal_residual(a, rank)
            worst = max(worst, (row["unrounded"] / optimal_residual(a, rank) - 1 - rounding) / row["bound"])
    print(f"half={half}: {certified} certified, excess at most {worst:.2f} of the bound")
    assert certified >= 60 and worst <= 1


# --- bad input


def spectrum(*parts):
    return torch.cat([torch.full((count,), float(value)) for count, value in parts]).double()


BAD = {
    "zero": (torch.zeros(150, 100), 50),
    "rank deficient": (with_spectrum(150, 100, spectrum((30, 2), (70, 0))), 20),
    "rank above the numerical rank": (with_spectrum(150, 100, spectrum((30, 2), (70, 0))), 60),
    "cluster at the cut": (with_spectrum(150, 100, spectrum((20, 3), (60, 2), (20, 1))), 50),
    "one value": (with_spectrum(150, 100, spectrum((100, 1))), 50),
    "clusters beside the cut": (with_spectrum(150, 100, spectrum((50, 2), (50, 1))), 50),
    "no Cholesky factor": (with_spectrum(150, 100, torch.logspace(0, -12, 100, dtype=torch.float64)), 60),
    "rank within the window": (gaussian(150, 100, 3), 5),
    "full rank": (gaussian(150, 100, 3), 100),
    "small": (gaussian(9, 7, 3), 3),
}


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_a_right_answer_and_says_how(case, half, monkeypatch):
    a, rank = BAD[case][0].float(), BAD[case][1]
    if half:  # as on a GPU
        route = dispatch.choose(dispatch.Problem(*a.shape, rank), "spectral")._replace(half=True)
        monkeypatch.setattr("laser_kernels.run.choose", lambda *_: route)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x, info = lk.low_rank(a, rank, route="spectral", return_info=True)
    print(f"{case}: {info.route}, {info.status}, bound {info.excess_bound:.1e}")
    assert residual(a, x) <= residual_bound(a, rank, 1e-3)
    if info.route == "spectral":
        assert info.status == "ok"
    else:
        assert info.status == "escalated"
        assert any(issubclass(w.category, EscalationWarning) for w in caught)


def test_a_route_that_cannot_work_is_refused_before_it_starts():
    for rank in (3, 100):
        _, (row,) = attempt(gaussian(150, 100, 3).float()[None], rank)
        assert row["status"] == Status.NOT_CONVERGED and row["iterations"] == 0


def test_the_bound_holds_on_steep_random_spectra():
    """In float64, where no rounding hides what Q lacks."""
    generator = torch.Generator().manual_seed(3)
    worst, certified = 0.0, 0
    for case in range(60):
        n = (48, 64, 100)[case % 3]
        draw = torch.rand(n + 3, generator=generator, dtype=torch.float64)
        sigma = torch.logspace(0, -1 - 7 * draw[0].item(), n, dtype=torch.float64) * (1 + 0.1 * draw[3:])
        a = with_spectrum(n + 20, n, sigma.sort(descending=True).values, seed=case)
        rank = 9 + int((n - 12) * draw[1].item())
        _, (row,) = attempt(a[None], rank, 10 ** (-1 - 4 * draw[2].item()), wide=True, seed=case)
        if row["status"] != Status.OK or row["bound"] == 0:
            continue
        certified += 1
        tail = optimal_residual(a, rank)
        worst = max(worst, (row["unrounded"] / tail - 1 - 4 * eps(a.dtype) * norm(a) / tail) / row["bound"])
    print(f"{certified} certified, excess at most {worst:.2f} of the bound")
    assert certified >= 30 and worst <= 1


def test_given_cuts_nothing_is_bounded_and_the_projected_are_those_asked_for():
    a = llm_like(200, 160)[None]
    _, (row,) = at_cuts(a, 80, 72, cuts_of(a, 80, 72))
    assert row["bound"] == math.inf and row["projected"] == 72
