"""The search: finds what was planted, one factorization per matrix, nothing left behind."""

import inspect
import json
import warnings

import pytest
import torch
from laser_models import WORDS, Words, prompts, same_bits, state, tiny

import laser_kernels as lk
from laser_kernels.errors import CheckpointError
from laser_kernels.laser import Intervention, NextToken, Scores, Task, greedy, judge, search
from laser_kernels.laser.prefix import Prefix
from laser_kernels.laser.scores import evaluate
from laser_kernels.laser.sites import Sweep, sites_of, tied
from laser_kernels.testing import orthonormal

RHOS = (0.5, 0.25, 0.125)
PLANTED = "model.layers.2.mlp.up_proj.weight"


def labelled(model, count=40, seed=0):
    """The task that `model` solves perfectly: its own next tokens are the answers."""
    texts = prompts(count, seed)
    answers = []
    with torch.no_grad():
        for text in texts:
            answers.append(WORDS[model(input_ids=torch.tensor([Words()(text)["input_ids"]])).logits[0, -1].argmax()])
    half = count // 2
    return Task("planted", *(NextToken(Words(), texts[s], answers[s]) for s in (slice(half), slice(half, None))))


def plant(model, name, rank=4, signal=12.0, noise=10.0, seed=3):
    """A matrix of rank `rank`, and a function that adds noise outside its singular spaces, so that truncation removes it."""
    weight = model.get_parameter(name)
    m, n = weight.shape
    u, v = orthonormal(m, min(m, n), seed), orthonormal(n, min(m, n), seed + 1)
    sigma = torch.full((min(m, n),), noise).double()
    sigma[:rank] = 0
    clean = (u[:, :rank] * signal) @ v[:, :rank].mT
    with torch.no_grad():
        weight.copy_(clean)

    def add():
        with torch.no_grad():
            weight.copy_(clean + (u * sigma) @ v.mT)

    return add


@pytest.fixture(scope="module")
def noisy():
    """(model with noise in PLANTED, the task it solved before)."""
    model = tiny()
    add = plant(model, PLANTED)
    task = labelled(model)
    add()
    return model, task


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
    verdict = judge(model, task, best.edits, rhos=RHOS)
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


class Crossing(torch.nn.Module):
    """Layers of which the last reads what the first one gave: no chain."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x):
        first = self.layers[0](x)
        return self.layers[2](self.layers[1](first).relu()) + first


def regression(model):
    """A user's own evaluation, of a model that is no language model."""
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(6))
    y = model(x)
    return {"accuracy": (y > 0).float().mean().item(), "log_loss": y.square().mean().item()}


def test_a_model_whose_layers_are_no_chain_is_found_out_and_run_whole():
    model = Crossing()
    with pytest.warns(UserWarning, match=r"Crossing run from layer \d on"):
        found = search(model, [Task("mine", regression)], matrices=[r"re:layers"], rhos=[0.5])
    for trial in found.trials:
        layer = model.layers[trial.edits[0].lnum]
        original = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(lk.low_rank(original, 0.5))
            assert evaluate(regression, model).log_loss == pytest.approx(trial.log_loss, rel=1e-3)
            layer.weight.copy_(original)
    assert len({trial.log_loss for trial in found.trials}) == 3


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
    fused = sites_of(tiny("gpt2"), ["q_proj", "attn"], "0")
    assert [(site.lname, site.targets[0].name) for site in fused] == [
        ("q_proj", "transformer.h.0.attn.c_attn.weight"),
        ("out_proj", "transformer.h.0.attn.c_proj.weight"),
    ]
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
