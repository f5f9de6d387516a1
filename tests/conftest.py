"""Fixtures shared by the suite. Matrix families and tolerance formulas are in laser_kernels.testing."""

import os
import platform
from pathlib import Path

import emulator
import pytest
import torch
from safetensors.torch import load_file

# Where tests that name no device put their tensors. Another device than the CPU must be there, and have our kernels.
DEVICE = os.environ.get("LASER_TEST_DEVICE", "cpu")
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
    from laser_kernels import ops

    assert torch.zeros(1).is_cuda and ops.COMPILED_CUDA, "LASER_TEST_DEVICE=cuda needs a GPU and liblaser_cuda.so"

DATA = Path(__file__).parent / "data"
CONTEXT_LOST = 70


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
    """Where a test has lost the CUDA context, every later one of the process would fail: a worker of pytest-xdist ends,
    and another one takes over."""
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except Exception:
            os._exit(CONTEXT_LOST)


@pytest.fixture(scope="session")
def smollm2():
    """name -> bf16 weight: three matrices of SmolLM2-135M-Instruct (Apache-2.0; tests/data/README.md)."""
    return load_file(DATA / "smollm2.safetensors", device=str(torch.get_default_device()))


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
