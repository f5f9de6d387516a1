"""Adapter files: PEFT loads what we write, and means the same by it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from laser_kernels.adapters import write_peft
from laser_kernels.errors import CheckpointError
from laser_kernels.testing import gaussian


def pair(out, r, inner, seed=0, dtype=torch.float32):
    return gaussian(out, r, seed, dtype), gaussian(r, inner, seed + 1, dtype)


def test_peft_folder_holds_ranks_alphas_and_names(tmp_path):
    factors = {"a.q_proj": pair(6, 3, 5), "a.v_proj": pair(4, 2, 5, 2)}
    write_peft(tmp_path / "new" / "lora", factors, base_model="some/base", alpha={"a.v_proj": 5.0})
    folder = tmp_path / "new" / "lora"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (3, {"a.q_proj": 3, "a.v_proj": 2})
    assert (config["lora_alpha"], config["alpha_pattern"]) == (5, {"a.q_proj": 3, "a.v_proj": 5})
    assert config["base_model_name_or_path"] == "some/base"
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, (b, a) in factors.items():
        assert torch.equal(tensors.pop(f"base_model.model.{name}.lora_B.weight"), b)
        assert torch.equal(tensors.pop(f"base_model.model.{name}.lora_A.weight"), a)
    assert not tensors
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(7, 6, bias=False)
        self.inner = torch.nn.ModuleDict({"q": torch.nn.Linear(6, 5, bias=False)})
        self.conv = torch.nn.Conv2d(2, 4, (3, 2), bias=False)

    def forward(self, x):
        return self.inner["q"](self.q(x))


def test_peft_loads_the_folder_and_adds_alpha_over_r_times_the_product(tmp_path):
    """Also where one module's name ends with another's, each with its own rank, and for a convolution."""
    peft = pytest.importorskip("peft", reason="the real loader")
    torch.manual_seed(0)
    model = Block()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    conv = (gaussian(4, 2, 7, torch.float32).reshape(4, 2, 1, 1), gaussian(2, 12, 8, torch.float32).reshape(2, 2, 3, 2))
    factors = {"q": pair(6, 4, 7), "inner.q": pair(5, 2, 6, 3), "conv": conv}
    alpha = {"q": 2.0, "conv": 3.5}
    write_peft(tmp_path / "lora", factors, base_model="block", alpha=alpha, task_type=None)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload()
    after = dict(merged.named_parameters())
    for name, (b, a) in factors.items():
        delta = alpha.get(name, a.shape[0]) / a.shape[0] * (b.flatten(1).double() @ a.flatten(1).double())
        got = (after[f"{name}.weight"].double() - before[f"{name}.weight"].double()).flatten(1)
        assert torch.allclose(got, delta, atol=1e-6 * delta.norm()), name


def test_nothing_that_looks_finished_is_left_when_writing_fails(tmp_path, monkeypatch):
    import laser_kernels.adapters.storage as storage

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        write_peft(tmp_path / "lora", {"q": pair(6, 3, 5)}, base_model="b")
    assert list((tmp_path / "lora").iterdir()) == []


@pytest.mark.parametrize(
    "factors, options, message",
    [
        ({}, {}, "factors is empty"),
        ({"q.weight": pair(6, 3, 5)}, {}, "leave out '.weight'"),
        ({"q": (torch.zeros(6, 3), torch.zeros(4, 5))}, {}, r"q: B must be \(out, r\).*got \(6, 3\) and \(4, 5\)"),
        ({"q": (torch.zeros(6, 0), torch.zeros(0, 5))}, {}, "q: B must be"),
        ({"q": pair(6, 3, 5)}, {"alpha": {"k": 1.0}}, "'k', which factors lacks"),
        ({"q": pair(6, 3, 5)}, {"alpha": {"q": float("nan")}}, "must be finite"),
    ],
)
def test_bad_factors_are_refused(tmp_path, factors, options, message):
    with pytest.raises(ValueError, match=message):
        write_peft(tmp_path / "lora", factors, base_model="b", **options)
    assert not (tmp_path / "lora").exists()


def test_an_adapter_is_not_overwritten(tmp_path):
    write_peft(tmp_path / "lora", {"q": pair(6, 3, 5)}, base_model="b")
    with pytest.raises(CheckpointError, match="holds an adapter already"):
        write_peft(tmp_path / "lora", {"q": pair(6, 3, 5)}, base_model="b")
