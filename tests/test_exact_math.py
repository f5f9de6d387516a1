"""laser_kernels/exact_math.py: what a process allows for its float32 products does not reach ours."""

import threading

import pytest
import torch

import laser_kernels as lk
from laser_kernels import testing
from laser_kernels.exact_math import exact_math

CPU = torch.backends.mkldnn.matmul


@pytest.fixture
def medium():
    """What lets CPUs with bfloat16 instructions round operands of float32 products."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("route", ["randomized", "gram_eigh", "spectral"])
def test_results_do_not_depend_on_the_setting(route, medium):
    weight = testing.llm_like(200, 150, seed=1).float()
    allowed = lk.low_rank(weight, 40, tol=1e-4, route=route)
    assert CPU.fp32_precision == "bf16"  # as it was
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(lk.low_rank(weight, 40, tol=1e-4, route=route), allowed)


def test_the_setting_is_off_inside_and_restored(medium):
    with exact_math("cpu"):
        assert CPU.fp32_precision == "ieee"
        with exact_math("cpu"):
            assert CPU.fp32_precision == "ieee"
        assert CPU.fp32_precision == "ieee"
    assert CPU.fp32_precision == "bf16"
    with pytest.raises(RuntimeError, match="within"), exact_math("cpu"):
        raise RuntimeError("within")
    assert CPU.fp32_precision == "bf16"


def test_the_last_of_several_threads_restores_it(medium):
    inside, leave = threading.Event(), threading.Event()

    def work():
        with exact_math("cpu"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with exact_math("cpu"):
        pass
    assert CPU.fp32_precision == "ieee"  # the other one is still inside
    leave.set()
    thread.join()
    assert CPU.fp32_precision == "bf16"


def test_nothing_is_touched_where_products_are_exact():
    before = CPU.fp32_precision
    with exact_math("cpu"), exact_math("meta"):
        assert CPU.fp32_precision == before
    assert CPU.fp32_precision == before
