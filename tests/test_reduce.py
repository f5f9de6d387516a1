"""reduce_checkpoint: what is changed, what is not, what is left behind when it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file

import laser_kernels as lk
from laser_kernels.checkpoint.layout import BATCHING, Matrix, group_bytes
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.report import Report, front_matter
from laser_kernels.checkpoint.verification import verify
from laser_kernels.checkpoint.work import prepare
from laser_kernels.errors import CheckpointError
from laser_kernels.plan import Plan

PLAN = {"rules": [{"targets": ["mlp", "q_proj"], "layers": "1-2", "rank": 0.25}]}
REDUCED = {
    f"model.layers.{layer}.{name}.weight"
    for layer in (1, 2)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
}


def tensors_of(folder) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        result.update(load_file(path))
    return result


def reduce(src, dst, plan=PLAN, **options) -> Report:
    return reduce_checkpoint(src, dst, plan, progress=lambda *_: None, **options)


@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_targets_change(tmp_path, shards):
    src = tiny.llama(tmp_path / "a", shards=shards)
    report = reduce(src, tmp_path / "b")
    before, after = tensors_of(src), tensors_of(tmp_path / "b")
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name not in REDUCED), name
        if name in REDUCED:
            sigma = torch.linalg.svdvals(after[name].double())
            assert sigma[6:].norm() < 2**-8 * sigma.norm() < sigma[5]
    assert {row.name for row in report.rows} == REDUCED
    files = {path.name for path in (tmp_path / "b").iterdir()}
    assert files == {path.name for path in src.iterdir()} | {"laser_report.json"}
    for path in src.glob("*.safetensors"):
        want, got = path.read_bytes(), (tmp_path / "b" / path.name).read_bytes()
        size = 8 + int.from_bytes(want[:8], "little")
        assert got[:size] == want[:size] and len(got) == len(want)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        if (src / name).exists():
            assert (src / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_matrices_are_what_low_rank_gives_with_the_key_of_their_name(tmp_path):
    src = tiny.llama(tmp_path / "a")
    name = "model.layers.1.mlp.down_proj.weight"
    reduce(src, tmp_path / "b", {"rules": [{"targets": ["re:1.mlp.down"], "rank": 5}]}, seed=3)
    key = Matrix(name, None, 0, 0, 0, 1).key
    want = lk.low_rank(load_file(src / "model.safetensors")[name][None], 5, seed=3, key=[key])[0]
    assert torch.equal(tensors_of(tmp_path / "b")[name], want)


def test_keys_are_fixed_for_all_time():
    assert Matrix("model.layers.0.mlp.up_proj.weight", None, 0, 0, 0, 1).key == KEYS[0]
    assert Matrix("experts.down_proj", 3, 0, 0, 0, 1).key == KEYS[1]


KEYS = (1886360483243522290, 7058014709790365136)


def test_the_report_has_one_row_per_matrix(tmp_path):
    src = tiny.llama(tmp_path / "a")
    report = reduce(src, tmp_path / "b", tol=1e-2, seed=5)
    stored = json.loads((tmp_path / "b" / "laser_report.json").read_text())
    assert Report.load(tmp_path / "b" / "laser_report.json") == report
    fields = (
        "name index shape dtype rank route residual relative_residual excess_bound rounding iterations status seconds"
        " factored parameters bytes"
    )
    before, after = tensors_of(src), tensors_of(tmp_path / "b")
    for row in stored["rows"]:
        assert list(row) == fields.split()
        change = (before[row["name"]].double() - after[row["name"]].double()).norm().item()
        assert row["residual"] == pytest.approx(change, rel=1e-3)
        assert row["relative_residual"] == pytest.approx(change / before[row["name"]].double().norm().item(), rel=1e-3)
        assert (row["rank"], row["dtype"], row["index"]) == (6, "BF16", None)
        assert row["shape"] == list(before[row["name"]].shape)
        assert (row["factored"], row["parameters"], row["bytes"]) == (False, [960] * 2, [1920] * 2) or "q_proj" in row[
            "name"
        ]
    assert stored["sizes"]["parameters"] == [sum(t.numel() for t in before.values())] * 2
    assert stored["sizes"]["bytes"] == [
        (folder / "model.safetensors").stat().st_size for folder in (src, tmp_path / "b")
    ]
    assert stored["settings"]["tol"] == 1e-2 and stored["settings"]["seed"] == 5
    assert stored["plan"] == {"rules": [{"targets": ["mlp", "q_proj"], "layers": "1-2", "rank": 0.25}]}
    assert stored["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(stored)


def test_the_card_keeps_licence_and_origin(tmp_path):
    reduce(tiny.llama(tmp_path / "a"), tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text()
    assert front_matter(card)["license"] == "apache-2.0"
    assert front_matter(card)["base_model"] == "some/base"
    assert "laser" in front_matter(card)["tags"]
    assert "| 1 | `mlp`, `q_proj` | 1-2 | 0.25 |" in card and "matrices reduced: 8" in card


@pytest.mark.parametrize("card", ["", "---\nlicense: [", "---\n- a\n---\n", "no head"])
def test_a_card_without_a_head_is_no_trouble(card):
    assert front_matter(card) == {}


def test_fused_experts_are_reduced_one_by_one(tmp_path):
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": tiny.random(8, 8, seed=1),
        "model.layers.0.mlp.experts.gate_up_proj": tiny.random(4, 16, 8, seed=2),
        "model.layers.0.mlp.gate.weight": tiny.random(4, 8, seed=3),
    }
    src = tiny.write(tmp_path / "a", tensors, {"model_type": "qwen3_moe"})
    report = reduce(src, tmp_path / "b", {"rules": [{"targets": "mlp", "rank": 2}]})
    assert [(row.name, row.index, row.shape) for row in report.rows] == [
        ("model.layers.0.mlp.experts.gate_up_proj", expert, (16, 8)) for expert in range(4)
    ]
    after = tensors_of(tmp_path / "b")
    assert torch.equal(after["model.layers.0.mlp.gate.weight"], tensors["model.layers.0.mlp.gate.weight"])
    sigma = torch.linalg.svdvals(after["model.layers.0.mlp.experts.gate_up_proj"].double())
    assert (sigma[:, 2:].norm(dim=1) < 2**-8 * sigma.norm(dim=1)).all()
    assert verify(src, tmp_path / "b").ok


def test_every_dtype_passes_untouched_and_float_dtypes_are_reduced(tmp_path):
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    others = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn)
    tensors = {f"layers.0.{dtype}": tiny.random(12, 8, seed=3).to(dtype) for dtype in floats}
    tensors |= {f"other.{dtype}": tiny.random(3, 5, seed=4).to(dtype) for dtype in others}
    tensors |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.0)}
    src = tiny.write(tmp_path / "a", tensors, {})
    report = reduce(src, tmp_path / "b", {"rules": [{"targets": ["re:^layers"], "rank": 3}]})
    after = tensors_of(tmp_path / "b")
    assert sorted(row.dtype for row in report.rows) == ["BF16", "F16", "F32", "F64"]
    for name in [name for name in tensors if not name.startswith("layers")]:
        assert after[name].dtype == tensors[name].dtype and torch.equal(after[name].float(), tensors[name].float()), (
            name
        )
    assert verify(src, tmp_path / "b").ok


def test_an_unknown_dtype_is_copied(tmp_path):
    src = tiny.write(tmp_path / "a", {"w": tiny.random(8, 8), "x": torch.arange(4, dtype=torch.uint8)}, {})
    path = src / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"Z9"'))
    reduce(src, tmp_path / "b", {"rules": [{"targets": "re:^w", "rank": 1}]})
    got = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert got[-4:] == bytes(range(4)) and got != path.read_bytes() and b'"Z9"' in got


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(tmp_path, bad):
    tensors = tiny.llama_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = bad
    src = tiny.write(tmp_path / "a", tensors)
    with pytest.raises(CheckpointError, match=rf"{name}.*NaN or Inf.*keep"):
        reduce(src, tmp_path / "b")
    assert not (tmp_path / "b" / "model.safetensors").exists()
    report = reduce(src, tmp_path / "b", on_nonfinite="keep", resume=True)
    kept = [row for row in report.rows if row.status == "kept_nonfinite"]
    assert [(row.name, row.rank, row.residual) for row in kept] == [(name, None, None)]
    after = tensors_of(tmp_path / "b")
    assert torch.equal(after[name].view(torch.int16), tensors[name].view(torch.int16))
    assert all(not torch.equal(after[other], tensors[other]) for other in REDUCED - {name})
    assert verify(src, tmp_path / "b").ok
    with pytest.raises(CheckpointError, match=name):
        reduce(src, tmp_path / "b", on_nonfinite="error", resume=True)


def test_a_reduced_folder_loads_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3},
        **{"num_key_value_heads": 1, "vocab_size": 50, "tie_word_embeddings": True},
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "a")
    reduce(tmp_path / "a", tmp_path / "b", {"rules": [{"targets": "all", "rank": 0.5}]})
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b")
    weight = again.model.layers[1].mlp.gate_proj.weight
    assert torch.linalg.matrix_rank(weight.double(), rtol=1e-5) == 12


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda src: src, "source itself"),
        (lambda src: (src.parent / "link").symlink_to(src) or src.parent / "link", "source itself"),
        (lambda src: src / "out", "inside the source"),
        (
            lambda src: (src.parent / "full").mkdir() or (src.parent / "full" / "x").touch() or src.parent / "full",
            "not empty",
        ),
        (lambda src: (src.parent / "file").write_text("") is None or src.parent / "file", "not a folder"),
    ],
)
def test_a_wrong_destination_is_refused(tmp_path, make, why):
    src = tiny.llama(tmp_path / "a")
    before = tiny.contents(tmp_path)
    dst = make(src)
    with pytest.raises(CheckpointError, match=why):
        reduce(src, dst)
    with pytest.raises(CheckpointError):
        reduce(src, dst, resume=True)
    after = tiny.contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_wrong_plan_leaves_no_destination(tmp_path):
    src = tiny.llama(tmp_path / "a")
    for plan in ({"rules": [{"targets": "re:nope", "rank": 2}]}, {"rules": [{"targets": "mlp", "rank": 900}]}):
        with pytest.raises(CheckpointError):
            reduce(src, tmp_path / "b", plan)
    for options in ({"tol": -1.0}, {"seed": -1}, {"device": "tpu"}, {"device": "cuda:0,cuda:1"}, {"on_nonfinite": "x"}):
        with pytest.raises(ValueError):
            reduce(src, tmp_path / "b", **options)
    with pytest.raises(CheckpointError, match="KiB, more than the memory budget of 1000 B"):
        reduce(src, tmp_path / "b", memory_budget=1000)
    assert not (tmp_path / "b").exists()


def looks_finished(folder) -> bool:
    return (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("call", range(0, 12, 2))
@pytest.mark.parametrize("shards", [1, 3])
def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, monkeypatch, shards, call):
    src = tiny.llama(tmp_path / "a", shards=shards)
    reduce(src, tmp_path / "whole")
    real, calls = os.pwrite, iter(range(10**6))

    def full(*arguments):
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume"):
        reduce(src, tmp_path / "b")
    assert not looks_finished(tmp_path / "b")
    monkeypatch.undo()
    reduce(src, tmp_path / "b", resume=True)
    assert tiny.same_but_seconds(tmp_path / "whole", tmp_path / "b")


def test_a_file_size_limit_is_an_error_not_a_crash(tmp_path):
    src = tiny.llama(tmp_path / "a")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from laser_kernels.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["reduce", str(src), str(tmp_path / "b"), "--targets", "all", "--rank", "2"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "laser-kernels: error:" in done.stderr and "Traceback" not in done.stderr
    assert not looks_finished(tmp_path / "b")


def test_groups_follow_the_budget_only(tmp_path):
    src = tiny.llama(tmp_path / "a", layers=6)
    sizes = []

    def spy(done, total, name):
        sizes.append(name)

    plan = {"rules": [{"targets": ["fc_in"], "rank": 3}]}
    reduce_checkpoint(src, tmp_path / "b", plan, progress=spy, memory_budget=16 * 4000)
    assert group_bytes(16 * 4000) == 4000  # two matrices of 1920 bytes in a call
    assert sum("gate_proj" in name for name in sizes) == 3


def test_a_gpu_gets_larger_batches_than_a_cpu(tmp_path):
    """Layouts only: 48 matrices of 4 MiB. By default 16 share a call on a CPU, all on a GPU; budgets bound both."""
    path = tmp_path / "a"
    path.mkdir()
    tensors = {f"layers.{i}.w": torch.zeros(2048, 1024, dtype=torch.bfloat16) for i in range(48)}
    save_file(tensors, path / "model.safetensors")
    plan = Plan.from_dict({"rules": [{"targets": "re:w", "rank": 8}]})
    with Reader(path) as reader:

        def sizes(device, budget=None):
            workers = 1 if device == "cpu" else 2 * len(device.split(","))
            work = prepare(reader, plan, budget, device=device.split(",")[0], workers=workers)
            return [len(group.matrices) for group in work.groups]

        assert sizes("cpu") == [16] * 3 and sizes("cuda:1") == [48]
        assert sizes("cpu", 256 << 20) == [4] * 12 and sizes("cuda", 256 << 20) == [8] * 6
        assert sizes("cuda:0,cuda:1,cuda:2", 256 << 20) == [4] * 12  # each worker its batch


def test_ranks_mix_where_calls_are_shared(tmp_path, monkeypatch):
    """A plan of two ranks and a rule of each matrix's own: on a device whose batches mix, one group of each shape; the same
    ranks and files of as good matrices, and factors never mix."""
    src = tiny.llama(tmp_path / "a", layers=4)
    plan = {
        "rules": [
            {"targets": "mlp", "layers": "0-1", "rank": 3},
            {"targets": "mlp", "layers": "2", "rank": 5},
            {"targets": "mlp", "layers": "3", "rank": "energy:share=0.5"},
        ]
    }
    reports, groups = [], {}
    for mixed in (False, True):
        monkeypatch.setitem(BATCHING, "cpu", BATCHING["cpu"]._replace(mixed=mixed))
        with Reader(src) as reader:
            for output in ("dense", "factored"):
                groups[mixed, output] = list(prepare(reader, Plan.from_dict(plan), output=output).groups)
        reports.append(reduce(src, tmp_path / str(mixed), plan))
        assert verify(src, tmp_path / str(mixed)).ok
    apart = {(g.rows, g.cols, rank) for g in groups[False, "dense"] for rank in g.ranks}
    assert len(groups[False, "dense"]) == len(apart) and len(groups[True, "dense"]) == len(
        {shape[:2] for shape in apart}
    )
    assert all(len(set(g.ranks)) == 1 for g in groups[True, "factored"] if g.factored)
    assert len(reports[0].rows) == 12 and len({row.rank for row in reports[0].rows}) >= 3
    for one, other in zip(*(report.rows for report in reports), strict=True):
        assert (one.name, one.rank, one.status) == (other.name, other.rank, other.status)
        assert one.residual == pytest.approx(other.residual, rel=2e-3)
        assert one.rank == next(m.rank for g in groups[True, "dense"] for m in g.matrices if m.name == one.name)


def test_a_single_file_of_another_name(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    save_file({"layers.0.w": tiny.random(8, 8)}, folder / "adapter.safetensors")
    report = reduce(folder, tmp_path / "b", {"rules": [{"targets": "re:w", "rank": 1}]})
    assert len(report.rows) == 1 and verify(folder, tmp_path / "b").ok
