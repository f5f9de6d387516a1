"""Fixtures shared by the suite. Matrix families and tolerance formulas are in laser_kernels.testing."""

import platform
from pathlib import Path

import emulator
import pytest
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def smollm2():
    """name -> bf16 weight: three matrices of SmolLM2-135M-Instruct (Apache-2.0; tests/data/README.md)."""
    return load_file(DATA / "smollm2.safetensors")


@pytest.fixture(scope="session")
def _emulator():
    if emulator.compiler() is None or platform.machine() != "x86_64":
        pytest.skip("the emulator needs a C++ compiler and an x86-64 processor")
    return emulator.Emulator(emulator.build())


@pytest.fixture(params=emulator.ORDERS, ids=["ascending", "descending", "shuffled"])
def emu(request, _emulator):
    """csrc/cuda under the emulator, in one scheduling order."""
    _emulator.schedule(request.param)
    yield _emulator
    _emulator.schedule(0)
    _emulator.drop_barriers(False)
