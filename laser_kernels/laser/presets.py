"""The interventions that LASER's paper found best, with its numbers: presets.yaml as objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from laser_kernels.laser.interventions import Intervention


class Published(NamedTuple):
    """Accuracy in per cent, and log-loss, as printed."""

    accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Preset:
    """One cell of the paper's table: the best intervention for a model on a data set, before and after.

    Attributes:
        intervention: [tau, l, rho] in LASER's vocabulary; `.plan()` goes to reduce_checkpoint or a model.
        layers, side: of the model: how many layers, and min(m, n) of its MLP matrices.
    """

    model: str
    dataset: str
    intervention: Intervention
    base: Published
    laser: Published
    questions: int
    layers: int
    side: int


@cache
def _table() -> Mapping[str, Any]:
    return yaml.safe_load(resources.files("laser_kernels.laser").joinpath("presets.yaml").read_text("utf-8"))


def models() -> tuple[str, ...]:
    """The models of the paper's table: roberta, gptj, llama2."""
    return tuple(_table()["models"])


def datasets() -> tuple[str, ...]:
    """The data sets of the paper's table."""
    return tuple(_table()["datasets"])


def preset(model: str, dataset: str) -> Preset:
    """What LASER's paper found best for `model` on `dataset`, chosen on its validation fifth.

    Raises:
        ValueError: an unknown name; it lists the known ones.

    References:
        arXiv 2312.13558, tables 1 and 3.
    """
    for name, known, what in ((model, models(), "model"), (dataset, datasets(), "dataset")):
        if name not in known:
            raise ValueError(f"[laser_kernels::preset] unknown {what} {name!r}: there are {', '.join(known)}")
    about, data = _table()["models"][model], _table()["datasets"][dataset]
    cell = data[model]
    return Preset(
        model,
        dataset,
        Intervention.keeping(cell["tau"], cell["layer"], cell["rho"]),
        Published(*cell["base"]),
        Published(*cell["laser"]),
        data["questions"],
        about["layers"],
        about["side"],
    )


def presets() -> tuple[Preset, ...]:
    """All 24 cells."""
    return tuple(preset(model, dataset) for dataset in datasets() for model in models())
