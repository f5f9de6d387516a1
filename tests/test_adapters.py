"""Adapter files: PEFT loads what we write, and means the same by it."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from laser_kernels.adapters import Factors, read_adapter, write_adapter, write_peft
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

    def full(_, path, *__):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        write_peft(tmp_path / "lora", {"q": pair(6, 3, 5)}, base_model="b")
    assert list((tmp_path / "lora").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_peft(tmp_path / "file" / "lora", {"q": pair(6, 3, 5)}, base_model="b")


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


def deltas(adapter):
    return {name: f.scale * (f.B.double() @ f.A.double()) for name, f in adapter.factors.items()}


@pytest.mark.parametrize("root", [False, True], ids=["alpha over r", "rslora"])
def test_what_peft_saves_is_read_with_its_scaling_and_written_back_the_same(tmp_path, root):
    peft = pytest.importorskip("peft", reason="the real writer and loader")
    torch.manual_seed(0)
    layers = {"emb": torch.nn.Embedding(11, 6), "q": torch.nn.Linear(7, 6), "k": torch.nn.Linear(7, 5)}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        rank_pattern={"k": 3},
        alpha_pattern={"q": 5},
        target_modules=["emb", "q", "k"],
        use_rslora=root,
        init_lora_weights=False,
    )
    model = peft.PeftModel(torch.nn.ModuleDict(layers), config)
    model.save_pretrained(tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs")
    assert {name: f.rank for name, f in adapter.factors.items()} == {"emb": 4, "q": 4, "k": 3}
    for name, delta in deltas(adapter).items():
        theirs = model.base_model.model[name].get_delta_weight("default").detach().double()
        assert torch.allclose(theirs.mT if name == "emb" else theirs, delta, atol=1e-6 * delta.norm().item()), name
    write_adapter(tmp_path / "ours", adapter)
    again = peft.PeftModel.from_pretrained(torch.nn.ModuleDict(layers), tmp_path / "ours")
    for name in layers:
        one, other = (m.base_model.model[name].get_delta_weight("default") for m in (model, again))
        assert torch.allclose(one, other, atol=1e-6 * one.norm().item()), name


def kohya_file(path, metadata=None, dtype=torch.float16):
    g = gaussian
    tensors = {
        "lora_te_text_q_proj.lora_up.weight": g(10, 4, 1).to(dtype),
        "lora_te_text_q_proj.lora_down.weight": g(4, 12, 2).to(dtype),
        "lora_te_text_q_proj.alpha": torch.tensor(2.0, dtype=dtype),
        "lora_unet_down_0_conv1.lora_down.weight": g(4, 27, 4).reshape(4, 3, 3, 3).to(dtype),
        "lora_unet_down_0_conv1.lora_up.weight": g(8, 4, 3).reshape(8, 4, 1, 1).to(dtype),
        "lora_unet_down_0_conv1.alpha": torch.tensor(2),
        "lora_unet_norm.diff": g(1, 8, 5)[0].to(dtype),
    }
    save_file(tensors, path, metadata)
    return tensors


def test_kohya_file_is_read_and_written_back_the_same(tmp_path):
    tensors = kohya_file(tmp_path / "a.safetensors", {"ss_network_dim": "4", "ss_network_alpha": "2", "mine": "x"})
    adapter = read_adapter(tmp_path / "a.safetensors")
    linear, conv = adapter.factors["lora_te_text_q_proj"], adapter.factors["lora_unet_down_0_conv1"]
    assert (linear.scale, conv.scale, conv.kernel, tuple(conv.A.shape)) == (0.5, 0.5, (3, 3, 3), (4, 27))
    write_adapter(tmp_path / "b.safetensors", adapter)
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == tensors.keys()
    for name, t in tensors.items():
        assert again[name].dtype == t.dtype and torch.equal(again[name], t), name


def test_kohya_metadata_follows_the_factors(tmp_path):
    """The hashes by their definition: SHA-256 of the data, and of 64 KiB after the first MiB of the file."""
    path = tmp_path / "a.safetensors"
    kohya_file(path, {"ss_network_dim": "4", "ss_network_alpha": "2.0", "sshs_model_hash": "old"}, torch.float32)
    adapter = read_adapter(path)
    wide = Factors(gaussian(2000, 300, 1).float(), gaussian(300, 12, 2).float(), 7.0)  # beyond the first MiB
    factors = {**adapter.factors, "lora_te_text_q_proj": wide}
    write_adapter(tmp_path / "b.safetensors", adapter.with_factors(factors))
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("lora_te_text_q_proj.alpha").item() == 7
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    raw = (tmp_path / "b.safetensors").read_bytes()
    assert metadata["sshs_model_hash"] == hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    bare = save(load_file(tmp_path / "b.safetensors"), training)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(bare[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


def test_alpha_is_written_in_a_dtype_that_holds_it(tmp_path):
    path = tmp_path / "a.safetensors"
    kohya_file(path)
    adapter = read_adapter(path)
    third = {name: f._replace(alpha=1 / 3) for name, f in adapter.factors.items()}
    write_adapter(tmp_path / "b.safetensors", adapter.with_factors(third))
    for name, f in read_adapter(tmp_path / "b.safetensors").factors.items():
        assert f.alpha == pytest.approx(1 / 3, rel=1e-7), name
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() is None or "ss_network_dim" not in file.metadata()


def test_a_single_file_without_alphas_has_factor_one(tmp_path):
    tensors = {"transformer.x.lora_B.weight": gaussian(6, 3, 1), "transformer.x.lora_A.weight": gaussian(3, 5, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.factors["transformer.x"].scale == 1
    scaled = adapter.with_factors({"transformer.x": adapter.factors["transformer.x"]._replace(alpha=2.0)})
    with pytest.raises(ValueError, match="no alpha in the file"):
        write_adapter(tmp_path / "b.safetensors", scaled)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"x.lora_up.weight": torch.ones(4, 2)}, "without 'x.lora_down.weight'"),
        ({"x.hada_w1_a": torch.ones(4, 2)}, "holds no LoRA factors.*x.hada_w1_a"),
        (
            {name: torch.ones(2, 2) for name in ("x.lora_up.weight", "x.lora_down.weight", "x.lora_mid.weight")},
            "three factors",
        ),
        ({f"base_model.model.x.lora_{c}.weight": torch.ones(2, 2) for c in "AB"}, "give the folder"),
    ],
)
def test_files_that_mean_something_else_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path / "a.safetensors")


def test_unreadable_places_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_adapter(tmp_path / "none")
    (tmp_path / "text.safetensors").write_text("not a tensor")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_adapter(tmp_path / "text.safetensors")
    folder = tmp_path / "folder"
    write_peft(folder, {"q": pair(6, 3, 5)}, base_model="b")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(CheckpointError, match=r"q has rank 3.* and 4 in"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="peft_type LORA; got 'IA3'"):
        read_adapter(folder)
