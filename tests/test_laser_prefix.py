"""Evaluations that begin at the edited layer give what the whole model gives."""

import inspect

import pytest
import torch
from laser_models import (
    PLANTED,
    RHOS,
    Crossing,
    labelled,
    noisy,
    regression,
    tiny,
)

import laser_kernels as lk
from laser_kernels.laser import Task, search
from laser_kernels.laser.prefix import Prefix
from laser_kernels.laser.scores import evaluate
from laser_kernels.laser.sites import Sweep, sites_of


@pytest.fixture(scope="module", name="noisy")
def _noisy():
    return noisy()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
def test_cached_evaluation_is_bitwise_the_full_one(kind):
    model = tiny(kind, seed=1)
    task = labelled(model, 16)
    sites = sites_of(model, ["fc_in"])
    assert [site.lnum for site in sites] == [0, 1, 2, 3]
    with torch.no_grad(), Prefix(model).running() as prefix:
        for site in [*sites, sites[1]]:  # deeper and deeper, then back
            with Sweep(model, site, [0.25]) as sweep:
                sweep.to(0.25)
                assert prefix.start_at([site.targets[0].name])
                cached = [evaluate(task.validation, model) for _ in range(2)]
                prefix.stop()
                whole = evaluate(task.validation, model)
                for one in cached:
                    assert torch.equal(one.losses, whole.losses)
                prefix.start_at([site.targets[0].name])
    assert not any("forward" in layer.__dict__ for layer in model.modules())


def test_prefix_forgets_what_does_not_fit_and_what_it_cannot_compare(noisy):
    model, task = noisy
    whole = evaluate(task.validation, model)
    with torch.no_grad(), Prefix(model, limit=0).running() as prefix:
        prefix.start_at([PLANTED])
        assert torch.equal(evaluate(task.validation, model).losses, whole.losses) and not prefix._held
    with torch.no_grad(), Prefix(model).running() as prefix:
        prefix.start_at([PLANTED])
        model(input_ids=torch.tensor([[1, 2]]), labels=None, use_cache=True)
        assert len(prefix._held) == 1
        from transformers import DynamicCache

        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        model(input_ids=torch.tensor([[1, 2]]), **{name: DynamicCache(config=model.config)})
        assert len(prefix._held) == 1
        assert not prefix.start_at(["model.embed_tokens.weight"])
        assert not prefix.start_at(["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])


def test_lower_layers_run_once_per_input(noisy):
    model, task = noisy
    runs = {layer: 0 for layer in range(4)}

    def count(layer):
        return lambda *_: runs.__setitem__(layer, runs[layer] + 1)

    handles = [model.model.layers[n].mlp.register_forward_hook(count(n)) for n in runs]
    search(model, [task], matrices=["fc_in", "fc_out"], layers="3", rhos=RHOS)
    for handle in handles:
        handle.remove()
    batches = 2  # prompts of two lengths
    assert runs[0] == runs[1] == runs[2] == 2 * batches  # for the unchanged model, and once to remember
    assert runs[3] == (1 + 2 + 2 * len(RHOS)) * batches  # ..., compared, and the trials


def test_a_model_whose_layers_are_no_chain_is_found_out_and_run_whole():
    model = Crossing()
    with pytest.warns(UserWarning, match=r"Crossing run from layer 2 on") as warned:
        found = search(model, [Task("mine", regression)], matrices=[r"re:layers"], rhos=[0.5])
    assert len(warned) == 1
    for trial in found.trials:
        layer = model.layers[trial.edits[0].lnum]
        original = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(lk.low_rank(original, 0.5))
            assert evaluate(regression, model).log_loss == pytest.approx(trial.log_loss, rel=1e-3)
            layer.weight.copy_(original)
    assert len({trial.log_loss for trial in found.trials}) == 4
