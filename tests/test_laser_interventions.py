"""LASER's vocabulary, its float trap, and the paper's 24 cells."""

import pytest
import torch
from laser_models import tiny

from laser_kernels.errors import CheckpointError
from laser_kernels.laser import Intervention, compat_plan, compose, interventions_of, preset, presets
from laser_kernels.laser.presets import datasets, models
from laser_kernels.models import targets_of

# min(m, n), rate, floor(rho min(m, n)), int(min(m, n) * ((10 - rate) * 0.1)): ecosystem facts about do_low_rank's callers
TRAP = [
    *((side, 9.9, rank, rank - 1) for side, rank in ((500, 5), (1000, 10), (1600, 16), (2000, 20), (4000, 40))),
    *((side, 9.9, side // 100, side // 100) for side in (768, 1024, 2048, 4096, 5120, 8192)),
    *((4096, rate, rank, rank) for rate, rank in ((9.5, 204), (9.0, 409), (8.0, 819), (6, 1638), (2, 3276))),
]


@pytest.mark.parametrize(("side", "rate", "exact", "laser"), TRAP)
def test_rank_is_exact_and_lasers_float_trap_only_on_request(side, rate, exact, laser):
    one = Intervention("fc_in", 3, rate)
    assert one.rank(4 * side, side) == exact
    assert one.rank(side, 4 * side, compat=True) == laser


def test_a_rank_that_would_be_zero_is_one_except_in_laser():
    one = Intervention("fc_in", 3, 9.95)
    assert one.rank(100, 100) == 1 and one.rank(100, 100, compat=True) == 0


@pytest.mark.parametrize("rho", [0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.005, 1.0, 1 / 3])
def test_rho_and_rate_say_the_same(rho):
    one = Intervention.keeping("U_out", 27, rho)
    assert one.lname == "fc_out" and one.rho == rho
    assert Intervention("U_out", 27, one.rate) == one


def test_rho_of_laser_rates_is_decimal():
    assert [Intervention("mlp", -1, rate).rho for rate in (9.9, 9.5, 9, 2, 0)] == [0.01, 0.05, 0.1, 0.8, 1.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gate", 3, 9.9), "unknown target 'gate'"),
        (("fc_in,fc_out", 3, 9.9), "one name"),
        (("fc_in", -2, 9.9), "lnum must be a layer"),
        (("fc_in", True, 9.9), "lnum must be a layer"),
        (("fc_in", 3, 10), "rate must be in"),
        (("fc_in", 3, -0.1), "rate must be in"),
        (("fc_in", 3, float("nan")), "rate must be in"),
    ],
)
def test_bad_interventions_say_what_is_wrong(arguments, says):
    with pytest.raises(ValueError, match=says):
        Intervention(*arguments)


def test_plan_names_the_matrix_and_its_layer():
    model = tiny()
    targets = targets_of(model, Intervention.keeping("fc_in", 2, 0.25).plan()).targets
    assert [(t.name, t.rank) for t in targets] == [("model.layers.2.mlp.gate_proj.weight", 8)]
    assert len(targets_of(model, Intervention("mlp", -1, 5).plan()).targets) == 12


def test_composition_takes_the_smaller_rank_whatever_the_order():
    parts = [Intervention("all", -1, 2), Intervention("fc_in", 1, 9), Intervention("mlp", 1, 5)]
    ranks = [{t.name: t.rank for t in targets_of(tiny(), compose(order)).targets} for order in (parts, parts[::-1])]
    assert ranks[0] == ranks[1]
    assert [ranks[0][f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")] == [3, 16, 16]
    assert ranks[0]["model.layers.0.mlp.gate_proj.weight"] == 25
    assert interventions_of(compose(parts)) == sorted(parts, key=lambda one: one.rho)


def test_interventions_of_refuses_what_a_rate_cannot_say():
    for plan in ({"targets": "mlp", "rank": 8}, {"targets": "mlp", "rank": 0.5}, {"targets": "fc_in", "rank": 0.1}):
        rules = [{"targets": "attn", "rank": 0.2}, plan]
        from laser_kernels import Plan

        if plan["rank"] == 0.5:
            assert len(interventions_of(Plan.from_dict({"rules": rules}))) == 2
        else:
            with pytest.raises(ValueError, match="ascending"):
                interventions_of(Plan.from_dict({"rules": rules}))


def test_compat_plan_has_lasers_ranks_for_the_models_shapes():
    with torch.device("meta"):
        model = tiny_meta(1000)
    one = Intervention("fc_in", 0, 9.9)
    assert [t.rank for t in targets_of(model, one.plan()).targets] == [10]
    assert [(t.name, t.rank) for t in targets_of(model, compat_plan(model, [one])).targets] == [
        ("model.layers.0.mlp.gate_proj.weight", 9)
    ]
    with torch.device("meta"), pytest.raises(ValueError, match=r"gate_proj.*rank 0"):
        compat_plan(tiny_meta(96), [one])


def tiny_meta(side):
    transformers = pytest.importorskip("transformers", reason="its configurations make the shapes")
    sizes = dict(hidden_size=side, intermediate_size=2 * side, num_hidden_layers=1, num_attention_heads=4, vocab_size=8)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def test_a_model_nobody_mapped_asks_for_regular_expressions():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    with pytest.raises(CheckpointError, match=r"no known architecture.*re:REGEX"):
        targets_of(model, Intervention("fc_in", -1, 5).plan())
    assert [t.name for t in targets_of(model, Intervention("re:^1", -1, 5).plan()).targets] == ["1.weight"]


def test_there_are_24_presets_and_they_fit_their_models():
    cells = presets()
    assert len(cells) == 24 == len(models()) * len(datasets()) and len({(c.model, c.dataset) for c in cells}) == 24
    for cell in cells:
        assert cell.intervention.lname in ("fc_in", "fc_out") and 0 <= cell.intervention.lnum < cell.layers
        assert all(0 < value < 100 for value in (*cell.base, *cell.laser))
        rank = cell.intervention.rank(4 * cell.side, cell.side)
        assert rank == cell.intervention.rank(4 * cell.side, cell.side, compat=True)  # no trap at 768 and 4096
        assert rank in {768: (7, 307, 614, 691), 4096: (40, 204, 409, 819, 1638, 3276)}[cell.side]
    assert sum(cell.laser.accuracy > cell.base.accuracy for cell in cells) == 22  # one falls, one stays (table 1)


def test_the_papers_best_known_cell():
    cell = preset("gptj", "counterfact")
    assert (
        cell.intervention == Intervention("fc_in", 27, 9.9) and str(cell.intervention) == "[fc_in, layer 27, rho 0.01]"
    )
    assert (cell.base, cell.laser, cell.questions) == ((13.1, 5.78), (24.0, 5.05), 65757)
    with pytest.raises(ValueError, match="gptj, llama2"):
        preset("gpt-j", "counterfact")
