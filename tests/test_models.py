"""reduce_model_ and reduced: what changes in a model in memory, to what, and that it comes back."""

from __future__ import annotations

import gc

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch import nn

import laser_kernels as lk
from laser_kernels.checkpoint.layout import BATCHING
from laser_kernels.errors import CheckpointError, NonFiniteError
from laser_kernels.models import batched, pieces_of, targets_of
from laser_kernels.testing import residual, residual_bound

PLAN = {"rules": [{"targets": ["mlp", "q_proj"], "layers": "1-2", "rank": 0.25}]}
SKETCHED = {"hidden_size": 192, "intermediate_size": 256}  # large enough for the randomized route
REDUCED = {
    f"model.layers.{layer}.{name}.weight"
    for layer in (1, 2)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
}


def check_optimal(before: torch.Tensor, after: torch.Tensor, rank: int, tol: float = 1e-3) -> None:
    """`after` is of this rank, and as near to `before` as the contract says (float32)."""
    assert residual(before, after) <= residual_bound(before, rank, tol)
    sigma = torch.linalg.svdvals(after.double())
    assert sigma[rank:].norm() <= 2**-18 * sigma.norm() < sigma[rank - 1]


def test_the_named_weights_change_to_optimal_ones_and_nothing_else():
    model = tiny_models.llama()
    before = tiny_models.state(model)
    report = lk.reduce_model_(model, PLAN)
    assert tiny_models.changed(model, before) == REDUCED == {row.name for row in report}
    for row in report:
        weight = model.get_parameter(row.name)
        check_optimal(before[row.name], weight, 6)
        assert row.residual == pytest.approx(residual(before[row.name], weight), rel=1e-6)
        assert (row.rank, row.dtype, row.shape, row.factored) == (6, "F32", tuple(weight.shape), False)
        assert row.parameters == (weight.numel(),) * 2 and row.bytes == (4 * weight.numel(),) * 2
        assert weight.requires_grad and weight.is_leaf
    assert len(report) == 8 and report.notes == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_as_the_checkpoint(tmp_path, dtype):
    model = tiny_models.llama(dtype, **SKETCHED)
    model.save_pretrained(tmp_path / "a")
    plan = {"rules": [{"targets": "all", "layers": "1-2", "rank": 0.05}]}
    lk.reduce_checkpoint(tmp_path / "a", tmp_path / "b", plan, seed=7, progress=lambda *_: None)
    report = lk.reduce_model_(model, plan, seed=7)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    own = model.state_dict()
    assert len(report) == 14 and stored.keys() == own.keys()
    assert sum(row.route == "randomized" for row in report) == 10  # whose bits depend on the key; k and v are narrow
    assert {name for name in own if not torch.equal(own[name], stored[name])} == set()


def test_ranks_mix_where_calls_are_shared(monkeypatch):
    """On a device whose batches mix: one call of low_rank for each shape, each weight to its own rank."""
    calls = []
    whole = lk.models.low_rank
    monkeypatch.setitem(BATCHING, "cpu", BATCHING["cpu"]._replace(mixed=True))
    monkeypatch.setattr(lk.models, "low_rank", lambda a, ranks, **rest: calls.append(ranks) or whole(a, ranks, **rest))
    model = tiny_models.llama()
    before = tiny_models.state(model)
    plan = {"rules": [{"targets": "mlp", "layers": 1, "rank": 3}, {"targets": "mlp", "layers": 2, "rank": 7}]}
    report = lk.reduce_model_(model, plan)
    assert sorted(calls) == [[3, 3, 7, 7], [3, 7]]
    for row in report:
        check_optimal(before[row.name], model.get_parameter(row.name), 3 if ".1." in row.name else 7)
    assert sorted(map(len, batched(pieces_of(model, targets_of(model, plan)), one_rank=True))) == [1, 1, 2, 2]


def test_conv1d_is_reduced_as_it_is_stored():
    model = tiny_models.gpt2()
    before = tiny_models.state(model)
    report = lk.reduce_model_(model, {"rules": [{"targets": ["fc_in", "q_proj"], "rank": 4}]})
    assert [row.shape for row in report] == [(24, 72), (24, 96)] * 2
    for row in report:
        check_optimal(before[row.name], model.get_parameter(row.name), 4)


