"""Checkpoints whose reduced weights are factors: what is written, that it resumes, verifies and loads, and nothing else."""

from __future__ import annotations

import json
import os
import sys

import pytest
import tiny_checkpoints as tiny
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import laser_kernels as lk
from laser_kernels.checkpoint.layout import Matrix
from laser_kernels.cli import main
from laser_kernels.errors import CheckpointError
from laser_kernels.testing import residual, residual_bound

PLAN = {"rules": [{"targets": ["mlp", "q_proj", "k_proj"], "layers": "1-2", "rank": 6}]}
FACTORED = {
    f"model.layers.{layer}.{name}"
    for layer in (1, 2)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
}
U = 2.0**-8  # bfloat16


def reduce(src, dst, plan=PLAN, **options):
    return lk.reduce_checkpoint(src, dst, plan, **{"output": "factored", "progress": lambda *_: None, **options})


def tensors_of(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_become_factors_in_their_own_shard(tmp_path, shards):
    src, dst = tiny.llama(tmp_path / "a", shards=shards), tmp_path / "b"
    report = reduce(src, dst)
    before, after = tensors_of(src), tensors_of(dst)
    gone = {f"{module}.weight" for module in FACTORED}
    dense = {f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (1, 2)}  # 8x24: rank 6 would not shrink
    assert after.keys() == before.keys() - gone | {f"{module}.{name}" for module in FACTORED for name in "BA"}
    assert {name for name in after.keys() & before.keys() if not torch.equal(after[name], before[name])} == dense
    assert json.loads((dst / "config.json").read_text()) == {
        **json.loads((src / "config.json").read_text()),
        "laser_kernels": {"format": 1, "ranks": dict.fromkeys(sorted(FACTORED), 6)},
    }
    rows = {row.name: row for row in report.rows}
    assert rows.keys() == gone | dense
    for module in FACTORED:
        weight, b, a = before[f"{module}.weight"], after[f"{module}.B"], after[f"{module}.A"]
        (m, n), row = weight.shape, rows[f"{module}.weight"]
        assert (b.shape, a.shape, b.dtype) == ((m, 6), (6, n), torch.bfloat16) and row.factored
        moved = (2 * U + U * U) * (b.double().abs() @ a.double().abs()).norm().item() / (1 - U) ** 2
        found = residual(weight, b.double() @ a.double())
        assert found <= residual_bound(weight, 6, 1e-3) + moved
        assert row.residual == pytest.approx(found, rel=1e-5)
        assert row.parameters == (m * n, 6 * (m + n)) and row.bytes == (2 * m * n, 12 * (m + n))
        key = Matrix(f"{module}.weight", None, 0, 0, 0, 1).key
        want = lk.low_rank(weight.double(), 6, key=key)
        assert residual(want, b.double() @ a.double()) <= moved + 2e-3**0.5 * residual(weight, want)
    assert report.sizes["parameters"] == [sum(t.numel() for t in x.values()) for x in (before, after)]
    files = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (src, dst)]
    assert report.sizes["bytes"] == files and files[1] < files[0] and report.bytes == files[1]
    assert any(
        "k_proj.weight and 1 more: reduced, but dense: factors of its rank are not smaller" in n for n in report.notes
    )
    if shards > 1:
        old, new = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (src, dst))
        assert new["weight_map"].keys() == after.keys()
        for name, file in new["weight_map"].items():
            assert name in load_file(dst / file)
            source = name if name in old["weight_map"] else name[:-1] + "weight"
            assert old["weight_map"][source] == file
        assert new["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    verified = lk.verify(src, dst)
    assert verified.ok and (verified.reduced, verified.untouched) == (10, 16)
    card = (dst / "README.md").read_text()
    assert "8 of them are stored as two factors" in card and "load_factored" in card


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gpt2], ids=["llama", "gpt2"])
def test_it_loads_and_computes_what_the_model_in_memory_does(tmp_path, make):
    model = make(torch.bfloat16)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    plan = {"rules": [{"targets": "all", "rank": 5}]}
    report = reduce(tmp_path / "a", tmp_path / "b", plan)
    loaded = lk.load_factored(tmp_path / "b")
    assert type(loaded) is type(model) and loaded.dtype == torch.bfloat16 and not loaded.training
    model = type(model).from_pretrained(tmp_path / "a", dtype="auto")
    lk.factorize_model_(model, plan)
    assert loaded.config.laser_kernels == model.config.laser_kernels
    assert loaded.config.laser_kernels["ranks"].keys() == {
        row.name.removesuffix(".weight") for row in report.rows if row.factored
    }
    assert tiny_models.changed(loaded, tiny_models.state(model)) == set()  # the same bits, in memory and on disk
    ids = tiny_models.tokens()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert loaded.generate(ids, **arguments).shape[1] <= ids.shape[1] + 4
    loaded.save_pretrained(tmp_path / "c")
    again = lk.load_factored(tmp_path / "c", dtype=torch.float32)
    assert again.dtype == torch.float32
    assert tiny_models.changed(again.to(torch.bfloat16), tiny_models.state(model)) == set()


