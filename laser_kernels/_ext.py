"""Finds and loads the compiled op library that the build put beside this file."""

from __future__ import annotations

import ctypes
import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
CPU = HERE / "liblaser_cpu.so"

# What python/products_aten.cpp calls. It is not among the ops that torch promises to keep.
LINEAR = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)


def load() -> bool:
    """Registers torch.ops.laser_kernels.*. False, with one warning, where the library was not built."""
    if not CPU.exists():
        warnings.warn(
            f"laser_kernels: {CPU.name} is not beside {HERE}, so the plain torch reference runs: same results, "
            "slower. Build it with  pip install --no-build-isolation .  (needs a C++ compiler and torch>=2.11). If the "
            "package is installed elsewhere, this source folder hides it: start Python from another folder.",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    torch.ops.load_library(CPU)
    multiply_by_onednn(prefers_onednn())
    return True


def has_onednn() -> bool:
    """Whether this torch has oneDNN's float32 product, as python/products_aten.cpp calls it."""
    try:
        return str(torch.ops.mkldnn._linear_pointwise.default._schema) == LINEAR
    except AttributeError:
        return False


def prefers_onednn() -> bool:
    """Whether large float32 products are faster by oneDNN than by MKL on this CPU (DEVNOTES.md, "CPU schedule")."""
    return _core("cpu_prefers_onednn", False) and has_onednn()


def multiply_by_onednn(yes: bool) -> None:
    """From now on, whether large float32 products on the CPU are oneDNN's or MKL's. Bits differ, nothing else."""
    ctypes.CDLL(str(CPU)).laser_multiply_by_onednn(int(yes))


def load_cuda() -> bool:
    """Registers the CUDA kernels of the same ops, where the build made them and torch can run them."""
    library = HERE / "liblaser_cuda.so"
    if torch.version.cuda is None or not library.exists():
        return False
    torch.ops.load_library(library)
    return True


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products."""
    return _core("cpu_multiplies_bfloat16", False)


def _core(fact: str, otherwise: Any) -> Any:
    """A fact that the pybind11 module holds; `otherwise` where it was not built."""
    try:
        return getattr(importlib.import_module("laser_kernels._core"), fact)
    except ImportError:
        return otherwise
