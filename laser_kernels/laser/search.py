"""Which matrix, which layer, how much: LASER's search, exhaustive or greedy, one factorization per matrix for every rho."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from laser_kernels.laser.interventions import Intervention
from laser_kernels.laser.prefix import Prefix
from laser_kernels.laser.scores import Scores, evaluate
from laser_kernels.laser.sites import Site, Sweep, sites_of, tied
from laser_kernels.laser.tasks import Task, fingerprint
from laser_kernels.laser.trials import SAME, Trial, Trials
from laser_kernels.progress import Progress, silent

# The paper's grid (arXiv 2312.13558, table 5).
RHOS = (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01)


@dataclass(frozen=True)
class Findings:
    """What a search has found on the validation questions.

    Attributes:
        base: task -> scores of the unchanged model.
        trials: every intervention of this search, in the order of its trials.
        notes: what a reader should know (tied weights).
    """

    base: dict[str, Scores]
    trials: list[Trial]
    notes: list[str] = field(default_factory=list)

    def of(self, task: str) -> list[Trial]:
        """The trials of a task, best first: by accuracy, ties by log-loss, then in order."""
        return sorted((trial for trial in self.trials if trial.task == task), key=lambda trial: trial.order)

    def best(self, task: str) -> Trial | None:
        """The pick: the best trial, or None where none is better than the unchanged model."""
        found = self.of(task)
        return found[0] if found and found[0].order < self.base[task].order else None


class _Run:
    """One search: the model listens to Prefix, trials come from the file or are made."""

    def __init__(
        self, model: nn.Module, tasks: Sequence[Task], prefix: Prefix, trials: Trials, base: dict[str, Scores]
    ):
        self.model, self.tasks, self.prefix, self.trials, self.base = model, tasks, prefix, trials, base
        self._whole = False  # evaluate the whole model each time
        self._compared: tuple[str, int] | None = None

    def start_at(self, site: Site, now: Scores | Trial) -> None:
        """Only this site and later layers change from here on. `now`: the first task's scores of the model as it is, with
        which what is cached is compared before it is used."""
        if self._whole or not self.prefix.start_at([target.name for target in site.targets]):
            self.prefix.stop()
            return
        if self.prefix.place == self._compared:
            return
        self._compared = self.prefix.place
        evaluate(self.tasks[0].validation, self.model)  # remembers
        again = evaluate(self.tasks[0].validation, self.model)
        if abs(again.log_loss - now.log_loss) > SAME * (1 + abs(now.log_loss)) or again.accuracy != now.accuracy:
            warnings.warn(
                f"[laser_kernels::search] {type(self.model).__name__} run from layer {site.lnum} on gives log-loss "
                f"{again.log_loss:g}, the whole model {now.log_loss:g}: its layers are no simple chain, or the evaluation "
                "is random. Every evaluation now runs the whole model, which takes longer",
                stacklevel=3,
            )
            self._whole = True
            self.prefix.stop()

    def score(self, task: Task, edits: tuple[Intervention, ...], sweep: Sweep) -> Trial:
        """The trial of the edits, whose last one `sweep` makes and whose others are in the model."""
        known = self.trials.get(task.name, edits)
        if known is not None:
            return known
        sweep.to(edits[-1].rho)
        scores = evaluate(task.validation, self.model)
        trial = Trial(task.name, edits, scores.accuracy, scores.log_loss)
        self.trials.add(trial)
        return trial


@contextmanager
def _running(
    model: nn.Module,
    tasks: Sequence[Task],
    settings: dict[str, Any],
    journal: str | os.PathLike[str] | None,
    resume: bool,
) -> Iterator[_Run]:
    """The model in eval mode, its base scores, and the trials that are known; on leaving, the model as it was."""
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"[laser_kernels::search] tasks must have different names, and be at least one; got {names}")
    was_training = model.training
    model.eval()
    try:
        base = {task.name: evaluate(task.validation, model) for task in tasks}
        about = {
            task.name: {
                "questions": fingerprint(task.validation),
                "accuracy": base[task.name].accuracy,
                "log_loss": base[task.name].log_loss,
            }
            for task in tasks
        }
        trials = Trials(journal, {**settings, "tasks": about}, resume)
        try:
            prefix = Prefix(model)
            with torch.no_grad(), prefix.running():
                yield _Run(model, tasks, prefix, trials, base)
        finally:
            trials.close()
    finally:
        model.train(was_training)


def _rhos(rhos: Sequence[float]) -> list[float]:
    found = [Intervention.keeping("all", -1, rho).rho for rho in rhos]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"[laser_kernels::search] rhos must be different fractions in (0, 1]; got {list(rhos)}")
    return found


def search(
    model: nn.Module,
    tasks: Sequence[Task],
    *,
    matrices: str | Sequence[str] = ("mlp",),
    layers: object = None,
    rhos: Sequence[float] = RHOS,
    tol: float = 1e-3,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Findings:
    """Every (matrix, layer, rho) by itself, scored on the validation part of every task.

    Guarantees: one factorization per matrix, whatever the rhos and tasks; no copy of the model (one matrix on the host);
    afterwards, also after an exception, every parameter has its old bits. A search that is killed goes on with `resume` and
    finds the same. Not guaranteed: that the pick is better on questions it has not seen; judge tells.

    Layers below the edited one run once per input (prefix.Prefix), which is compared with the whole model first; where that
    does not hold it warns and runs the whole model each time.

    Args:
        model: of transformers, or any module whose parameters `re:` can name.
        tasks: each validation is scored for each intervention; tests are not touched.
        matrices: aliases, groups or re:REGEX; a group (mlp, attn, all) is searched matrix by matrix.
        layers: "9-29", a list, or None for all. rhos: fractions of the rank to keep; default: the paper's grid.
        tol, seed: as for factorize.
        journal: a file of JSON lines for the trials. resume: go on with the one that is there.
        progress: called with (evaluations done, in all, what).

    Raises:
        CheckpointError: a name or layer matches nothing, or `journal` belongs to another search.

    References:
        arXiv 2312.13558, section 3 and table 5. pratyushasharma/laser, src/intervention_llama2_bbh.py (which copies the
        model and repeats the decomposition for every rate).
    """
    sites, fractions, progress = sites_of(model, matrices, layers), _rhos(rhos), progress or silent
    found, done, total = [], 0, len(sites) * len(fractions) * len(tasks)
    settings = {"tol": tol, "seed": seed, "largest rho": max(fractions)}
    with _running(model, tasks, settings, journal, resume) as run:
        for site in sites:
            edits = [Intervention.keeping(site.lname, site.lnum, rho) for rho in fractions]
            if any(run.trials.get(task.name, (edit,)) is None for task in tasks for edit in edits):
                run.start_at(site, run.base[tasks[0].name])
            with Sweep(model, site, fractions, tol=tol, seed=seed) as sweep:
                for edit in edits:
                    for task in tasks:
                        found.append(run.score(task, (edit,), sweep))
                        done += 1
                        progress(done, total, str(edit))
    return Findings(run.base, found, tied(model, sites))


def greedy(
    model: nn.Module,
    task: Task,
    *,
    matrices: str | Sequence[str] = ("mlp",),
    layers: object = None,
    rhos: Sequence[float] = RHOS,
    tol: float = 1e-3,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Findings:
    """Interventions on top of each other: from the last layer down, the rho that helps validation most is kept, if one does.

    `best(task.name).edits` is the composition that was kept. Guarantees and arguments as for search.

    References:
        arXiv 2312.13558, section 5.1: greedy from the largest layer and the smallest rho.
    """
    sites, fractions, progress = sites_of(model, matrices, layers), sorted(_rhos(rhos)), progress or silent
    found, done, total = [], 0, len(sites) * len(fractions)
    settings = {"tol": tol, "seed": seed, "largest rho": max(fractions)}
    with _running(model, [task], settings, journal, resume) as run, ExitStack() as kept:
        edits: tuple[Intervention, ...] = ()
        best: Scores | Trial = run.base[task.name]
        for site in sorted(sites, key=lambda site: -site.lnum):
            tries = [(*edits, Intervention.keeping(site.lname, site.lnum, rho)) for rho in fractions]
            if any(run.trials.get(task.name, attempt) is None for attempt in tries):
                run.start_at(site, best)
            with ExitStack() as trying:
                sweep = trying.enter_context(Sweep(model, site, fractions, tol=tol, seed=seed))
                for attempt in tries:
                    trial = run.score(task, attempt, sweep)
                    if trial.order < best.order:
                        best, edits = trial, attempt
                    found.append(trial)
                    done += 1
                    progress(done, total, str(attempt[-1]))
                if edits in tries:
                    sweep.to(edits[-1].rho)
                    kept.push(trying.pop_all())
    return Findings(run.base, found, tied(model, sites))
