"""reduce --output lora: the adapter on the source's weights is the reduction, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import tiny_models
import torch
from safetensors.torch import load_file

import laser_kernels as lk
from laser_kernels.cli import main
from laser_kernels.errors import CheckpointError
from laser_kernels.testing import optimal_residual, residual, residual_bound

U = 2.0**-8  # bfloat16
ADAPTER = "adapter_model.safetensors"


def to_lora(src, dst, rank, targets="mlp", **options):
    return lk.reduce_to_lora(
        src, dst, {"rules": [{"targets": targets, "rank": rank}]}, progress=lambda *_: None, **options
    )


def pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    tensors = load_file(folder / ADAPTER)
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    return {n: tuple(tensors[f"base_model.model.{n}.lora_{x}.weight"].double() for x in "BA") for n in names}


def moved(b: torch.Tensor, a: torch.Tensor) -> float:
    """What rounding both factors to bfloat16 may move their product."""
    return (2 * U + U * U) * (b.abs() @ a.abs()).norm().item() / (1 - U) ** 2


def test_the_difference_added_to_the_weights_is_the_optimal_reduction(tmp_path):
    src = tiny.llama(tmp_path / "a", shards=2)
    report = to_lora(src, tmp_path / "b", 20)
    weights = {n: t for path in src.glob("*.safetensors") for n, t in load_file(path).items()}
    found = pairs(tmp_path / "b")
    assert {f"{name}.weight" for name in found} == {row.name for row in report.rows} and len(found) == 9
    for row in report.rows:
        (b, a), weight = found[row.name.removesuffix(".weight")], weights[row.name].double()
        assert (b.shape, a.shape) == ((weight.shape[0], 4), (4, weight.shape[1]))  # 24 - 20
        best = lk.low_rank(weight, 20, tol=0)
        assert residual(weight + b @ a, best) <= moved(b, a) + 1e-5 * weight.norm().item()
        assert row.residual == pytest.approx((b @ a).norm().item(), rel=1e-9)
        assert row.residual - row.rounding == pytest.approx(optimal_residual(weight, 20), rel=1e-5)
        assert (row.rank, row.parameters) == (20, (960, 4 * 64))
    assert report.sizes["parameters"] == [9 * 960, 9 * 256] and report.sizes["bytes"] == [9 * 1920, 9 * 512]
    assert lk.Report.load(tmp_path / "b" / "laser_report.json") == report


def test_the_factors_are_those_of_the_factored_output(tmp_path):
    src = tiny.llama(tmp_path / "a")
    to_lora(src, tmp_path / "b", 5, kind="factors", seed=3)
    plan = {"rules": [{"targets": "mlp", "rank": 5}]}
    lk.reduce_checkpoint(src, tmp_path / "c", plan, output="factored", seed=3, progress=lambda *_: None)
    factored = load_file(tmp_path / "c" / "model.safetensors")
    for name, (b, a) in pairs(tmp_path / "b").items():
        assert torch.equal(b, factored[f"{name}.B"].double()) and torch.equal(a, factored[f"{name}.A"].double())


def test_conv1d_is_turned_to_what_peft_expects(tmp_path):
    model = tiny_models.gpt2()
    model.save_pretrained(tmp_path / "a")
    to_lora(tmp_path / "a", tmp_path / "b", 4, ["fc_in", "out_proj"], kind="factors")
    found = pairs(tmp_path / "b")
    assert len(found) == 4
    for name, (b, a) in found.items():
        weight = model.get_parameter(f"{name}.weight")  # (in, out)
        assert (b.shape[0], a.shape[1]) == (weight.shape[1], weight.shape[0])
        assert residual(weight, (b @ a).T) <= residual_bound(weight, 4, 1e-3) * (1 + 1e-6)


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gpt2], ids=["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, of PEFT
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT, of GPT-2's Conv1D; it sets it
def test_peft_loads_it_and_the_model_is_the_reduced_one(tmp_path, make):
    peft = pytest.importorskip("peft", reason="loads the adapter: pip install 'laser-kernels[peft]'")
    model = make()
    model.save_pretrained(tmp_path / "a")
    rules = [{"targets": ["out_proj", "fc_in"], "layers": 1, "rank": 20}, {"targets": "fc_out", "rank": 21}]
    plan = {"rules": rules}
    lk.reduce_to_lora(tmp_path / "a", tmp_path / "b", plan, progress=lambda *_: None)
    ids = tiny_models.tokens()
    before = model(ids).logits
    with lk.reduced(model, plan):
        want = model(ids).logits
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "b")
    got = adapted(ids).logits
    assert (want - before).norm() > 100 * (got - want).norm()
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(ids).logits, before)


def test_what_an_adapter_cannot_do_is_refused(tmp_path):
    src = tiny.llama(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"rank 19 holds more numbers than the 24x24 weight.*--output factored"):
        to_lora(src, tmp_path / "b", 5, "out_proj")
    with pytest.raises(
        CheckpointError, match=r"rank 12 holds more numbers than the 24x24 weight: write --output dense"
    ):
        to_lora(src, tmp_path / "b", 12, "out_proj", kind="factors")
    with pytest.raises(CheckpointError, match=r"rank 24 changes nothing"):
        to_lora(src, tmp_path / "b", 24, "out_proj")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: cannot have an adapter: .*leave it out"):
        to_lora(src, tmp_path / "b", 20, "re:embed")
    with pytest.raises(ValueError, match="kind must be one of difference, factors; got 'sum'"):
        to_lora(src, tmp_path / "b", 20, kind="sum")
    tensors = tiny.llama_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    for kind, rank in (("difference", 20), ("factors", 3)):
        with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj\.weight: holds NaN or Inf"):
            to_lora(tiny.write(tmp_path / kind, tensors), tmp_path / "b", rank, kind=kind)
    assert not (tmp_path / "b").exists()


def test_the_command_line(tmp_path, capsys):
    src = tiny.llama(tmp_path / "a")
    what = ["--targets", "fc_in", "--rank", "21", "--output", "lora"]
    assert main(["reduce", str(src), str(tmp_path / "b"), *what]) == 0
    assert "576 parameters instead of 2,880" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "laser_report.json").read_text())["settings"]["lora"] == "difference"
    assert main(["verify", str(src), str(tmp_path / "b")]) == 2
    assert main(["reduce", str(src), str(tmp_path / "c"), *what, "--resume"]) == 2
    assert main(["reduce", str(src), str(tmp_path / "c"), *what[:4], "--lora", "factors"]) == 2
    err = capsys.readouterr().err
    assert "is an adapter" in err and "neither --resume" in err and "add --output lora" in err
