"""LASER as published (arXiv 2312.13558): interventions, the paper's presets, the search for one, and a verdict on it."""

from laser_kernels.laser.facts import country_tasks
from laser_kernels.laser.interventions import Intervention, compat_plan, compose, interventions_of
from laser_kernels.laser.presets import Preset, preset, presets
from laser_kernels.laser.scores import Scores
from laser_kernels.laser.search import RHOS, Findings, greedy, search
from laser_kernels.laser.statistics import Comparison, Paired, compare
from laser_kernels.laser.tables import heat_map, summary, verdict_text, write_csv
from laser_kernels.laser.tasks import Choice, NextToken, Task, Text
from laser_kernels.laser.trials import Trial
from laser_kernels.laser.verdict import Verdict, applied, judge

__all__ = [
    "RHOS",
    "Choice",
    "Comparison",
    "Findings",
    "Intervention",
    "NextToken",
    "Paired",
    "Preset",
    "Scores",
    "Task",
    "Text",
    "Trial",
    "Verdict",
    "applied",
    "compare",
    "compat_plan",
    "compose",
    "country_tasks",
    "greedy",
    "heat_map",
    "interventions_of",
    "judge",
    "preset",
    "presets",
    "search",
    "summary",
    "verdict_text",
    "write_csv",
]
