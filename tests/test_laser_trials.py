"""A killed search goes on; another one is refused."""

import json

import pytest
import torch
from laser_models import RHOS, noisy

from laser_kernels.errors import CheckpointError
from laser_kernels.laser import Task, greedy, search
from laser_kernels.laser.scores import evaluate


@pytest.fixture(scope="module", name="noisy")
def _noisy():
    return noisy()


@pytest.mark.parametrize("method", [search, greedy])
def test_a_killed_search_goes_on_and_finds_the_same(noisy, tmp_path, method):
    model, task = noisy
    calls, journal = [], tmp_path / "trials.jsonl"

    def counted(model):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return evaluate(task.validation, model)

    def run(evaluation, **options):
        one = Task("planted", evaluation)
        return method(model, [one] if method is search else one, layers="2-3", rhos=RHOS, **options)

    whole = run(task.validation)
    with pytest.raises(KeyboardInterrupt):
        run(counted, journal=journal)
    with journal.open("a") as file:
        file.write('{"task": "planted", "edi')  # the line that a kill cut
    known = len(journal.read_text().splitlines()) - 2
    with pytest.raises(CheckpointError, match="resume"):
        run(counted, journal=journal)
    calls[:] = [1] * 100
    again = run(counted, journal=journal, resume=True)
    assert again.trials == whole.trials and again.best("planted") == whole.best("planted")
    assert 0 < known < len(whole.trials)
    calls[:] = [1] * 100
    assert run(counted, journal=journal, resume=True).trials == whole.trials
    assert len(calls) == 101  # the unchanged model alone
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) == 1 + len(whole.trials)


def test_another_search_is_not_resumed(noisy, tmp_path):
    model, task = noisy
    journal = tmp_path / "trials.jsonl"
    options = dict(matrices=["fc_up"], layers=2, rhos=RHOS, journal=journal)
    search(model, [task], **options)
    for changed, says in (({"tol": 1e-4}, "tol"), ({"seed": 1}, "seed"), ({"rhos": [0.9]}, "largest rho")):
        with pytest.raises(CheckpointError, match=f"other {says}"):
            search(model, [task], **{**options, **changed}, resume=True)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(0.5)
    with pytest.raises(CheckpointError, match="other tasks"):
        search(model, [task], **options, resume=True)
    with torch.no_grad():
        weight.copy_(original)
    assert (
        len(search(model, [task], **{**options, "layers": "2-3"}, resume=True).trials) == 6
    )  # more of the same is fine
