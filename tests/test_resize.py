"""resize_lora: every module's change is the best of its new rank, with the scale it had."""

import json

import pytest
import torch
from safetensors.torch import save_file

import laser_kernels as lk
from laser_kernels.adapters import read_adapter, write_peft
from laser_kernels.errors import CheckpointError
from laser_kernels.lora.resize import resize_lora
from laser_kernels.testing import FLOOR, eps, gaussian, norm, optimal_residual, residual


def change(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


def peft_adapter(path, alpha=None, dtype=torch.float32):
    shapes = {"model.layers.0.q_proj": (20, 6, 15), "model.layers.0.up_proj": (18, 4, 9)}
    factors = {
        name: (gaussian(m, r, i).to(dtype), gaussian(r, n, i + 9).to(dtype))
        for i, (name, (m, r, n)) in enumerate(shapes.items())
    }
    write_peft(path, factors, base_model="some/base", alpha=alpha or {"model.layers.0.q_proj": 3.0})
    return path


def kohya_adapter(path, dtype=torch.float32):
    tensors = {
        "lora_te_q.lora_up.weight": gaussian(10, 4, 1),
        "lora_te_q.lora_down.weight": gaussian(4, 12, 2),
        "lora_unet_conv.lora_up.weight": gaussian(8, 6, 3).reshape(8, 6, 1, 1),
        "lora_unet_conv.lora_down.weight": gaussian(6, 27, 4).reshape(6, 3, 3, 3),
    }
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    alphas = {"lora_te_q.alpha": torch.tensor(2.0), "lora_unet_conv.alpha": torch.tensor(9.0)}
    save_file({**tensors, **alphas}, path, {"ss_network_dim": "4", "ss_network_alpha": "2"})
    return path


ADAPTERS = {"peft": (peft_adapter, ""), "kohya": (kohya_adapter, ".safetensors")}


@pytest.mark.parametrize("split", ["sqrt", "left", "right"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_full_rank_leaves_every_change_as_it_was(tmp_path, kind, split):
    build, suffix = ADAPTERS[kind]
    source = build(tmp_path / f"a{suffix}")
    report = resize_lora(source, tmp_path / f"b{suffix}", 1.0, split=split)
    old, new = read_adapter(source), read_adapter(tmp_path / f"b{suffix}")
    for row in report.rows:
        before, after = old.factors[row.name], new.factors[row.name]
        assert (before.rank, before.kernel, before.B.dtype) == (after.rank, after.kernel, after.B.dtype)
        assert residual(change(before), change(after)) <= FLOOR * eps(torch.float32) * norm(change(before))
        assert (row.energy, row.relative_residual) == (1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_resized_change_is_the_best_of_its_rank_and_keeps_its_scale(tmp_path, kind, dtype):
    build, suffix = ADAPTERS[kind]
    source = build(tmp_path / f"a{suffix}", dtype=dtype)
    report = resize_lora(source, tmp_path / f"b{suffix}", 2)
    old, new = read_adapter(source), read_adapter(tmp_path / f"b{suffix}")
    for row in report.rows:
        before, after = old.factors[row.name], new.factors[row.name]
        assert (row.old_rank, row.rank) == (before.rank, 2) and after.rank == 2 and after.B.dtype == dtype
        assert after.scale == pytest.approx(before.scale)
        delta = change(before)
        best, rounding = optimal_residual(delta, 2), 2 * torch.finfo(dtype).eps * norm(delta)
        assert residual(delta, change(after)) <= best + FLOOR * eps(dtype) * norm(delta) + rounding
        assert row.relative_residual == pytest.approx(best / norm(delta), rel=1e-5)
        assert row.energy == pytest.approx(1 - (best / norm(delta)) ** 2, rel=1e-5)


def test_kohyas_alphas_and_metadata_follow(tmp_path):
    resize_lora(kohya_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", 3, conv_rank=2)
    adapter = read_adapter(tmp_path / "b.safetensors")
    alphas = {name: f.alpha for name, f in adapter.factors.items()}
    assert alphas == {"lora_te_q": 2 / 4 * 3, "lora_unet_conv": 9 / 6 * 2}  # alpha / old rank * new rank
    assert (adapter.settings["ss_network_dim"], adapter.settings["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert adapter.factors["lora_unet_conv"].kernel == (3, 3, 3)


def test_peft_scales_the_resized_folder_as_before(tmp_path):
    """rsLoRA: alpha / sqrt(r). The rest of the configuration, and tensors that are no factors, stay."""
    peft = pytest.importorskip("peft", reason="the real loader")
    model = torch.nn.ModuleDict({"q": torch.nn.Linear(9, 8), "k": torch.nn.Linear(9, 5), "head": torch.nn.Linear(5, 2)})
    config = peft.LoraConfig(
        r=6, lora_alpha=5, rank_pattern={"k": 4}, use_rslora=True, target_modules="(q|k)", init_lora_weights=False,
        modules_to_save=["head"], lora_dropout=0.25,
    )  # fmt: skip
    theirs = peft.PeftModel(model, config)
    theirs.save_pretrained(tmp_path / "a")
    resize_lora(tmp_path / "a", tmp_path / "b", 2)
    kept = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (kept["target_modules"], kept["lora_dropout"], kept["r"]) == ("(q|k)", 0.25, 2)
    plain = torch.nn.ModuleDict({"q": torch.nn.Linear(9, 8), "k": torch.nn.Linear(9, 5), "head": torch.nn.Linear(5, 2)})
    ours = peft.PeftModel.from_pretrained(plain, tmp_path / "b")
    for name in "qk":
        old, new = (m.base_model.model[name].get_delta_weight("default").detach() for m in (theirs, ours))
        best = optimal_residual(old, 2)
        assert residual(old, new) == pytest.approx(best, rel=1e-4)
    saved = [m.base_model.model["head"].modules_to_save["default"].weight for m in (theirs, ours)]
    assert torch.equal(*saved)


def test_ranks_that_a_module_does_not_have_are_noted(tmp_path):
    source = peft_adapter(tmp_path / "a")
    report = resize_lora(source, tmp_path / "b", 5)
    assert [row.rank for row in report.rows] == [5, 4]
    assert report.notes == ("model.layers.0.up_proj has rank 4, less than 5: it keeps it",)


def test_a_threshold_sees_the_change_with_its_scale(tmp_path):
    source = peft_adapter(tmp_path / "a", alpha={"model.layers.0.q_proj": 0.6, "model.layers.0.up_proj": 40.0})
    report = resize_lora(source, tmp_path / "b", lk.Threshold(2.0))
    wanted = [
        max(1, int((torch.linalg.svdvals(change(f)) > 2).sum())) for f in read_adapter(source).factors.values()
    ]  # fmt: skip
    assert [row.rank for row in report.rows] == wanted and wanted[0] < wanted[1]


def test_bad_resizes_are_refused(tmp_path):
    source = peft_adapter(tmp_path / "a")
    for options, error, message in [
        ({"rank": 0}, ValueError, "rank must be in 1"),
        ({"rank": 2, "split": "x"}, ValueError, "split must be one of"),
        ({"rank": 2, "out": source}, CheckpointError, "exists"),
        ({"rank": 2, "source": tmp_path / "none"}, CheckpointError, "does not exist"),
    ]:
        with pytest.raises(error, match=message):
            resize_lora(**{"source": source, "out": tmp_path / "b", **options})
    bad = gaussian(6, 2, 1)
    bad[0, 0] = float("inf")
    write_peft(tmp_path / "inf", {"q": (bad, gaussian(2, 5, 2))}, base_model="b")
    with pytest.raises(CheckpointError, match="q holds NaN or Inf"):
        resize_lora(tmp_path / "inf", tmp_path / "b", 1)
    assert not (tmp_path / "b").exists()
