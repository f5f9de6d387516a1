"""LowRankLinear and factorize_model_: the layer computes what its product does, and a model with it still works."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import laser_kernels as lk
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.factors import factor
from laser_kernels.testing import FAMILIES, eps, gaussian, llm_like, optimal_residual, residual, residual_bound

PLAN = {"rules": [{"targets": ["mlp", "q_proj"], "layers": "1-2", "rank": 0.25}]}
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MAKERS = {
    "linear": lambda: nn.Linear(30, 50),
    "no_bias": lambda: nn.Linear(50, 30, bias=False),
    "conv1d": lambda: Conv1D(50, 30),
}


def layer(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    made = MAKERS[kind]()
    with torch.no_grad():
        made.weight.copy_(llm_like(*made.weight.shape))
        if made.bias is not None:
            made.bias.copy_(gaussian(1, len(made.bias), 3)[0])
    return made.to(dtype)


def rounding_bound(low: lk.LowRankLinear, x: torch.Tensor) -> torch.Tensor:
    """How far (x A^T) B^T + b and x fl(B A)^T + b, both computed in one dtype, may lie apart, entry by entry.

    One rounding each of x A^T, of fl(B A) and of both results, and sums of length at most in + r in float32 or better:
    |x| |A|^T |B|^T (2 u + (in + r) eps) + 2 u (|y| + what was said).
    """
    a, b, bias = low.A.double().abs(), low.B.double().abs(), 0.0 if low.bias is None else low.bias.double().abs()
    size = x.double().abs() @ (b @ a if low.transposed else (b @ a).mT)
    u = ROUNDOFF[x.dtype]
    return (4 * u + 2 * (sum(low.A.shape) + 1) * eps(x.dtype)) * (size + bias) * (1 + 8 * u)


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("kind", MAKERS)
def test_it_computes_what_its_product_does(kind, dtype):
    module = layer(kind, dtype)
    low = lk.LowRankLinear.from_linear(module, 4)
    x = gaussian(7, low.in_features, 5).to(dtype).view(7, 1, -1)
    dense = low.dense()
    got, want = low(x), dense(x)
    assert type(dense) is type(module) and got.dtype == dtype and got.shape == want.shape == module(x).shape
    assert torch.equal(dense.weight, low.weight) and dense.bias is low.bias is module.bias
    assert ((got.double() - want.double()).abs() <= rounding_bound(low, x)).all()


@pytest.mark.parametrize("kind", MAKERS)
def test_the_product_is_the_optimal_approximation(kind):
    module = layer(kind)
    low = lk.LowRankLinear.from_linear(module, 4, tol=1e-4, seed=2, key=9)
    exact = low.B.double() @ low.A.double()
    assert residual(module.weight, exact) <= residual_bound(module.weight, 4, 1e-4)
    assert low.rank == 4 and low.B.shape[1] == low.A.shape[0] == 4
    balance = low.B.double().norm(dim=0) / low.A.double().norm(dim=1)
    torch.testing.assert_close(balance, torch.ones_like(balance), rtol=1e-5, atol=0)  # sqrt(S) on both sides


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("family", ["spiked", "gaussian", "exact_rank", "one_huge", "zero", "power_law"])
def test_factors_are_rounded_once_and_measured(family, dtype):
    weight = (FAMILIES[family](40, 60, 5) / 100).to(dtype)  # float16 ends at 65504
    b, a, (info,) = factor(weight[None], 5, tol=1e-3, seed=0, key=[0])
    assert b.dtype == a.dtype == dtype and b.shape == (1, 40, 5) and a.shape == (1, 5, 60)
    product, u = b[0].double() @ a[0].double(), ROUNDOFF[dtype]
    found = residual(weight, product)
    floor = 64 * eps(dtype) * weight.double().norm().item()
    assert info.residual == pytest.approx(found, rel=1e-4, abs=floor)
    moved = (2 * u + u * u) * (b[0].double().abs() @ a[0].double().abs()).norm().item() / (1 - u) ** 2
    assert found <= residual_bound(weight, 5, 1e-3) + moved
    unrounded = info.residual - info.rounding
    assert optimal_residual(weight, 5) * (1 - 1e-6) - floor <= unrounded <= residual_bound(weight, 5, 1e-3)


def test_state_dict_repr_devices_and_dtypes():
    low = lk.LowRankLinear.from_linear(layer("linear"), 4)
    assert list(low.state_dict()) == ["B", "A", "bias"]
    assert repr(low) == "LowRankLinear(in_features=30, out_features=50, rank=4, bias=True)"
    assert sum(p.numel() for p in low.parameters()) == 4 * (30 + 50) + 50
    other = lk.LowRankLinear(30, 50, 4)
    other.load_state_dict(low.state_dict())
    x = gaussian(3, 30, 1).float()
    assert torch.equal(other(x), low(x)) and torch.equal(copy.deepcopy(low)(x), low(x))
    assert low.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert low.to("meta").A.device.type == low.weight.device.type == "meta"
    conv = lk.LowRankLinear.from_linear(layer("conv1d"), 4)
    assert "transposed=True" in repr(conv) and conv.B.shape == (30, 4) and conv.A.shape == (4, 50)


def test_gradients_reach_both_factors():
    low = lk.LowRankLinear.from_linear(layer("linear", torch.float64), 3)
    x, g = gaussian(6, 30, 1), gaussian(6, 50, 2)
    low(x).backward(g)
    of_weight = g.mT @ x  # of y = x W^T; W = B A
    torch.testing.assert_close(low.B.grad, of_weight @ low.A.detach().mT)
    torch.testing.assert_close(low.A.grad, low.B.detach().mT @ of_weight)


def test_a_frozen_weight_leaves_the_bias_as_it_is():
    module = layer("linear")
    module.weight.requires_grad_(False)
    low = lk.LowRankLinear.from_linear(module, 3)
    assert not low.A.requires_grad and not low.B.requires_grad and low.bias.requires_grad


@pytest.mark.parametrize("transposed", [False, True])
def test_from_factors(transposed):
    b, a, bias = gaussian(20, 3, 1), gaussian(3, 10, 2), gaussian(1, 10 if transposed else 20, 3)[0]
    low = lk.LowRankLinear.from_factors(b, a, bias, transposed=transposed)
    x = gaussian(4, low.in_features, 4)
    want = x @ (b @ a if transposed else (b @ a).mT) + bias
    torch.testing.assert_close(low(x), want, rtol=1e-12, atol=1e-12)
    b.zero_()
    assert low.B.abs().sum() > 0  # its own memory


def test_wrong_factors_are_refused():
    b, a = torch.zeros(20, 3), torch.zeros(3, 10)
    for bad in ((b, a.double()), (b, a.T), (b[0], a)):
        with pytest.raises(ValueError, match=r"B \(m, r\) and A \(r, n\) must share"):
            lk.LowRankLinear.from_factors(*bad)
    with pytest.raises(ValueError, match=r"bias must be \(20,\); got \(10,\)"):
        lk.LowRankLinear.from_factors(b, a, torch.zeros(10))
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.10 for 10 -> 20 features; got 11"):
        lk.LowRankLinear(10, 20, 11)
    with pytest.raises(TypeError, match=r"only a plain torch\.nn\.Linear or transformers Conv1D.*Embedding"):
        lk.LowRankLinear.from_linear(nn.Embedding(8, 8), 2)


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gpt2], ids=["llama", "gpt2"])
def test_a_factorized_model_computes_what_the_reduced_one_does(make):
    plan = {"rules": [{"targets": "all", "rank": 5}]}
    model, dense = make(torch.float64), make(torch.float64)
    before = sum(p.numel() for p in model.parameters())
    report = lk.factorize_model_(model, plan)
    lk.reduce_model_(dense, plan)
    replaced = {name: m for name, m in model.named_modules() if isinstance(m, lk.LowRankLinear)}
    assert {row.name.removesuffix(".weight") for row in report if row.factored} == replaced.keys() and replaced
    for name, module in replaced.items():
        twin = dense.get_submodule(name)
        torch.testing.assert_close(
            module.weight, twin.weight, rtol=0, atol=16 * eps(torch.float64) * twin.weight.norm().item()
        )
        assert module.bias is None or torch.equal(module.bias, twin.bias)
    ids = tiny_models.tokens()
    # In float64 rounding is 1e-16: seven digits are left for what three layers may make of it.
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-9, atol=1e-9)
    saved = report.sizes["parameters"][0] - report.sizes["parameters"][1]
    assert before - sum(p.numel() for p in model.parameters()) == saved > 0
    for row in report:
        assert row.parameters[1] == (5 * sum(row.shape) if row.factored else row.shape[0] * row.shape[1])
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **arguments), dense.generate(ids, **arguments))


def test_only_modules_that_shrink_become_factors_and_the_others_are_reduced():
    model = tiny_models.llama(tie_word_embeddings=True)
    before = tiny_models.state(model)
    plan = {"rules": [{"targets": ["re:lm_head", "k_proj"], "rank": 6}, {"targets": "mlp", "rank": 4}]}
    report = lk.factorize_model_(model, plan)
    dense = {row.name for row in report if not row.factored}
    assert dense == {"model.embed_tokens.weight"} | {f"model.layers.{i}.self_attn.k_proj.weight" for i in range(3)}
    assert (
        isinstance(model.model.embed_tokens, nn.Embedding) and model.lm_head.weight is model.model.embed_tokens.weight
    )
    assert any("belongs to a Embedding" in note for note in report.notes)
    assert (
        "model.layers.0.self_attn.k_proj.weight: reduced, but dense: factors of rank 6 are not smaller" in report.notes
    )
    for name in dense:
        assert residual(before[name], model.get_parameter(name)) <= residual_bound(before[name], 6, 1e-3)
        assert torch.linalg.matrix_rank(model.get_parameter(name).double(), rtol=1e-5) == 6
    assert all(isinstance(layer.mlp.up_proj, lk.LowRankLinear) for layer in model.model.layers)
    assert model.config.laser_kernels["ranks"]["model.layers.2.mlp.up_proj"] == 4


def test_experts_and_modules_of_unknown_behaviour_stay_dense():
    model = tiny_models.mixtral()
    ids = tiny_models.tokens()
    report = lk.factorize_model_(model, {"rules": [{"targets": "all", "rank": 3}]})
    assert {row.name.rpartition(".")[2] for row in report if not row.factored} == {"gate_up_proj", "down_proj"}
    assert any("belongs to a MixtralExperts, not to a plain Linear" in note for note in report.notes)
    assert model(ids).logits.isfinite().all()

    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    odd = nn.Sequential(Own(30, 20), nn.Linear(20, 30), nn.Linear(30, 20))
    odd[1].register_forward_hook(lambda module, args, out: 2 * out)
    report = lk.factorize_model_(odd, {"rules": [{"targets": "re:weight", "rank": 2}]})
    assert [row.factored for row in report] == [False, False, True]


def test_a_weight_that_two_linear_modules_share_stays_dense_and_shared():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    model[1].weight = model[0].weight
    report = lk.factorize_model_(model, {"rules": [{"targets": "re:weight", "rank": 2}]})
    assert [row.factored for row in report] == [False] and model[1].weight is model[0].weight
    assert "0.weight: reduced, but dense: 0.weight and 1.weight share it" in report.notes
    assert torch.linalg.matrix_rank(model[0].weight.detach().double(), rtol=1e-5) == 2


def test_a_refused_model_is_not_changed():
    model = tiny_models.llama()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    before = tiny_models.state(model)
    with pytest.raises(NonFiniteError, match=r"layers\.2\.mlp\.down_proj"):
        lk.factorize_model_(model, PLAN)
    with pytest.raises(CheckpointError, match="re:nope"):
        lk.factorize_model_(model, {"rules": [{"targets": "q_proj", "rank": 2}, {"targets": "re:nope", "rank": 2}]})
    model.model.layers[2].mlp.down_proj.weight.data.nan_to_num_()
    before["model.layers.2.mlp.down_proj.weight"].nan_to_num_()
    assert tiny_models.changed(model, before) == set() and not hasattr(model.config, "laser_kernels")


def test_it_can_be_done_twice_and_keeps_training_flags():
    model = tiny_models.llama().train()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    lk.factorize_model_(model, {"rules": [{"targets": "fc_up", "rank": 3}]})
    lk.factorize_model_(model, {"rules": [{"targets": "fc_in", "rank": 4}]})
    low = [layer.mlp.up_proj for layer in model.model.layers]
    assert [(m.A.requires_grad, m.B.requires_grad) for m in low] == [
        (flag, flag) for flag in (True, False, True)
    ] and all(m.training for m in low)
    ranks = model.config.laser_kernels["ranks"]
    assert {ranks[f"model.layers.0.mlp.{name}_proj"] for name in ("up", "gate")} == {3, 4} and len(ranks) == 6