def test_sketches_are_those_of_the_model_in_memory(tmp_path):
    model = tiny_models.llama(hidden_size=192, intermediate_size=256)
    model.save_pretrained(tmp_path / "a")
    plan = {"rules": [{"targets": "mlp", "rank": 0.05}]}
    report = reduce(tmp_path / "a", tmp_path / "b", plan, seed=3)
    lk.factorize_model_(model, plan, seed=3)
    assert {row.route for row in report.rows} == {"randomized"}  # its bits depend on the keys
    assert tiny_models.changed(lk.load_factored(tmp_path / "b"), tiny_models.state(model)) == set()


def test_a_base_models_names_are_found(tmp_path):
    model = tiny_models.gpt2()
    model.transformer.save_pretrained(tmp_path / "a")  # h.0.attn..., as the hub's gpt2 has them
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    reduce(tmp_path / "a", tmp_path / "b", {"rules": [{"targets": "mlp", "rank": 4}]})
    loaded = lk.load_factored(tmp_path / "b")
    assert (
        isinstance(loaded.transformer.h[1].mlp.c_fc, lk.LowRankLinear) and loaded.transformer.h[1].mlp.c_fc.transposed
    )


def test_experts_and_heads_stay_dense_and_the_model_loads(tmp_path):
    model = tiny_models.mixtral()
    model.save_pretrained(tmp_path / "a")
    plan = {"rules": [{"targets": ["all", "re:lm_head", "re:embed_tokens"], "rank": 3}]}
    report = reduce(tmp_path / "a", tmp_path / "b", plan)
    assert {row.name.split(".")[-2] for row in report.rows if row.factored} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert (
        len(report.notes) == 2 and "experts" in " ".join(report.notes) and "embeddings, heads" in " ".join(report.notes)
    )
    loaded = lk.load_factored(tmp_path / "b")
    assert loaded(tiny_models.tokens()).logits.isfinite().all()
    assert torch.linalg.matrix_rank(loaded.lm_head.weight.detach().double(), rtol=1e-5) == 3


@pytest.mark.parametrize("shards", [1, 3])
def test_every_crash_point_can_be_resumed(tmp_path, monkeypatch, shards):
    from test_resume import Crash, crash_at, looks_finished

    src = tiny.llama(tmp_path / "a", shards=shards)
    plan = {"rules": [{"targets": ["fc_in", "v_proj"], "layers": "1-2", "rank": 3}]}
    reduce(src, tmp_path / "whole", plan)
    finished = call = 0
    while not finished:
        dst = tmp_path / f"b{call}"
        with monkeypatch.context() as patch:
            crash_at(patch, call)
            try:
                reduce(src, dst, plan)
                finished = 1
            except Crash:
                assert not looks_finished(dst) or lk.verify(src, tmp_path / "whole").ok
        reduce(src, dst, plan, resume=True)
        assert tiny.same_but_seconds(tmp_path / "whole", dst), call
        call += 5
    assert call > 15


def test_another_output_is_not_resumed(tmp_path, monkeypatch):
    from test_resume import Crash, crash_at

    src = tiny.llama(tmp_path / "a")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 12)
        reduce(src, tmp_path / "b")
    with pytest.raises(CheckpointError, match="another output"):
        reduce(src, tmp_path / "b", output="dense", resume=True)


@pytest.mark.parametrize("change", ["factor", "residual", "config", "shape", "untouched"])
def test_verify_finds_what_is_wrong(tmp_path, change):
    src, dst = tiny.llama(tmp_path / "a"), tmp_path / "b"
    reduce(src, dst)
    path, name = dst / "model.safetensors", "model.layers.1.mlp.up_proj"
    tensors = {key: t.clone() for key, t in load_file(path).items()}
    if change == "factor":
        tensors[f"{name}.A"][2] *= 1.1
    elif change == "shape":
        tensors[f"{name}.A"], tensors[f"{name}.B"] = (
            torch.cat([t, t], d) for t, d in ((tensors[f"{name}.A"], 0), (tensors[f"{name}.B"], 1))
        )
    elif change == "untouched":
        tensors["model.norm.weight"][0] += 1
    elif change == "residual":
        report = json.loads((dst / "laser_report.json").read_text())
        next(row for row in report["rows"] if row["name"] == f"{name}.weight")["residual"] *= 1.002
        (dst / "laser_report.json").write_text(json.dumps(report))
    else:
        config = json.loads((dst / "config.json").read_text())
        config["laser_kernels"]["ranks"][name] = 5
        (dst / "config.json").write_text(json.dumps(config))
    if change in ("factor", "shape", "untouched"):
        save_file(tensors, path, metadata={"format": "pt"})
    word = {"factor": name, "residual": name, "config": "config.json", "shape": name, "untouched": "model.norm.weight"}[
        change
    ]
    assert word in lk.verify(src, dst).differences[0]


