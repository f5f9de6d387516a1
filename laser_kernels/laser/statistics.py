"""Is a difference on the same questions more than chance? Paired intervals for accuracy and log-loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from laser_kernels.laser.scores import Scores

CONFIDENCE = 0.95
# Ten times the rule of thumb for percentile intervals (Efron, Tibshirani 1993, chapter 19): takes 10 ms for 100 questions.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """after - before on the same n questions, with a confidence interval; p_value: that there is no difference."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions. gained: wrong before, right after; lost: the reverse. None: not told by question."""

    questions: int
    gained: int
    lost: int
    accuracy: Paired | None
    log_loss: Paired | None


def _checked(before: Tensor, after: Tensor) -> None:
    if before.dim() != 1 or before.shape != after.shape or not len(before):
        raise ValueError(
            "[laser_kernels::compare] before and after must be one value per question, for the same questions; got "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test: gained ~ Binomial(gained + lost, 1/2) where nothing has changed.

    References:
        McNemar (1947), Psychometrika 12. Fagerland, Lydersen, Laake (2013), BMC Medical Research Methodology 13:91, 2.2.
    """
    total, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total)


def accuracy_difference(before: Tensor, after: Tensor, confidence: float = CONFIDENCE) -> Paired:
    """The change of the share of right answers; before, after: (n,) bool.

    The interval is Wald's with half a success added to each of the four cells (so one to each kind of change among n + 2):
    about the asked coverage from n = 25 on; the plain Wald interval has less.

    References:
        Bonett, Price (2012), Journal of Educational and Behavioral Statistics 37, 479-488.
        Fagerland, Lydersen, Laake (2014), Statistics in Medicine 33, 2850-2875: recommended.
    """
    _checked(before, after)
    n = len(before)
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Paired(
        (gained - lost) / n,
        max(-1.0, up - down - half),
        min(1.0, up - down + half),
        mcnemar(gained, lost),
    )


def log_loss_difference(
    before: Tensor,
    after: Tensor,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """The change of the mean loss; before, after: (n,) finite. Same seed, same interval.

    The interval is the percentile bootstrap over questions; p_value twice the share of resampled differences on the other
    side of 0, with the observed one counted, so that it is never 0.

    References:
        Efron, Tibshirani: An Introduction to the Bootstrap (1993), chapter 13.
        Davison, Hinkley: Bootstrap Methods and their Application (1997), section 4.2: the count's 1.
    """
    _checked(before, after)
    change = after.double().cpu() - before.double().cpu()
    if not change.isfinite().all():  # a model that answers NaN: infinitely worse
        return Paired(math.inf, math.inf, math.inf, 0.0)
    n = len(change)
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = max(1, 2**22 // n)  # 32 MB of indices at a time
    means = []
    for start in range(0, resamples, rows):
        picks = torch.randint(n, (min(rows, resamples - start), n), generator=generator, device="cpu")
        means.append(change[picks].mean(1))
    found = torch.cat(means).sort().values
    cut = (1 - confidence) / 2
    low, high = found.quantile(torch.tensor([cut, 1 - cut], dtype=torch.float64, device="cpu")).tolist()
    other_side = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Paired(change.mean().item(), low, high, min(1.0, 2 * (1 + other_side) / (1 + resamples)))


def compare(before: Scores, after: Scores, confidence: float = CONFIDENCE) -> Comparison | None:
    """The paired comparison, of what both evaluations tell per question; None where that is nothing."""
    accuracy = log_loss = None
    questions = gained = lost = 0
    if before.losses is not None and after.losses is not None:
        questions = len(before.losses)
        log_loss = log_loss_difference(before.losses, after.losses, confidence)
    if before.right is not None and after.right is not None:
        questions = len(before.right)
        gained, lost = int((~before.right & after.right).sum()), int((before.right & ~after.right).sum())
        accuracy = accuracy_difference(before.right, after.right, confidence)
    return Comparison(questions, gained, lost, accuracy, log_loss) if questions else None
