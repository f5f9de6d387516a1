"""How well a model does: what every evaluation gives back, and which of two results is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation.

    Attributes:
        accuracy: share of right answers, in [0, 1].
        log_loss: mean of -log p(right answer), in nats; exp of it is the perplexity. NaN counts as infinitely bad.
        right, losses: the same per question, (n,) bool and float64, where the evaluation tells: paired intervals need them.
    """

    accuracy: float
    log_loss: float
    right: Tensor | None = None
    losses: Tensor | None = None

    @staticmethod
    def of(right: Tensor, losses: Tensor) -> Scores:
        """Means over the questions."""
        losses = losses.double().cpu().nan_to_num(nan=math.inf)
        right = right.bool().cpu()
        return Scores(right.double().mean().item(), losses.mean().item(), right, losses)

    @property
    def order(self) -> tuple[float, float]:
        """Sorts results, best first: by accuracy, ties by log-loss, as LASER's search does."""
        return (-self.accuracy, self.log_loss)


Evaluate = Callable[[Any], "Scores | Mapping[str, Any]"]


def evaluate(function: Evaluate, model: Any) -> Scores:
    """`function(model)` as Scores: it may give Scores, or a mapping with accuracy and log_loss.

    Raises:
        ValueError: it gives anything else.
    """
    with torch.no_grad():
        found = function(model)
    if isinstance(found, Scores):
        return found
    if not isinstance(found, Mapping) or not {"accuracy", "log_loss"} <= set(found):
        raise ValueError(
            "[laser_kernels::search] an evaluation must return Scores or a mapping with accuracy and log_loss; "
            f"got {found!r:.80}"
        )
    if found.get("right") is not None and found.get("losses") is not None:
        return Scores.of(torch.as_tensor(found["right"]), torch.as_tensor(found["losses"]))
    accuracy, log_loss = float(found["accuracy"]), float(found["log_loss"])
    return Scores(0.0 if math.isnan(accuracy) else accuracy, math.inf if math.isnan(log_loss) else log_loss)
