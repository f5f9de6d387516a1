"""The look at the test questions, once a pick is made: unchanged and reduced model, and whether the difference is chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from laser_kernels.laser.interventions import Intervention
from laser_kernels.laser.scores import Scores, evaluate
from laser_kernels.laser.search import RHOS
from laser_kernels.laser.sites import Sweep, sites_of
from laser_kernels.laser.statistics import Comparison, compare
from laser_kernels.laser.tasks import Task


@dataclass(frozen=True)
class Verdict:
    """A task's test scores with and without the interventions. comparison: None where the evaluation tells means only."""

    task: str
    edits: tuple[Intervention, ...]
    before: Scores
    after: Scores
    comparison: Comparison | None


@contextmanager
def applied(
    model: nn.Module,
    edits: Sequence[Intervention],
    *,
    rhos: Sequence[float] = RHOS,
    tol: float = 1e-3,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """The model with the interventions in it, made as the search makes them; on leaving, its old bits.

    Args:
        rhos: of the search, so that factors, and so results, have the same bits as there.
    """
    with torch.no_grad(), ExitStack() as stack:
        for edit in sorted(edits, key=lambda edit: -edit.rho):  # a matrix named twice ends at the smaller rank
            for site in sites_of(model, [edit.lname], None if edit.lnum < 0 else edit.lnum):
                sweep = stack.enter_context(Sweep(model, site, [*rhos, edit.rho], tol=tol, seed=seed))
                sweep.to(edit.rho)
        yield model


def judge(
    model: nn.Module,
    task: Task,
    edits: Sequence[Intervention],
    *,
    rhos: Sequence[float] = RHOS,
    tol: float = 1e-3,
    seed: int = 0,
) -> Verdict:
    """The task's test questions, before and after, on the same questions.

    Raises:
        ValueError: the task has no test.
    """
    if task.test is None:
        raise ValueError(f"[laser_kernels::judge] task {task.name!r} has no test: give Task(name, validation, test)")
    was_training = model.training
    model.eval()
    try:
        before = evaluate(task.test, model)
        with applied(model, edits, rhos=rhos, tol=tol, seed=seed):
            after = evaluate(task.test, model)
    finally:
        model.train(was_training)
    return Verdict(task.name, tuple(edits), before, after, compare(before, after))
