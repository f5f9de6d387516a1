"""The demonstration checkpoint as the scripts here see it: its 210 matrices by kind, and their
exact singular values (float64 LAPACK), which are computed once and cached beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from demo_model import DEFAULT_OUT, TENSORS_SHA256
from safetensors import safe_open

CACHE = DEFAULT_OUT.parent
SOURCE = DEFAULT_OUT
LAYERS = 30
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = KINDS[:4]


def name_of(layer: int, kind: str) -> str:
    """model.layers.7.self_attn.q_proj.weight"""
    block = "self_attn" if kind in ATTENTION else "mlp"
    return f"model.layers.{layer}.{block}.{kind}.weight"


def kind_of(name: str) -> str:
    """The kind, q_proj to down_proj, of a tensor's name."""
    return next(kind for kind in KINDS if f".{kind}." in name)


def names(layers: Iterable[int] = range(LAYERS)) -> list[str]:
    """Names of the attention and MLP matrices of `layers`."""
    return [name_of(layer, kind) for layer in layers for kind in KINDS]


def load(wanted: Sequence[str], source: Path = SOURCE) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint folder with one safetensors file, as stored (bf16)."""
    file = source / "model.safetensors"
    if not file.exists():
        raise SystemExit(f"{source}: no model.safetensors; run: python bench/demo_model.py")
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in wanted}


def by_shape(matrices: dict[str, torch.Tensor]) -> dict[tuple[int, int], list[str]]:
    """Names grouped by shape: what one batched call can take."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, matrix in matrices.items():
        groups.setdefault((matrix.shape[0], matrix.shape[1]), []).append(name)
    return groups


def spectra(matrices: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Exact singular values in float64 of SmolLM2's named matrices; missing ones are computed and
    added to the cache."""
    file = CACHE / "smollm2-spectra.pt"
    stored = torch.load(file, weights_only=True) if file.exists() else {}
    known = stored.get("sigma", {}) if stored.get("tensors_sha256") == TENSORS_SHA256 else {}
    missing = [name for name in matrices if name not in known]
    for name in missing:
        known[name] = torch.linalg.svdvals(matrices[name].double())
    if missing:
        temporary = file.with_suffix(f".{os.getpid()}")
        torch.save({"tensors_sha256": TENSORS_SHA256, "sigma": known}, temporary)
        temporary.replace(file)
    return {name: known[name] for name in matrices}


def tail(sigma: torch.Tensor, rank: int) -> float:
    """The smallest possible ||A - A_r||: sqrt(sum of sigma_i^2 over i > r)."""
    return math.sqrt(sigma[rank:].square().sum().item())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| (Frobenius), in float64."""
    return torch.linalg.matrix_norm(a.double() - b.double()).item()
