"""The search: finds what was planted, one factorization per matrix, nothing left behind."""

import warnings

import pytest
import torch
from laser_models import PLANTED, RHOS, Crossing, labelled, noisy, plant, regression, same_bits, state, tiny

import laser_kernels as lk
from laser_kernels.errors import CheckpointError
from laser_kernels.laser import Intervention, Scores, Task, greedy, judge, search
from laser_kernels.laser.scores import evaluate
from laser_kernels.laser.sites import Sweep, sites_of, tied
from laser_kernels.testing import gaussian, residual, residual_bound


@pytest.fixture(scope="module", name="noisy")
def _noisy():
    return noisy()


def test_search_finds_the_planted_matrix_layer_and_rank(noisy, monkeypatch):
    model, task = noisy
    before, factorized = state(model), []
    monkeypatch.setattr(lk, "factorize", lambda *a, f=lk.factorize, **k: factorized.append(1) or f(*a, **k))
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", lambda *_: pytest.fail("the model was copied"), raising=False)
    found = search(model, [task], rhos=RHOS)
    best = found.best(task.name)
    assert best.edits == (Intervention.keeping("fc_up", 2, 0.125),)
    assert best.accuracy == 1.0 > found.base[task.name].accuracy
    assert len(factorized) == 12 and len(found.trials) == 12 * len(RHOS)
    assert same_bits(model, before)
    model.train()
    verdict = judge(model, task, best.edits, rhos=RHOS)
    assert model.training
    model.eval()
    assert verdict.after.accuracy == 1.0 > verdict.before.accuracy
    assert verdict.comparison.gained > 0 == verdict.comparison.lost
    assert same_bits(model, before)


def test_a_trial_is_what_low_rank_gives(noisy):
    model, task = noisy
    found = search(model, [task], matrices=["fc_in"], layers=1, rhos=RHOS)
    weight = model.get_parameter("model.layers.1.mlp.gate_proj.weight")
    original = weight.detach().clone()
    for trial in found.trials:
        with torch.no_grad():
            weight.copy_(lk.low_rank(original, trial.edits[0].rho, tol=1e-6))
        assert evaluate(task.validation, model).log_loss == pytest.approx(trial.log_loss, rel=1e-3)
        with torch.no_grad():
            weight.copy_(original)


def test_an_unmapped_model_needs_regular_expressions():
    with pytest.raises(CheckpointError, match=r"no known architecture.*re:REGEX"):
        search(Crossing(), [Task("mine", regression)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_bits_and_mode_are_restored_after_an_exception(noisy, error):
    model, task = noisy
    before, calls = state(model), []

    def failing(model):
        calls.append(1)
        if len(calls) == 8:
            raise error
        return evaluate(task.validation, model)

    model.train()
    with pytest.raises(error):
        search(model, [Task("failing", failing)], layers="2-3", rhos=RHOS)
    assert same_bits(model, before) and model.training
    assert not any("forward" in layer.__dict__ for layer in model.modules()) and not model._forward_pre_hooks
    model.eval()


def test_greedy_composes_two_planted_repairs():
    model = tiny(seed=2)
    adds = [plant(model, name, seed=seed) for seed, name in ((3, PLANTED), (5, "model.layers.1.mlp.down_proj.weight"))]
    task = labelled(model)
    for add in adds:
        add()
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is cached agrees with the whole model, kept edits included
        found = greedy(model, task, matrices=["fc_up", "fc_out"], layers="1-2", rhos=RHOS)
    best = found.best(task.name)
    assert {(one.lname, one.lnum) for one in best.edits} >= {("fc_up", 2), ("fc_out", 1)}
    single = search(model, [task], matrices=["fc_up", "fc_out"], layers="1-2", rhos=RHOS).best(task.name)
    assert best.accuracy > single.accuracy > found.base[task.name].accuracy
    assert same_bits(model, before)
    verdict = judge(model, task, best.edits, rhos=RHOS)
    assert verdict.after.accuracy > verdict.before.accuracy and same_bits(model, before)


def test_ties_go_to_the_smaller_loss_and_nothing_better_is_no_pick():
    model, losses = Crossing(), iter([1.0, 1.0, 1.0, 3.0, 2.0, 9.0, 9.0, 4.0, 5.0, 6.0])

    def constant(model):
        return Scores(0.5, next(losses))

    layers = ["re:layers.2"]
    found = search(model, [Task("ties", constant)], matrices=layers, rhos=[0.5, 0.25])
    assert found.best("ties") is None and [t.log_loss for t in found.of("ties")] == [2.0, 3.0]
    with pytest.warns(UserWarning, match="evaluation is random"):
        found = search(model, [Task("ties", constant)], matrices=layers, rhos=[0.5, 0.25])
    assert found.best("ties").log_loss == 5.0


def test_groups_are_searched_matrix_by_matrix_and_fused_or_tied_tensors_once():
    assert [str(site) for site in sites_of(tiny(), ["mlp", "fc_in"], "1")] == [
        "fc_in of layer 1",
        "fc_up of layer 1",
        "fc_out of layer 1",
    ]
    assert sites_of(tiny(), "mlp,fc_in", "1") == sites_of(tiny(), ["mlp", "fc_in"], "1")
    fused = sites_of(tiny("gpt2"), ["q_proj", "attn"], "0")
    assert [(site.lname, site.targets[0].name) for site in fused] == [
        ("q_proj", "transformer.h.0.attn.c_attn.weight"),
        ("out_proj", "transformer.h.0.attn.c_proj.weight"),
    ]
    assert all(len(site.targets) == 1 for site in [*sites_of(tiny(), ["mlp", "fc_in"]), *fused])
    model = tiny("gpt2")
    (site,) = sites_of(model, ["re:wte"])
    assert site.lnum == -1 and tied(model, [site]) == [
        "transformer.wte.weight is tied to lm_head.weight: it is reduced once, for both"
    ]


def test_arguments_that_make_no_sense():
    model, task = Crossing(), Task("mine", regression)
    with pytest.raises(ValueError, match="different names"):
        search(model, [task, task], matrices=["re:layers"])
    with pytest.raises(ValueError, match="rhos must be different"):
        search(model, [task], matrices=["re:layers"], rhos=[])
    with pytest.raises(ValueError, match="has no test"):
        judge(model, task, [Intervention("re:layers.0", -1, 5)])
    with torch.no_grad():
        model.layers[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.weight.*NaN"):
        search(model, [task], matrices=["re:layers"], layers=1)


class Experts(torch.nn.Module):
    """Three matrices in one parameter, as fused experts are."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Parameter(gaussian(36, 8, 1).float().view(3, 12, 8))


def test_each_expert_of_a_fused_parameter_is_reduced_by_itself():
    model = Experts()
    original = model.experts.detach().clone()
    (site,) = sites_of(model, ["re:experts"])
    with Sweep(model, site, [0.5, 0.25]) as sweep:
        for rho, rank in ((0.25, 2), (0.5, 4)):
            sweep.to(rho)
            assert torch.linalg.matrix_rank(model.experts.detach(), rtol=1e-4).tolist() == [rank] * 3
            for got, weight in zip(model.experts.detach(), original, strict=True):
                assert residual(weight, got) <= residual_bound(weight, rank, 1e-3)
    assert torch.equal(model.experts, original)
