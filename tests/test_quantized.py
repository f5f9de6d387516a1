"""Block-scaled fp8 is read and written as bf16; packed weights are refused by name."""

from __future__ import annotations

import json

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file

from laser_kernels.checkpoint.quantized import dequantize
from laser_kernels.checkpoint.reader import Reader
from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.verification import verify
from laser_kernels.checkpoint.work import prepare
from laser_kernels.errors import CheckpointError
from laser_kernels.selection import Plan

FP8 = torch.float8_e4m3fn
CONFIG = {
    "model_type": "deepseek_v3",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
}
PLAN = {"rules": [{"targets": ["fc_in"], "rank": 4}]}


def oracle(weight: torch.Tensor, scale: torch.Tensor, block: int = 128) -> torch.Tensor:
    """The values of a block-scaled weight, one entry's factor at a time, in float64."""
    rows, cols = torch.meshgrid(*(torch.arange(size) // block for size in weight.shape[-2:]), indexing="ij")
    return (weight.double() * scale.double()[..., rows, cols]).to(torch.bfloat16)


def fp8_pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    weight = (tiny.random(*shape, seed=seed, dtype=torch.float32) * 50).to(FP8)
    blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    return weight, tiny.random(*blocks, seed=seed + 1, dtype=torch.float32).abs() * 1e-3 + 1e-4


def deepseek() -> dict[str, torch.Tensor]:
    tensors = {"model.embed_tokens.weight": tiny.random(20, 96)}
    for layer in range(2):
        for number, (name, shape) in enumerate(
            {
                "self_attn.o_proj": (96, 200),
                "mlp.experts.0.gate_proj": (300, 130),
                "mlp.experts.1.gate_proj": (300, 130),
                "mlp.experts.0.down_proj": (130, 300),
            }.items()
        ):
            key = f"model.layers.{layer}.{name}.weight"
            tensors[key], tensors[key + "_scale_inv"] = fp8_pair(*shape, seed=10 * layer + number)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = tiny.random(96, seed=layer)
    return tensors


def reduce(src, dst, plan=PLAN, **options):
    return reduce_checkpoint(src, dst, plan, progress=lambda *_: None, **options)


def tensors_of(folder) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        result.update(load_file(path))
    return result


@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (129, 257), (300, 40)])
def test_dequantized_values_are_those_of_float64(shape):
    weight, scale = fp8_pair(*shape)
    assert torch.equal(dequantize(weight, scale), oracle(weight, scale))


@pytest.mark.parametrize("shards", [1, 3])
def test_an_fp8_checkpoint_becomes_bf16(tmp_path, shards):
    tensors = deepseek()
    src = tiny.write(tmp_path / "a", tensors, CONFIG, shards=shards)
    report = reduce(src, tmp_path / "b")
    after = tensors_of(tmp_path / "b")
    assert set(after) == {name for name in tensors if not name.endswith("_scale_inv")}
    for name, tensor in after.items():
        scaled = name + "_scale_inv" in tensors
        want = oracle(tensors[name], tensors[name + "_scale_inv"]) if scaled else tensors[name]
        assert tensor.dtype == torch.bfloat16
        if "gate_proj" in name:
            sigma = torch.linalg.svdvals(tensor.double())
            assert sigma[4:].norm() < 2**-8 * sigma.norm()
            change = (tensor.double() - want.double()).norm().item()
            assert change == pytest.approx(next(r.residual for r in report.rows if r.name == name), rel=1e-3)
        else:
            assert torch.equal(tensor, want), name
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {"model_type": "deepseek_v3"}
    assert {row.dtype for row in report.rows} == {"BF16"} and len(report.rows) == 4
    if shards > 1:
        index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(after)
        assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in after.values())
        for name, file in index["weight_map"].items():
            assert name in load_file(tmp_path / "b" / file)
    assert verify(src, tmp_path / "b").ok