def test_fp8_weights_become_bf16_factors(tmp_path):
    tensors = {
        f"model.layers.0.mlp.{name}.weight": tiny.random(40, 24, seed=i)
        for i, name in enumerate(["up_proj", "gate_proj"])
    }
    stored = {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()}
    stored |= {f"{name}_scale_inv": torch.full((1, 1), 0.5) for name in tensors}
    src = tiny.write(tmp_path / "a", stored, {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}})
    report = reduce(src, tmp_path / "b", {"rules": [{"targets": "fc_up", "rank": 4}]})
    after = tensors_of(tmp_path / "b")
    assert {name: t.dtype for name, t in after.items()} == dict.fromkeys(
        ["model.layers.0.mlp.up_proj.A", "model.layers.0.mlp.up_proj.B", "model.layers.0.mlp.gate_proj.weight"],
        torch.bfloat16,
    )
    assert report.rows[0].bytes == (960, 2 * 4 * 64) and report.sizes["parameters"] == [1920, 960 + 256]
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config.keys() == {"model_type", "laser_kernels"}
    assert lk.verify(src, tmp_path / "b").ok


def saved(tmp_path, **more):
    tiny_models.llama(**more).save_pretrained(tmp_path / "a")
    reduce(tmp_path / "a", tmp_path / "b", {"rules": [{"targets": "mlp", "rank": 4}]})
    return tmp_path / "b"


def change_config(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


WRONG = {
    "no key": (lambda c: c.pop("laser_kernels"), r"no 'laser_kernels' key.*from_pretrained"),
    "format": (lambda c: c["laser_kernels"].update(format=2), r"format 1"),
    "rank": (lambda c: c["laser_kernels"]["ranks"].update({"model.layers.0.mlp.up_proj": 3}), r"do not fit|mismatched"),
    "missing": (lambda c: c["laser_kernels"]["ranks"].pop("model.layers.0.mlp.up_proj"), r"missing: .*up_proj\.weight"),
    "extra": (
        lambda c: c["laser_kernels"]["ranks"].update({"model.layers.0.self_attn.q_proj": 3}),
        r"missing: .*q_proj\.A.*unexpected: .*q_proj\.weight",
    ),
    "no module": (
        lambda c: c["laser_kernels"]["ranks"].update({"model.layers.9.x": 3}),
        r"model\.layers\.9\.x: .*no such module",
    ),
    "embedding": (
        lambda c: c["laser_kernels"]["ranks"].update({"model.embed_tokens": 3}),
        r"model\.embed_tokens: only a plain torch\.nn\.Linear",
    ),
    "class": (lambda c: c.update(architectures=["Nope"]), r"names the class 'Nope'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_an_error_that_says_so(tmp_path, kind):
    folder = saved(tmp_path)
    change, why = WRONG[kind]
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=why):
        lk.load_factored(folder)


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'laser-kernels\[hf\]'"):
        lk.load_factored(tmp_path)


def test_tied_embeddings_stay_tied(tmp_path):
    loaded = lk.load_factored(saved(tmp_path, tie_word_embeddings=True))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_wrong_sources_and_arguments(tmp_path):
    src = tiny.llama(tmp_path / "a")
    with pytest.raises(ValueError, match=r"output must be one of dense, factored.*'small'"):
        reduce(src, tmp_path / "b", output="small")
    with pytest.raises(ValueError, match="cannot keep a weight with NaN"):
        reduce(src, tmp_path / "b", on_nonfinite="keep")
    taken = {**tiny.llama_tensors(), "model.layers.1.mlp.up_proj.A": tiny.random(2, 2)}
    with pytest.raises(CheckpointError, match=r"up_proj\.A: is in the source"):
        reduce(tiny.write(tmp_path / "c", taken), tmp_path / "b")
    (src / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        reduce(src, tmp_path / "b")
    tensors = tiny.llama_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: holds NaN or Inf") as caught:
        reduce(tiny.write(tmp_path / "d", tensors), tmp_path / "b")
    assert "--on-nonfinite" not in str(caught.value)
    assert not os.path.exists(tmp_path / "b" / "model.safetensors")


def test_the_command_line(tmp_path, capsys):
    src = tiny.llama(tmp_path / "a")
    what = ["--targets", "mlp", "--rank", "6", "--output", "factored"]
    assert main(["plan", str(src), *what, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["plan", str(src), *what]) == 0
    assert "9 tensors become factors" in capsys.readouterr().out
    assert main(["reduce", str(src), str(tmp_path / "b"), *what]) == 0
    out = capsys.readouterr().out
    before, after = plan["parameters"]
    assert f"{after:,} parameters instead of {before:,}" in out
    assert plan["output_bytes"] == (tmp_path / "b" / "model.safetensors").stat().st_size
    assert plan["reduced_bytes"] == 9 * 2 * 6 * 64
    assert main(["verify", str(src), str(tmp_path / "b")]) == 0
    assert main(["reduce", str(src), str(tmp_path / "c"), *what, "--on-nonfinite", "keep"]) == 2
    assert "cannot keep" in capsys.readouterr().err
