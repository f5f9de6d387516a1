"""Finds and loads the compiled op library that the build put beside this file."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent


def load() -> bool:
    """Registers torch.ops.laser_kernels.*. False, with one warning, where the library was not built."""
    library = HERE / "liblaser_cpu.so"
    if not library.exists():
        warnings.warn(
            f"laser_kernels: {library.name} is not beside {HERE}, so the plain torch reference runs: same results, "
            "slower. Build it with  pip install --no-build-isolation .  (needs a C++ compiler and torch>=2.11). If the "
            "package is installed elsewhere, this source folder hides it: start Python from another folder.",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    torch.ops.load_library(library)
    return True


def load_cuda() -> bool:
    """Registers the CUDA kernels of the same ops, where the build made them and torch can run them."""
    library = HERE / "liblaser_cuda.so"
    if torch.version.cuda is None or not library.exists():
        return False
    torch.ops.load_library(library)
    return True


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products."""
    try:
        core = importlib.import_module("laser_kernels._core")
    except ImportError:  # not built
        return False
    return core.cpu_multiplies_bfloat16
