"""PEFT, unmodified, inside patch("peft"): what its own code makes of our factors, against the optimum and against itself."""

import contextlib

import pytest
import torch
from torch import nn

from laser_kernels import testing
from laser_kernels.compat import patch

peft = pytest.importorskip("peft", reason="PEFT comes with make test-tools")
models = pytest.importorskip("tool_models", reason="transformers comes with make test-tools")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # theirs

RANK = 8
TOL = 1e-3


def lora(**config):
    """name of each adapted layer -> (its weight before, what the adapter adds)."""
    model = models.tiny_llama()
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, **config))
    layers = {n: m for n, m in adapted.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    return adapted, {n: (before[n + ".weight"], m.get_delta_weight("default").detach()) for n, m in layers.items()}


def pissa(init):
    def run():
        return lora(init_lora_weights=init, target_modules=["q_proj", "k_proj", "down_proj"])[1]

    return run


def converted(config):
    """convert_to_lora of another kind of adapter: (its delta, B A)."""

    def run():
        torch.manual_seed(1)
        model = peft.get_peft_model(models.tiny_llama(), config)
        lora_config, state = peft.convert_to_lora(model, rank=RANK)
        pairs = {}
        for name, module in model.named_modules():
            if name + ".lora_A.weight" in state:
                args = [module.get_base_layer().weight.data.clone()] if config.peft_type == "MISS" else []
                delta = module.get_delta_weight("default", *args).detach()
                pairs[name] = (delta, state[name + ".lora_B.weight"] @ state[name + ".lora_A.weight"])
        assert lora_config.r == RANK
        return pairs

    return run


def merged_by_svd(**options):
    """add_weighted_adapter of two LoRAs of rank 2 RANK: (their weighted sum, what the new adapter adds)."""

    def run():
        torch.manual_seed(2)
        config = peft.LoraConfig(r=2 * RANK, target_modules=["up_proj"], init_lora_weights=False)
        model = peft.get_peft_model(models.tiny_llama(), config, adapter_name="one")
        model.add_adapter("two", config)
        model.add_weighted_adapter(["one", "two"], [0.7, 0.3], "both", combination_type="svd", svd_rank=RANK, **options)
        layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
        return {
            n: (
                (0.7 * m.get_delta_weight("one") + 0.3 * m.get_delta_weight("two")).detach(),
                m.get_delta_weight("both").detach(),
            )
            for n, m in layers.items()
        }

    return run


def psoft(how):
    def run():
        config = peft.PsoftConfig(r=RANK, psoft_svd=how, target_modules=["o_proj"])
        model = peft.get_peft_model(models.tiny_llama(), config)
        layer = next(m for m in model.modules() if hasattr(m, "_compute_svd_factors"))
        weight = layer.get_base_layer().weight.detach()
        u, s, vh = layer._compute_svd_factors(weight, RANK, svd_mode=how, niter=4)
        return {"o_proj": (weight, (u * s) @ vh)}

    return run


def tinylora():
    config = peft.TinyLoraConfig(r=RANK, target_modules=["gate_proj", "embed_tokens"])
    model = peft.get_peft_model(models.tiny_llama(), config)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "tinylora_A") and len(m.tinylora_A)}
    return {
        n: (m.get_base_layer().weight.detach(), m.tinylora_B["default"] @ m.tinylora_A["default"])
        for n, m in layers.items()
    }


def loftq():
    from peft.utils import loftq_utils

    weight = testing.llm_like(160, 96)
    parts = loftq_utils._low_rank_decomposition(weight, reduced_rank=RANK)
    return {"weight": (weight, parts["L"] @ parts["R"])}


SITES = {
    "pissa": pissa("pissa"),
    "pissa_niter_4": pissa("pissa_niter_4"),
    "pissa_niter_16": pissa("pissa_niter_16"),
    "convert loha": converted(peft.LoHaConfig(r=RANK, target_modules=["q_proj"], init_weights=False)),
    "convert miss bat": converted(peft.MissConfig(r=16, target_modules=["q_proj"], init_weights="bat")),
    "merge svd": merged_by_svd(),
    "merge svd thin": merged_by_svd(svd_full_matrices=False),
    "psoft full": psoft("full"),
    "psoft lowrank": psoft("lowrank"),
    "tinylora": tinylora,
    "loftq": loftq,
}


@pytest.mark.parametrize("site", SITES)
def test_patched_tool_is_as_close_to_the_optimum_as_the_tool(site, backend_calls):
    theirs = SITES[site]()
    assert backend_calls == []
    with patch("peft", tol=TOL):
        ours = SITES[site]()
    assert len(backend_calls) >= len(ours) > 0 and ours.keys() == theirs.keys()
    for name, (target, approximation) in ours.items():
        assert torch.equal(target, theirs[name][0])
        left = testing.residual(target, approximation)
        assert left <= testing.residual_bound(target, RANK, TOL)
        assert left <= (1 + TOL) * testing.residual(*theirs[name]) + testing.FLOOR * testing.eps(torch.float32) * (
            testing.norm(target)
        )


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4"])
def test_pissa_leaves_the_model_as_it_was(init):
    tokens = torch.randint(64, (2, 12))
    expected = models.tiny_llama()(tokens).logits
    with patch("peft"):
        adapted, _ = lora(init_lora_weights=init, target_modules="all-linear")
    torch.testing.assert_close(adapted.eval()(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_sites_that_need_every_triple_keep_the_full_svd(backend_calls):
    with patch("peft"):
        config = peft.LoHaConfig(r=RANK, target_modules=["q_proj"], init_weights=False)
        peft.convert_to_lora(peft.get_peft_model(models.tiny_llama(), config), rank=0.9)  # a threshold on the energy
        assert torch.linalg.svd(torch.eye(5)).S.shape == (5,)
        with pytest.raises(ValueError, match="larger than the weight shape"):
            peft.convert_to_lora(peft.get_peft_model(models.tiny_llama(), config), rank=97)
    assert backend_calls == []


def test_every_known_site_is_there():
    from laser_kernels.compat.peft import SITES as known

    with patch("sklearn"), patch("mergekit"), patch("torch"), patch("peft") as names:  # they share seams
        assert {f"{s.module}.{s.name}" for s in known} <= set(names)


@pytest.mark.parametrize(("init", "tol"), [("pissa", TOL), ("pissa_niter_4", TOL), ("pissa_niter_16", TOL / 10)])
def test_large_matrix(compare, init, tol):
    weight = testing.llm_like(2048, 2048)

    def initialise(tool=None):
        layer = nn.Sequential(nn.utils.skip_init(nn.Linear, 2048, 2048, bias=False))
        layer[0].weight.data = weight.clone()
        config = peft.LoraConfig(r=64, target_modules=["0"], init_lora_weights=init)
        with patch(tool) if tool else contextlib.nullcontext():
            adapted = peft.get_peft_model(layer, config)
        return weight - adapted.base_model.model[0].base_layer.weight.data

    compare(f"{init}, 2048x2048, r=64", weight, 64, initialise, lambda: initialise("peft"), tol)