def test_fused_fp8_experts(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight, scale = fp8_pair(3, 200, 140)
    src = tiny.write(tmp_path / "a", {name: weight, name + "_scale_inv": scale}, CONFIG)
    report = reduce(src, tmp_path / "b", {"rules": [{"targets": "mlp", "rank": 140}]})
    assert [row.index for row in report.rows] == [0, 1, 2]
    after = tensors_of(tmp_path / "b")[name]
    want = oracle(weight, scale)
    assert (after.double() - want.double()).norm() < 0.01 * want.double().norm()
    assert verify(src, tmp_path / "b").ok


def test_a_large_weight_is_converted_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("laser_kernels.checkpoint.pipeline.CONVERT_BYTES", 1)
    tensors = deepseek()
    src = tiny.write(tmp_path / "a", tensors, CONFIG)
    reduce(src, tmp_path / "b")
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    assert torch.equal(tensors_of(tmp_path / "b")[name], oracle(tensors[name], tensors[name + "_scale_inv"]))


def test_a_missing_or_misshapen_factor_is_refused(tmp_path):
    name = "model.layers.0.mlp.experts.0.gate_proj.weight"
    for number, change in enumerate(
        [
            lambda t: t.pop(name + "_scale_inv"),
            lambda t: t.update({name + "_scale_inv": torch.ones(2, 2)}),
            lambda t: t.update({name: tiny.random(300, 130)}),
            lambda t: t.pop("model.layers.1.self_attn.o_proj.weight_scale_inv"),
        ]
    ):
        tensors = deepseek()
        change(tensors)
        src = tiny.write(tmp_path / f"a{number}", tensors, CONFIG)
        with pytest.raises(CheckpointError, match=r"layers.*_scale_inv"):
            reduce(src, tmp_path / "b")
    assert not (tmp_path / "b").exists()


Q = "model.layers.0.self_attn.q_proj"
PACKED = {
    "GPTQ": ({Q + ".qweight": torch.zeros(8, 8, dtype=torch.int32), Q + ".scales": torch.ones(2, 8)}, "gptq"),
    "bitsandbytes 4-bit": (
        {Q + ".weight": torch.zeros(32, 1, dtype=torch.uint8), Q + ".weight.absmax": torch.ones(4)},
        "bitsandbytes",
    ),
    "bitsandbytes 8-bit": (
        {Q + ".weight": torch.zeros(8, 8, dtype=torch.int8), Q + ".SCB": torch.ones(8)},
        "bitsandbytes",
    ),
    "compressed-tensors": ({Q + ".weight_packed": torch.zeros(8, 1, dtype=torch.int32)}, "compressed-tensors"),
    "F8_E4M3": ({Q + ".weight": torch.zeros(8, 8).to(FP8), Q + ".weight_scale": torch.ones(1)}, "fbgemm_fp8"),
    "by quark": ({Q + ".weight": torch.zeros(8, 4, dtype=torch.uint8)}, "quark"),
}


@pytest.mark.parametrize("method", PACKED)
def test_packed_weights_are_refused_by_name_where_they_are_asked_for(tmp_path, method):
    packed, quant_method = PACKED[method]
    tensors = {**packed, "model.layers.0.mlp.up_proj.weight": tiny.random(8, 8)}
    config = {"model_type": "llama", "quantization_config": {"quant_method": quant_method}}
    src = tiny.write(tmp_path / "a", tensors, config)
    with pytest.raises(CheckpointError, match=f"{Q}.*{method}"):
        reduce(src, tmp_path / "b", {"rules": [{"targets": "attn", "rank": 2}]})
    report = reduce(src, tmp_path / "b", {"rules": [{"targets": "fc_up", "rank": 2}]})
    assert len(report.rows) == 1
    assert (tmp_path / "b" / "config.json").read_bytes() == (src / "config.json").read_bytes()
    assert verify(src, tmp_path / "b").ok


def test_mxfp4_experts_are_refused_and_the_rest_can_be_reduced(tmp_path):
    base = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        base + "_blocks": torch.zeros(2, 8, 1, 16, dtype=torch.uint8),
        base + "_scales": torch.zeros(2, 8, 1, dtype=torch.uint8),
        Q + ".weight": tiny.random(8, 8),
    }
    src = tiny.write(
        tmp_path / "a", tensors, {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    )
    with Reader(src) as reader:
        with pytest.raises(CheckpointError, match=rf"{base}.*MXFP4"):
            prepare(reader, Plan.from_dict({"rules": [{"targets": "mlp", "rank": 2}]}))
        work = prepare(reader, Plan.from_dict({"rules": [{"targets": "q_proj", "rank": 2}]}))
    assert [target.name for target in work.selection.targets] == [Q + ".weight"]
