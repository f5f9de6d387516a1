"""Rank rules in plans: found before the layout, per expert, recorded, resumed, verified."""

from __future__ import annotations

import json

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file
from torch import nn

from laser_kernels.checkpoint import journal, resolve
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.verification import verify
from laser_kernels.checkpoint.work import prepare
from laser_kernels.cli import main
from laser_kernels.errors import CheckpointError
from laser_kernels.models import targets_of
from laser_kernels.ranks import Energy, Frobenius, Ratio, Threshold
from laser_kernels.selection import Plan, Rule

PLAN = {
    "rules": [
        {"targets": ["fc_in"], "rank": {"energy": 0.6}},
        {"targets": ["q_proj"], "rank": "ratio:0.5"},
        {"targets": ["all"], "rank": "param_budget:0.5"},
    ]
}


def reduce(src, dst, plan=PLAN, **options):
    return reduce_checkpoint(src, dst, plan, progress=lambda *_: None, **options)


def spectrum(weight):
    return torch.linalg.svdvals(weight.double())


@pytest.fixture
def no_search(monkeypatch):
    """From here on no rank may be found again."""

    def forbid():
        monkeypatch.setattr(Energy, "found", lambda *_: pytest.fail("found again"))

    return forbid


def test_every_matrix_has_the_rank_of_its_own_spectrum(tmp_path):
    src = tiny.llama(tmp_path / "a", shards=2)
    report = reduce(src, tmp_path / "b")
    tensors = {k: v for file in src.glob("*.safetensors") for k, v in load_file(file).items()}
    seen = {}
    for row in report.rows:
        weight = tensors[row.name]
        m, n = weight.shape
        if "gate_proj" in row.name:
            expected = Energy(0.6).count(spectrum(weight))
        elif "q_proj" in row.name:
            expected = Ratio(0.5).count(spectrum(weight))
        else:
            expected = max(1, m * n // (2 * (m + n)))
        assert row.rank == expected, row
        seen.setdefault(row.name.split(".")[-2], set()).add(row.rank)
    assert len(seen) == 7 and report.plan["rules"][0]["rank"] == "energy:share=0.6"
    assert len(report.settings["ranks"]) == 6  # of the two rules that look at values, in 3 layers
    assert verify(src, tmp_path / "b").ok
    assert "energy:share=0.6" in (tmp_path / "b" / "README.md").read_text()


def test_experts_have_ranks_of_their_own(tmp_path):
    stack = torch.stack([tiny.random(20, 3, seed=e).float() @ tiny.random(3, 16, seed=e + 9).float() for e in range(4)])
    stack[1:3] += 0.3 * tiny.random(2, 20, 16, seed=77).float()
    src = tiny.write(tmp_path / "a", {"model.layers.0.mlp.experts.down_proj": stack})
    plan = {"rules": [{"targets": "re:experts", "rank": "frobenius:0.05"}]}
    report = reduce(src, tmp_path / "b", plan)
    ranks = [row.rank for row in report.rows]
    assert ranks == [Frobenius(0.05).count(spectrum(one)) for one in stack] and len(set(ranks)) > 1
    result = load_file(tmp_path / "b" / "model.safetensors")["model.layers.0.mlp.experts.down_proj"]
    for before, after in zip(stack, result, strict=True):
        assert torch.linalg.norm(before - after) <= 0.05 * (1 + 2e-3) * torch.linalg.norm(before)
    assert verify(src, tmp_path / "b").ok


def test_an_interrupted_run_keeps_the_ranks_it_found(tmp_path, monkeypatch, no_search):
    src = tiny.llama(tmp_path / "a", shards=3)
    options = {"memory_budget": 16 * 3000}
    reduce(src, tmp_path / "whole", **options)
    done, add = [], journal.Journal.add

    def stop(self, *arguments):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(arguments)
        add(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            reduce(src, tmp_path / "b", **options)
    no_search()
    reduce(src, tmp_path / "b", resume=True, **options)
    assert tiny.same_but_seconds(tmp_path / "whole", tmp_path / "b")
    reduce(src, tmp_path / "b", resume=True, **options)  # finished: by its report
    assert verify(src, tmp_path / "b").ok


def test_another_plan_finds_its_own(tmp_path):
    src = tiny.llama(tmp_path / "a")
    reduce(src, tmp_path / "b")
    plan = Plan.from_dict(PLAN)
    other = Plan.from_dict({"rules": [{"targets": ["fc_in"], "rank": "energy:0.9"}]})
    with Reader(src) as reader:
        known = resolve.recorded(tmp_path / "b", reader, plan)
        assert len(known) == 6
        assert resolve.recorded(tmp_path / "b", reader, other) == {}
        assert resolve.recorded(tmp_path / "nowhere", reader, plan) == {}
        assert prepare(reader, plan, found=known) == prepare(reader, plan)


def test_what_is_clamped_is_reported(tmp_path, capsys):
    src = tiny.llama(tmp_path / "a", layers=1)
    for rank, said in (
        ("threshold:1e6", "Threshold(sigma=1000000.0) gives rank 0 for a (24, 24) matrix: 1 is taken"),
        ("fixed:99", "Fixed(rank=99) gives rank 99 for a (24, 24) matrix: 24 is taken"),
    ):
        plan = {"rules": [{"targets": "q_proj", "rank": rank}]}
        report = reduce(src, tmp_path / rank.replace(":", "_"), plan)
        assert report.notes == (f"model.layers.0.self_attn.q_proj.weight: {said}",)
        assert verify(src, tmp_path / rank.replace(":", "_")).ok
    assert main(["plan", str(src), "--targets", "q_proj", "--rank", "threshold:1e6"]) == 0
    assert "note: model.layers.0.self_attn.q_proj.weight: Threshold" in capsys.readouterr().out


def test_plan_prints_the_ranks(tmp_path, capsys):
    src = tiny.llama(tmp_path / "a", layers=2)
    assert main(["plan", str(src), "--targets", "fc_in", "--rank", "energy:0.6", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    tensors = load_file(src / "model.safetensors")
    assert [row["rank"] for row in rows] == [Energy(0.6).count(spectrum(tensors[row["name"]])) for row in rows]
    assert main(["plan", str(src), "--targets", "fc_in", "--rank", "energi:0.6"]) == 2
    assert "did you mean 'energy'" in capsys.readouterr().err


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    tensors = tiny.llama_tensors(layers=1)
    tensors["model.layers.0.mlp.gate_proj.weight"][3, 4] = float("nan")
    src = tiny.write(tmp_path / "a", tensors)
    plan = {"rules": [{"targets": "fc_in", "rank": "energy:0.6"}]}
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight: holds NaN or Inf"):
        reduce(src, tmp_path / "b", plan)
    report = reduce(src, tmp_path / "c", plan, on_nonfinite="keep")
    assert [row.status for row in report.rows] == ["kept_nonfinite"]


def test_memory_for_finding_is_within_the_budget(tmp_path):
    src = tiny.llama(tmp_path / "a", layers=1)
    with Reader(src) as reader:
        number, rule = (Plan((Rule(("fc_in",), rank),)) for rank in (3, Energy(0.5)))
        prepare(reader, number, 40 * 24 * 15)
        with pytest.raises(
            CheckpointError, match=r"gate_proj.weight: finding the rank of 40x24 may need .* raise --memory"
        ):
            prepare(reader, rule, 40 * 24 * 15)


def test_a_plan_with_rules_reads_as_it_was_written():
    plan = Plan((Rule(("mlp",), Energy(0.9)), Rule(("attn",), Threshold(1e-3), frozenset({1}))))
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    with pytest.raises(ValueError, match=r"rule 1: Energy takes a share in .*; got 2"):
        Plan.from_dict({"rules": [{"targets": "mlp", "rank": {"energy": 2}}]})


def test_models_in_memory():
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 40))
    plan = {"rules": [{"targets": r"re:weight$", "rank": "energy:0.5"}]}
    for target in targets_of(model, plan).targets:
        assert target.rank == Energy(0.5).count(spectrum(model.get_parameter(target.name).detach()))
