"""laser_kernels/exact_math.py: what a process allows for its float32 products does not reach ours."""

import threading

import pytest
import torch

import laser_kernels as lk
from laser_kernels import ops, testing
from laser_kernels.exact_math import exact_math

CPU = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def untouched():
    yield
    torch.set_float32_matmul_precision("highest")
    CPU.fp32_precision = "none"


@pytest.fixture
def medium():
    """What lets a CPU with products of bfloat16 round the operands of float32 ones."""
    torch.set_float32_matmul_precision("medium")
    assert CPU.fp32_precision == "bf16"


@pytest.fixture
def seen(monkeypatch):
    """The setting during each compiled op that is called."""
    settings = []

    class Watched:
        def __getattr__(self, name):
            settings.append(CPU.fp32_precision)
            return getattr(torch.ops.laser_kernels, name)

    monkeypatch.setattr(ops, "backend", lambda device: Watched())
    return settings


@pytest.mark.parametrize("route", ["randomized", "gram_eigh", "spectral"])
def test_ops_run_with_exact_products(route, medium, seen):
    weight = testing.llm_like(200, 150, seed=1).float()
    allowed = lk.low_rank(weight, 40, tol=1e-4, route=route)
    assert set(seen) == {"ieee"} and CPU.fp32_precision == "bf16"
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


def test_what_was_inherited_stays_inherited():
    with torch.backends.flags(fp32_precision="bf16"):
        assert CPU.fp32_precision == "bf16"
        with exact_math("cpu"):
            assert CPU.fp32_precision == "ieee"
        assert CPU.fp32_precision == "bf16"
    assert CPU.fp32_precision == "none"


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


@pytest.mark.parametrize("choice", ["highest", "medium"])
def test_what_somebody_sets_meanwhile_holds_but_not_for_the_next_call(choice, medium):
    with exact_math("cpu"):
        torch.set_float32_matmul_precision(choice)
        with exact_math("cpu"):
            assert CPU.fp32_precision == "ieee"
    assert torch.get_float32_matmul_precision() == choice  # it raises where old and new settings contradict each other


def test_nothing_is_touched_where_products_are_exact():
    assert CPU.fp32_precision == "none"
    with exact_math("cpu"), exact_math("cuda"), exact_math("meta"):
        assert CPU.fp32_precision == "none"
    assert CPU.fp32_precision == "none"
