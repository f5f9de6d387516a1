"""Paired intervals against enumeration and simulation."""

import itertools
import math

import pytest
import torch

from laser_kernels.laser import Scores, compare
from laser_kernels.laser.statistics import accuracy_difference, log_loss_difference, mcnemar


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (2, 6), (4, 4), (9, 3)])
def test_mcnemar_is_the_share_of_sign_flips_at_least_as_uneven(gained, lost):
    seen = abs(gained - lost)
    flips = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=gained + lost)]
    assert mcnemar(gained, lost) == pytest.approx(sum(uneven >= seen for uneven in flips) / len(flips))


def test_accuracy_interval_covers_as_promised():
    """2000 experiments of 30 questions: 95 % - 1.5 % (three standard errors) of the intervals hold the truth, or more."""
    g = torch.Generator().manual_seed(1)
    for both, up, down in ((0.3, 0.25, 0.05), (0.9, 0.06, 0.01), (0.4, 0.1, 0.1)):
        draws = torch.multinomial(
            torch.tensor([both, up, down, 1 - both - up - down], device="cpu"), 2000 * 30, True, generator=g
        )
        held = 0
        for cells in draws.view(2000, 30):
            paired = accuracy_difference((cells == 0) | (cells == 2), (cells == 0) | (cells == 1))
            held += paired.low <= up - down <= paired.high
        assert held / 2000 > 0.935, (both, up, down, held)


def test_accuracy_counts_gains_and_losses():
    before, after = torch.tensor([1, 1, 0, 0, 0, 0, 1, 0]).bool(), torch.tensor([1, 0, 1, 1, 1, 0, 1, 0]).bool()
    found = compare(Scores.of(before, torch.ones(8)), Scores.of(after, torch.zeros(8)))
    assert (found.questions, found.gained, found.lost) == (8, 3, 1)
    assert found.accuracy.difference == pytest.approx(2 / 8) and found.accuracy.p_value == mcnemar(3, 1)
    assert found.accuracy.low < 0.25 < found.accuracy.high and not found.accuracy.significant
    assert found.log_loss.difference == found.log_loss.low == found.log_loss.high == -1 and found.log_loss.significant


def test_bootstrap_interval_agrees_with_all_resamples():
    change = torch.tensor([-1.5, -0.2, 0.1, -0.7, 0.4, -2.0], dtype=torch.float64)
    everything = torch.cartesian_prod(*[change] * 6).mean(1).sort().values  # 6^6 resamples
    low, high = everything.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    found = log_loss_difference(torch.zeros(6), change)
    spread = everything.std().item()
    # 10 000 draws: the quantile's standard error is sqrt(p q / N) / density, about 0.03 standard deviations here
    assert abs(found.low - low) < 0.1 * spread and abs(found.high - high) < 0.1 * spread
    assert found.difference == pytest.approx(change.mean().item())
    assert found.p_value == pytest.approx(2 * (everything >= 0).double().mean().item(), abs=0.02)
    assert log_loss_difference(torch.zeros(6), change) == found  # the same seed


def test_a_model_that_answers_nan_is_infinitely_worse():
    scores = Scores.of(torch.tensor([True]), torch.tensor([math.nan]))
    assert scores.log_loss == math.inf
    assert log_loss_difference(torch.tensor([1.0]), scores.losses).low == math.inf


def test_different_questions_cannot_be_compared():
    with pytest.raises(ValueError, match="same questions"):
        accuracy_difference(torch.ones(3).bool(), torch.ones(4).bool())
    assert compare(Scores(0.5, 1.0), Scores(0.6, 0.9)) is None
