"""Fixtures shared by the suite. Matrix families and tolerance formulas are in laser_kernels.testing."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def smollm2():
    """name -> bf16 weight: three matrices of SmolLM2-135M-Instruct (Apache-2.0; tests/data/README.md)."""
    return load_file(DATA / "smollm2.safetensors")
