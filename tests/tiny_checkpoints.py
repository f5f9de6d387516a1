"""Builders of tiny random checkpoint folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def llama_tensors(
    layers: int = 3, width: int = 24, wide: int = 40, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """A llama in miniature: k and v are narrow, as with grouped queries."""
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 3, width),
        "self_attn.v_proj": (width // 3, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (wide, width),
        "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide),
        "input_layernorm": (width,),
    }
    tensors = {"model.embed_tokens.weight": random(50, width, seed=1, dtype=dtype)}
    for layer in range(layers):
        for number, (name, shape) in enumerate(shapes.items()):
            seed = 100 * layer + number + 2
            tensors[f"model.layers.{layer}.{name}.weight"] = random(*shape, seed=seed, dtype=dtype)
    tensors["model.norm.weight"] = random(width, seed=9999, dtype=dtype)
    return tensors


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, object] | None = None,
    shards: int = 1,
) -> Path:
    """A folder with these tensors (in one file or several with an index), config.json, a tokenizer and a card."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "torch_dtype": "bfloat16"} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"tokens": "\u00e9"}', encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: some/base\n---\n# Card\n")
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def llama(folder: Path, shards: int = 1, layers: int = 3) -> Path:
    return write(folder, llama_tensors(layers), shards=shards)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by relative name: what two equal results must share."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_seconds(report: bytes) -> object:
    """A report's JSON without its times, the only part in which two equal runs may differ."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(report))


def same_but_seconds(one: Path, other: Path) -> bool:
    """Whether two results are bitwise the same files, the reports' times apart."""
    left, right = contents(one), contents(other)
    reports = [without_seconds(files.pop("laser_report.json")) for files in (left, right)]
    return left == right and reports[0] == reports[1]