def test_each_expert_of_a_fused_parameter_is_reduced_by_itself():
    model = tiny_models.mixtral()
    before = tiny_models.state(model)
    report = lk.reduce_model_(model, {"rules": [{"targets": "mlp", "layers": 0, "rank": 3}]})
    names = {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"}
    assert tiny_models.changed(model, before) == names
    assert sorted((row.name, row.index) for row in report) == sorted((name, i) for name in names for i in range(4))
    for row in report:
        check_optimal(before[row.name][row.index], model.get_parameter(row.name)[row.index], 3)


@pytest.mark.parametrize("words", [["re:embed_tokens"], ["re:lm_head"], ["re:lm_head", "re:embed_tokens"]])
def test_a_tied_weight_is_reduced_once_and_said(words):
    model = tiny_models.llama(tie_word_embeddings=True)
    before = model.model.embed_tokens.weight.detach().clone()
    report = lk.reduce_model_(model, {"rules": [{"targets": [word], "rank": 5 + i} for i, word in enumerate(words)]})
    assert [(row.name, row.rank) for row in report] == [("model.embed_tokens.weight", 5)]  # the first rule decides
    assert report.notes == (
        "model.embed_tokens.weight and lm_head.weight are one parameter: it is reduced once, for all of them",
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_optimal(before, model.lm_head.weight, 5)


def test_any_module_by_regular_expressions():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).double()
    before = tiny_models.state(model)
    report = lk.reduce_model_(model, {"rules": [{"targets": "re:weight$", "rank": 4}]})
    assert tiny_models.changed(model, before) == {"0.weight", "2.weight"} and len(report) == 2
    for name in ("0.weight", "2.weight"):
        assert residual(before[name], model.get_parameter(name)) <= residual_bound(before[name], 4, 1e-3)


def test_nan_or_a_target_that_is_not_there_changes_nothing():
    model = tiny_models.llama()
    name = "model.layers.2.mlp.down_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = float("inf")
    before = tiny_models.state(model)
    with pytest.raises(NonFiniteError, match=rf"NaN or Inf in matrix {name}"):
        lk.reduce_model_(model, PLAN)
    with pytest.raises(NonFiniteError, match=name), lk.reduced(model, PLAN):
        raise AssertionError("not reached")
    two = {"rules": [*PLAN["rules"], {"targets": "re:nope", "rank": 2}]}
    with pytest.raises(CheckpointError, match=r"re:nope.*no tensor's name contains it.*model\.layers\.0"):
        lk.reduce_model_(model, two)
    with pytest.raises(CheckpointError, match=r"no known architecture, so only re:REGEX"):
        lk.reduce_model_(nn.Sequential(nn.Linear(4, 4)), {"rules": [{"targets": "mlp", "rank": 2}]})
    assert tiny_models.changed(model, before) == set()


class Packed(nn.Parameter):
    """Stands for a quantization library's parameter."""


def test_what_is_not_a_plain_matrix_is_refused_by_name():
    plan = {"rules": [{"targets": "re:0.weight", "rank": 2}]}
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    model[0].weight = Packed(model[0].weight.data)
    with pytest.raises(CheckpointError, match=r"0\.weight: is a Packed, not a plain parameter"):
        lk.reduce_model_(model, plan)
    with pytest.raises(CheckpointError, match=r"0\.weight: is on the meta device"):
        lk.reduce_model_(nn.Sequential(nn.Linear(8, 8, device="meta")), plan)
    model[0].weight = nn.Parameter(torch.zeros(8, 8).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"0\.weight: is F8_E4M3 without"):
        lk.reduce_model_(model, plan)
    model[0].weight_scale_inv = nn.Parameter(torch.ones(1, 1))
    with pytest.raises(CheckpointError, match=r"0\.weight: is torch.float8_e4m3fn with factors"):
        lk.reduce_model_(model, plan)
    del model[0].weight
    model[0].register_buffer("qweight", torch.zeros(1, 8, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=r"0\.weight: is stored as GPTQ or AWQ"):
        lk.reduce_model_(model, plan)


def test_an_integer_weight_is_refused_with_the_method_of_its_config():
    model = tiny_models.llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.data.to(torch.int8), requires_grad=False)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: is I8, packed by bitsandbytes"):
        lk.reduce_model_(model, {"rules": [{"targets": "fc_up", "rank": 2}]})


def test_buffers_are_never_targets():
    model = nn.Sequential(nn.Linear(8, 8))
    model.register_buffer("table.weight"[:5], torch.randn(8, 8))
    assert [t.name for t in targets_of(model, {"rules": [{"targets": "re:.", "rank": 2}]}).targets] == ["0.weight"]


def test_reduced_gives_the_original_bits_back_and_nests():
    model = tiny_models.llama(torch.bfloat16)
    before = tiny_models.state(model)
    inner = {"rules": [{"targets": "q_proj", "rank": 2}]}
    with lk.reduced(model, PLAN, seed=3) as report:
        assert tiny_models.changed(model, before) == REDUCED and len(report) == 8
        outer = tiny_models.state(model)
        with lk.reduced(model, inner):
            assert len(tiny_models.changed(model, outer)) == 3
        assert tiny_models.changed(model, outer) == set()
    assert tiny_models.changed(model, before) == set()
    other = tiny_models.llama(torch.bfloat16)
    lk.reduce_model_(other, PLAN, seed=3)
    assert tiny_models.changed(other, outer) == set()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_reduced_restores_on_an_exception(error):
    model = tiny_models.llama()
    before = tiny_models.state(model)
    with pytest.raises(error), lk.reduced(model, PLAN):
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
        raise error
    assert tiny_models.changed(model, before) == set()


def test_reduced_restores_where_the_reduction_itself_fails(monkeypatch):
    model = tiny_models.llama()
    before = tiny_models.state(model)
    calls = iter(range(9))
    real = lk.models.low_rank

    def second_fails(*args, **options):
        if next(calls):
            raise MemoryError
        return real(*args, **options)

    monkeypatch.setattr(lk.models, "low_rank", second_fails)
    with pytest.raises(MemoryError), lk.reduced(model, PLAN):
        raise AssertionError("not reached")
    assert tiny_models.changed(model, before) == set() and next(calls) == 2


def test_reduced_keeps_copies_of_the_replaced_weights_only():
    model = tiny_models.llama()

    def held() -> int:
        gc.collect()
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if issubclass(type(t), torch.Tensor)
        }
        return sum(storages.values())

    outside = held()
    with lk.reduced(model, PLAN):
        inside = held()
    replaced = sum(model.get_parameter(name).nbytes for name in REDUCED)
    assert inside - outside == replaced


def test_nothing_of_transformers_is_needed_to_import():
    import subprocess
    import sys

    code = "import sys, laser_kernels; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
