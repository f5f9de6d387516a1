"""verify finds every way in which a result can differ from what its report says."""

from __future__ import annotations

import json
import re

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file

from laser_kernels.checkpoint.reduce import reduce_checkpoint
from laser_kernels.checkpoint.verification import numerical_tail, rank_noise, verify
from laser_kernels.errors import CheckpointError

TARGET = "model.layers.1.mlp.up_proj.weight"
OTHER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def pair(tmp_path):
    src = tiny.llama(tmp_path / "a")
    plan = {"rules": [{"targets": "mlp", "layers": "1", "rank": 6}]}
    reduce_checkpoint(src, tmp_path / "b", plan, progress=lambda *_: None)
    return src, tmp_path / "b"


def change_tensor(folder, name, change) -> None:
    path = folder / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def change_report(folder, change) -> None:
    path = folder / "laser_report.json"
    report = json.loads(path.read_text())
    change({row["name"]: row for row in report["rows"]}, report)
    path.write_text(json.dumps(report))


def nudge(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(torch.int16)[0, 0] ^= 1
    return tensor


def test_a_fresh_result_is_as_reported(pair):
    result = verify(*pair)
    assert result.ok and result.differences == () and (result.reduced, result.untouched) == (3, 23)


CHANGES = {
    "untouched bit": (lambda d: change_tensor(d, OTHER, nudge), rf"{OTHER}: is not reduced"),
    "not reduced": (lambda d: change_tensor(d, TARGET, lambda t: tiny.random(*t.shape)), rf"{TARGET}: its residual"),
    "rank too high": (lambda d: change_report(d, lambda rows, _: rows[TARGET].update(rank=5)), TARGET),
    "residual": (
        lambda d: change_report(d, lambda rows, _: rows[TARGET].update(residual=rows[TARGET]["residual"] * 1.002)),
        rf"{TARGET}: its residual",
    ),
    "row missing": (lambda d: change_report(d, lambda _, r: r["rows"].pop()), "in the plan, not in the report"),
    "row added": (
        lambda d: change_report(d, lambda rows, r: r["rows"].append({**rows[TARGET], "name": "x"})),
        "x: is in the report, not in its plan",
    ),
    "tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), r"tokenizer\.json: differs"),
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json: is missing"),
    "no card": (lambda d: (d / "README.md").unlink(), r"README\.md: is missing"),
    "unfinished": (lambda d: (d / ".laser_resume.jsonl").write_text(""), "is unfinished"),
    "partial": (lambda d: (d / ".x.safetensors.partial").write_text(""), "is unfinished"),
    "shape": (lambda d: change_tensor(d, OTHER, lambda t: t[:, :-1].contiguous()), OTHER),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_difference_is_found_and_named(pair, kind):
    change, why = CHANGES[kind]
    change(pair[1])
    result = verify(*pair)
    assert not result.ok
    assert re.search(why, result.differences[0])
    assert len(result.differences) == (2 if kind == "not reduced" else 1)  # its rank is another difference


def test_a_higher_rank_than_the_plan_is_found(pair):
    src, dst = pair
    weight = load_file(src / "model.safetensors")[TARGET].double()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    higher = ((u[:, :7] * s[:7]) @ vh[:7]).bfloat16()
    change_tensor(dst, TARGET, lambda _: higher)
    residual = (weight - higher.double()).norm().item()
    change_report(dst, lambda rows, _: rows[TARGET].update(residual=residual))
    result = verify(src, dst)
    assert len(result.differences) == 1 and "rank is above the reported 6" in result.differences[0]


def test_a_folder_without_report_is_an_error(pair):
    src, dst = pair
    (dst / "laser_report.json").unlink()
    with pytest.raises(CheckpointError, match=r"laser_report\.json"):
        verify(src, dst)
    (dst / "laser_report.json").write_text('{"rows": []}')
    with pytest.raises(CheckpointError, match="no report"):
        verify(src, dst)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_rank_test_passes_rounded_matrices_and_no_higher_rank(dtype, shape):
    u, v = (tiny.random(size, 8, seed=size, dtype=torch.float64) for size in shape)
    torch_dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}[dtype]
    matrix = (u @ v.T).to(torch_dtype).double()
    noise = rank_noise(dtype, matrix.norm().item(), matrix.numel())
    assert numerical_tail(matrix, 8, noise) <= noise
    assert numerical_tail(matrix, 7, noise) > noise
    exact = torch.linalg.svdvals(matrix)[7:].norm().item()
    assert numerical_tail(matrix, 7, noise) == pytest.approx(exact, rel=1e-9)


def test_one_bit_in_a_large_tensor_is_found(tmp_path):
    src = tiny.write(tmp_path / "a", {"w": tiny.random(8, 8), "z": torch.zeros(3000, 3000)}, {})
    plan = {"rules": [{"targets": "re:w", "rank": 1}]}
    reduce_checkpoint(src, tmp_path / "b", plan, progress=lambda *_: None)
    path = tmp_path / "b" / "model.safetensors"
    with open(path, "r+b") as stream:
        place = path.read_bytes().index(bytes(1000)) + 30_000_000
        stream.seek(place)
        stream.write(b"\1")
    assert verify(src, tmp_path / "b").differences == ("z: is not reduced, yet differs from the source",)
