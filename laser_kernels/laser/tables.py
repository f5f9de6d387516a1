"""A search's results to read: lines of text, CSV, and the heat map of layer and rho."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from laser_kernels.laser.search import Findings
from laser_kernels.laser.statistics import Paired
from laser_kernels.laser.trials import Trial
from laser_kernels.laser.verdict import Verdict
from laser_kernels.packages import require

TOP = 5  # trials of a task that are printed


def summary(findings: Findings, task: str, top: int = TOP) -> str:
    """The base and the best trials of a task, on validation."""
    base = findings.base[task]
    width = max([len(trial.label) for trial in findings.of(task)[:top]] + [9])
    lines = [f"{task}, validation", f"  {'unchanged':<{width}}  {base.accuracy:>7.1%}  {base.log_loss:>8.3f}"]
    for trial in findings.of(task)[:top]:
        lines.append(f"  {trial.label:<{width}}  {trial.accuracy:>7.1%}  {trial.log_loss:>8.3f}")
    return "\n".join([*lines, *(f"  note: {note}" for note in findings.notes)])


def _interval(paired: Paired | None, form: str) -> str:
    if paired is None:
        return "no interval: the evaluation tells no single questions"
    return f"{paired.difference:{form}}, 95 % [{paired.low:{form}}, {paired.high:{form}}], p = {paired.p_value:.2g}"


def verdict_text(verdict: Verdict) -> str:
    """The test scores before and after, with paired intervals, gains and losses alike."""
    before, after, compared = verdict.before, verdict.after, verdict.comparison
    edits = " + ".join(map(str, verdict.edits))
    accuracy = _interval(compared.accuracy if compared else None, "+.1%")
    if compared and compared.accuracy:
        accuracy += f"; {compared.gained} gained, {compared.lost} lost of {compared.questions}"
    return (
        f"{verdict.task}, test: {edits}\n"
        f"  accuracy  {before.accuracy:>7.1%} -> {after.accuracy:>7.1%}   {accuracy}\n"
        f"  log-loss  {before.log_loss:>7.3f} -> {after.log_loss:>7.3f}   "
        f"{_interval(compared.log_loss if compared else None, '+.3f')}"
    )


def write_csv(findings: Findings, path: str | os.PathLike[str]) -> None:
    """Every trial, one row each; the unchanged model first, with no edit."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["task", "edits", "lname", "lnum", "rho", "accuracy", "log_loss"])
        for task, base in findings.base.items():
            table.writerow([task, 0, "", "", "", base.accuracy, base.log_loss])
        for trial in findings.trials:
            last = trial.edits[-1]
            row = [trial.task, len(trial.edits), last.lname, last.lnum, last.rho, trial.accuracy, trial.log_loss]
            table.writerow(row)


def file_name(task: str) -> str:
    """A task's name as a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", task).strip("-").lower()


def heat_map(findings: Findings, task: str, path: str | os.PathLike[str]) -> None:
    """Validation accuracy minus the unchanged model's in points: layer by rho, a panel per matrix, the pick framed.

    Raises:
        ImportError: matplotlib is missing; it names the extra that installs it.
    """
    require("matplotlib", "heat_map", "search")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    single = [trial for trial in findings.trials if trial.task == task]
    matrices = list(dict.fromkeys(trial.edits[-1].lname for trial in single))
    layers = sorted({trial.edits[-1].lnum for trial in single})
    rhos = sorted({trial.edits[-1].rho for trial in single})
    base, best = findings.base[task].accuracy, findings.best(task)
    values = {_cell(trial): 100 * (trial.accuracy - base) for trial in single}
    limit = max(1e-9, *map(abs, values.values()))
    figure = Figure(figsize=(2 + 0.55 * len(rhos) * len(matrices), 1.8 + 0.26 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    for panel, matrix in zip(panels, matrices, strict=True):
        grid = [[values.get((matrix, layer, rho), float("nan")) for rho in rhos] for layer in layers]
        image = panel.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        panel.set_xticks(range(len(rhos)), [f"{rho:g}" for rho in rhos], rotation=60)
        panel.set_yticks(range(len(layers)), layers)
        panel.set(title=matrix, xlabel="rho")
        if best is not None and best.edits[-1].lname == matrix:
            _, layer, rho = _cell(best)
            panel.plot(rhos.index(rho), layers.index(layer), "s", mfc="none", mec="black", ms=14, mew=2)
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="accuracy - unchanged, points")
    figure.suptitle(f"{task}, validation")
    figure.savefig(path, dpi=110)


def _cell(trial: Trial) -> tuple[str, int, float]:
    last = trial.edits[-1]
    return last.lname, last.lnum, last.rho


def write_all(findings: Findings, folder: str | os.PathLike[str], tasks: Sequence[str]) -> None:
    """trials.csv and a heat map per task."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    write_csv(findings, where / "trials.csv")
    for task in tasks:
        heat_map(findings, task, where / f"{file_name(task)}.png")
