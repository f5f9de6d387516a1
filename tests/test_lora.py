"""extract_lora: what it writes, applied again, is the best change of its rank; and both command lines."""

import json

import pytest
import tiny_checkpoints
import torch
from safetensors.torch import load_file

import laser_kernels as lk
from laser_kernels import cli, deltas
from laser_kernels.adapters import read_adapter
from laser_kernels.errors import CheckpointError
from laser_kernels.lora.extract import extract_lora
from laser_kernels.testing import FLOOR, eps, gaussian, norm, optimal_residual, residual

MATRICES = [f"self_attn.{c}_proj" for c in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def fine_tuned(tensors, seed=7):
    """Other weights near these: every matrix of a layer, one norm, the embedding; layer 0's q_proj as it was."""
    new = dict(tensors)
    for i, (name, t) in enumerate(tensors.items()):
        matrix = "layers" in name and t.dim() == 2 and name != "model.layers.0.self_attn.q_proj.weight"
        if matrix or name in ("model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"):
            new[name] = (t.double() + 0.3 * gaussian(t.numel(), 1, seed + i).reshape(t.shape)).to(t.dtype)
    return new


@pytest.fixture
def checkpoints(tmp_path):
    base = tiny_checkpoints.llama_tensors(layers=2)
    new = fine_tuned(base)
    tiny_checkpoints.write(tmp_path / "base", base, shards=2)
    tiny_checkpoints.write(tmp_path / "tuned", new)
    return tmp_path, base, new


def exact(base, new, name):
    return new[f"{name}.weight"].double() - base[f"{name}.weight"].double()


def change(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


def test_extracted_adapter_is_the_best_change_of_its_rank(checkpoints):
    folder, base, new = checkpoints
    report = extract_lora(folder / "base", folder / "tuned", folder / "lora", 6, progress=lambda *_: None)
    adapter = read_adapter(folder / "lora")
    names = [f"model.layers.{i}.{matrix}" for i in (0, 1) for matrix in MATRICES][1:]  # without layer 0's q_proj
    assert sorted(adapter.factors) == sorted(row.name for row in report.rows) == sorted(names)
    for row in report.rows:
        delta = exact(base, new, row.name)
        assert row.shape == tuple(delta.shape) and row.rank == adapter.factors[row.name].rank == min(6, *delta.shape)
        found = residual(delta, change(adapter.factors[row.name]))
        assert found <= (1 + 1e-3) * optimal_residual(delta, row.rank) + FLOOR * eps(torch.float32) * norm(delta)
        assert row.residual == pytest.approx(found, rel=1e-4, abs=FLOOR * eps(torch.float32) * norm(delta))
        assert row.relative_residual == pytest.approx(row.residual / norm(delta))
    assert report.unchanged == ("model.layers.0.self_attn.q_proj",)
    assert report.left_out == ("model.embed_tokens.weight", "model.layers.1.input_layernorm.weight")
    assert (report.only_in_base, report.only_in_tuned, report.reshaped, report.notes) == ((),) * 4
    assert json.loads((folder / "lora" / "laser_report.json").read_text()) == json.loads(report.to_json())
    config = json.loads((folder / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "base") and config["fan_in_fan_out"] is False


def test_folders_state_dicts_and_chunks_agree(checkpoints, monkeypatch):
    folder, base, new = checkpoints
    extract_lora(folder / "base", folder / "tuned", folder / "a", 3, targets="mlp", layers=1)
    monkeypatch.setattr(deltas, "CHUNK", 1)
    extract_lora(base, new, folder / "b", 3, targets="mlp", layers=1)
    one, other = (load_file(folder / x / "adapter_model.safetensors") for x in "ab")
    assert len(one) == 6 and one.keys() == other.keys()
    for name, t in one.items():
        assert torch.allclose(t, other[name], atol=1e-4), name


def test_missing_new_and_reshaped_tensors_are_listed(checkpoints):
    folder, base, new = checkpoints
    base["model.old.weight"] = torch.ones(2, 2)
    new["lm_head.weight"] = torch.ones(50, 24)
    new["model.layers.0.mlp.up_proj.weight"] = torch.ones(41, 24)
    report = extract_lora(base, new, folder / "lora", 1)
    assert (report.only_in_base, report.only_in_tuned) == (("model.old.weight",), ("lm_head.weight",))
    assert report.reshaped == ("model.layers.0.mlp.up_proj.weight",)
    assert "model.layers.0.mlp.up_proj" not in [row.name for row in report.rows]
    assert "1 only in tuned (lm_head.weight, ...)" in report.summary()


@pytest.mark.parametrize("split", ["sqrt", "left", "right"])
def test_split_says_which_factor_holds_the_singular_values(checkpoints, split):
    folder, base, new = checkpoints
    name = "model.layers.1.mlp.up_proj"
    extract_lora(base, new, folder / "lora", 4, split=split, targets=f"re:{name}", tol=0)
    b, a = read_adapter(folder / "lora").factors[name][:2]
    s = torch.linalg.svdvals(exact(base, new, name))[:4].float()
    power = {"sqrt": (0.5, 0.5), "left": (1, 0), "right": (0, 1)}[split]
    assert torch.allclose(b.norm(dim=0), s ** power[0], rtol=1e-4)
    assert torch.allclose(a.norm(dim=1), s ** power[1], rtol=1e-4)


def test_ranks_by_fraction_by_rule_and_rounded(checkpoints):
    folder, base, new = checkpoints
    ranks = {}
    for i, (rank, step) in enumerate([(0.25, None), (3, 4), (6, 5), (lk.Threshold(0.9), None)]):
        report = extract_lora(base, new, folder / str(i), rank, round_rank=step)
        ranks[i] = {row.name: row.rank for row in report.rows}
    k, up = "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj"  # 8x24, 40x24
    assert [ranks[0][k], ranks[0][up]] == [2, 6]
    assert [ranks[1][k], ranks[1][up]] == [4, 4]
    assert [ranks[2][k], ranks[2][up]] == [8, 10]
    assert [ranks[3][n] for n in (k, up)] == [
        int((torch.linalg.svdvals(exact(base, new, n)) > 0.9).sum()) for n in (k, up)
    ]


def test_what_16_bit_factors_lose_is_reported(checkpoints):
    folder, base, new = checkpoints
    report = extract_lora(base, new, folder / "lora", 1.0, dtype=torch.bfloat16)
    for row in report.rows:
        factors = read_adapter(folder / "lora").factors[row.name]
        assert factors.B.dtype == torch.bfloat16
        found = residual(exact(base, new, row.name), change(factors))
        assert row.residual == pytest.approx(found, rel=1e-4) and row.relative_residual > 1e-4


def gpt2(seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=20)
    return transformers.GPT2LMHeadModel(config).eval()


def llama(seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft reads what transformers deprecates
@pytest.mark.parametrize("build", [llama, gpt2])
def test_peft_model_with_the_full_rank_adapter_is_the_tuned_model(tmp_path, build):
    """GPT-2 stores its matrices (in, out), c_proj of the attention is square: a wrong orientation would load."""
    peft = pytest.importorskip("peft", reason="the real loader")
    base, new = build(0), build(0)
    with torch.no_grad():
        for name, p in new.named_parameters():
            if (p.dim() == 2 and ".layers." in name) or (".h." in name and p.dim() == 2):
                p += 0.05 * gaussian(*p.shape, len(name)).float()
    report = extract_lora(base, new, tmp_path / "lora", 1.0, dtype=torch.float32)
    assert len(report.rows) == (14 if build is llama else 8) and report.left_out == ()
    x = torch.arange(6)[None]
    before, wanted = base(x).logits, new(x).logits
    got = peft.PeftModel.from_pretrained(base, tmp_path / "lora")(x).logits
    assert (got - wanted).abs().max() <= 1e-4 * (wanted - before).abs().max()


def test_bad_extractions_are_refused(checkpoints):
    folder, base, new = checkpoints

    def refused(message, base=base, new=new, rank=2, kind=CheckpointError, out="x", **options):
        with pytest.raises(kind, match=message):
            extract_lora(base, new, folder / out, rank, **options)
        assert not (folder / "x").exists()

    refused("share no tensor", new={"other": torch.ones(2, 2)})
    refused("nothing that all names differs", new=base)
    refused("matches nothing", targets="re:nope")
    refused("is an embedding", targets="re:embed_tokens")
    refused("rank must be in 1", rank=0, kind=ValueError)
    refused("split must be one of", split="both", kind=ValueError)
    refused("round_rank must be", round_rank=0, kind=ValueError)
    refused("dtype must be", dtype=torch.int8, kind=ValueError)
    refused("exists", out="base")
    nan = {**new, "model.layers.1.mlp.up_proj.weight": torch.full((40, 24), float("nan"))}
    refused("model.layers.1.mlp.up_proj.weight: holds NaN or Inf", new=nan)
    bare = [{name.removeprefix("model."): t for name, t in side.items()} for side in (base, new)]
    refused("PEFT would not find it in a CAUSAL_LM", base=bare[0], new=bare[1])
    conv = {"transformer.h.0.attn.c_proj.weight": torch.ones(4, 4)}
    refused("nothing says which", base=conv, new={name: 2 * t for name, t in conv.items()}, targets="re:c_proj")


def test_command_lines(checkpoints, capsys):
    folder = checkpoints[0]
    base, new, lora, small = (str(folder / name) for name in ("base", "tuned", "lora", "small"))
    assert cli.main(["extract", base, new, lora, "--rank", "5", "--targets", "attn", "--base-model", "org/base"]) == 0
    assert "7 modules, rank 5 to 5" in capsys.readouterr().out
    assert json.loads((folder / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert cli.main(["resize", lora, small, "--rank", "2", "--json"]) == 0
    assert {row["rank"] for row in json.loads(capsys.readouterr().out)["rows"]} == {2}
    assert cli.main(["resize", lora, small, "--rank", "2"]) == 2
    assert "exists" in capsys.readouterr().err
