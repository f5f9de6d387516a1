"""`laser-kernels scan`: what it looks at, what it skips and says, and the files it writes."""

from __future__ import annotations

import csv
import json
import math

import pytest
import tiny_checkpoints as tiny
import torch
import yaml

import laser_kernels as lk
from laser_kernels.cli import main
from laser_kernels.errors import CheckpointError
from laser_kernels.scan import Row, scan
from laser_kernels.scan.files import FIELDS, slug, unfrozen


def test_every_matrix_once(tmp_path):
    tensors = tiny.llama_tensors(layers=2)
    steps = []
    rows = scan(tiny.write(tmp_path / "a", tensors, shards=2), progress=lambda *step: steps.append(step))
    assert {row.tensor for row in rows} == set(tensors)
    for row in rows:
        if tensors[row.tensor].dim() == 2:
            assert row.stats == lk.spectrum_stats(tensors[row.tensor]) and row.why == ""
        else:
            assert row.stats is None and row.why.startswith("no floating matrix: BF16 24")
    assert steps[-1][0] == steps[-1][1] == sum(t.nbytes for t in tensors.values())


def test_names_and_types_are_those_of_spectrum():
    parts = {
        "model.layers.12.mlp.down_proj.weight": ("model.layers.12.mlp.down_proj", "mlp.down_proj", 12),
        "model.layers.3.mlp.experts.7.w1.weight": ("model.layers.3.mlp.experts.7.w1", "mlp.experts.7.w1", 3),
        "lm_head.weight": ("lm_head", "lm_head", None),
        "h.0.attn.c_attn.weight": ("h.0.attn.c_attn", "attn.c_attn", 0),
    }
    assert {t: (r.name, r.type, r.layer) for t in parts for r in [Row(t, None)]} == parts
    assert Row("a.0.experts.up", 3).name == "a.0.experts.up[3]" and slug("org/my_model") == "org-my-model"


def test_experts_targets_and_layers(tmp_path):
    stack = torch.stack([tiny.random(12, 8, seed=e) for e in range(3)])
    tensors = {**tiny.llama_tensors(layers=3), "model.layers.1.mlp.experts.down_proj": stack}
    src = tiny.write(tmp_path / "a", tensors)
    rows = scan(src, targets="re:experts")
    assert [row.name for row in rows] == [f"model.layers.1.mlp.experts.down_proj[{e}]" for e in range(3)]
    assert [row.stats for row in rows] == lk.spectrum_stats(list(stack))
    assert {row.layer for row in scan(src, targets="attn", layers="1-2")} == {1, 2}
    with pytest.raises(CheckpointError, match="matches nothing"):
        scan(src, targets="re:nothing")


def test_what_is_skipped_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = tiny.llama_tensors(layers=2)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = math.inf
    tensors["model.layers.1.mlp.up_proj.weight"].zero_()
    tensors["model.layers.1.packed.qweight"] = torch.ones(4, 4, dtype=torch.int32)
    tensors["model.layers.1.packed.scales"] = torch.ones(4, 4)
    tensors["model.layers.1.conv.weight"] = torch.ones(2, 2, 3, 3)
    src = tiny.write(tmp_path / "my_model", tensors)
    assert main(["scan", str(src), "--csv"]) == 0
    out, err = capsys.readouterr()
    assert "skipped 1 (holds NaN or Inf): model.layers.0.mlp.up_proj" in err
    assert "skipped 1 (no finite ratio" in err and "model.layers.1.mlp.up_proj" in err
    assert "skipped 2 (stored quantized" in err and "BF16 24): model.layers.0.input_layernorm" in err
    assert "no floating matrix: F32 2x2x3x3" in err
    assert "mlp.down_proj" in out and "snr_results_my-model.json" in out
    found = json.loads((tmp_path / "snr_results_my-model.json").read_text(), parse_constant=pytest.fail)
    assert "model.layers.0.mlp.up_proj" not in found and len(found) == 1 + 14 - 2
    with open(tmp_path / "snr_results_my-model.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["model.layers.0.mlp.up_proj"]["skipped"] == "holds NaN or Inf"
    assert rows["model.layers.1.mlp.up_proj"]["sigma_1"] == "0.0"


def test_files(tmp_path, capsys):
    tensors = tiny.llama_tensors(layers=5)
    src = tiny.write(tmp_path / "a", tensors)
    out = tmp_path / "new" / "s.json"
    options = [
        "--name",
        "org/model_x",
        "--out",
        str(out),
        "--yaml",
        "--top-percent",
        "40",
        "--csv",
        str(tmp_path / "t.csv"),
    ]
    assert main(["scan", str(src), "--targets", "mlp", *options]) == 0
    capsys.readouterr()
    found = json.loads(out.read_text())
    assert len(found) == 15 and all(set(entry) == {"snr", "type"} for entry in found.values())
    for name, entry in found.items():
        assert entry["snr"] == lk.spectrum_stats(tensors[name + ".weight"]).snr_spectrum
        assert name.endswith(entry["type"])
    chosen = yaml.safe_load((tmp_path / "new" / "s_unfrozenparameters_40percent.yaml").read_text())[
        "unfrozen_parameters"
    ]
    assert chosen[:2] == ["^lm_head.weight$", "^model.embed_tokens.weight$"] and len(chosen) == 2 + 3 * 2
    for kind in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        of_kind = {name: entry["snr"] for name, entry in found.items() if entry["type"] == kind}
        kept = [name for name in chosen if name in of_kind]
        assert kept == sorted(of_kind, key=of_kind.get, reverse=True)[:2]
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    for row in rows:
        stats = lk.spectrum_stats(tensors[row["name"] + ".weight"])
        assert [float(row[field]) for field in FIELDS] == [float(getattr(stats, field)) for field in FIELDS]
        assert int(row["rank_at_0.9_of_energy"]) == dict(stats.energy_ranks)[0.9]
    assert unfrozen([], 50) == {}


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need the extra 'plot'")
    src = tiny.llama(tmp_path / "a", layers=2)
    picture = tmp_path / "p.png"
    assert main(["scan", str(src), "--out", str(tmp_path / "s.json"), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out


def test_bad_use(tmp_path, capsys, monkeypatch):
    src = tiny.llama(tmp_path / "a", layers=1)
    for options, words in (
        (["--top-percent", "101"], "--top-percent must be in 0..100; got 101"),
        (["--out", str(tmp_path)], "Is a directory"),
        (["--targets", "mpl"], "did you mean 'mlp'"),
    ):
        assert main(["scan", str(src), *options]) == 2
        assert words in capsys.readouterr().err
    assert main(["scan", str(tmp_path / "none")]) == 2
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["scan", str(src), "--out", str(tmp_path / "s.json"), "--plot"]) == 2
    assert "pip install 'laser-kernels[plot]'" in capsys.readouterr().err and not (tmp_path / "s.json").exists()
