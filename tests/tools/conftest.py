"""What the tests of unmodified tools share. They run in the environment that `make test-tools` makes, and only there:
scikit-learn's own tests alone take half a minute."""

import importlib.util
import time

import pytest
import torch

from laser_kernels import testing
from laser_kernels.compat import cut, pytorch, scikit_learn

collect_ignore_glob = [] if importlib.util.find_spec("peft") else ["test_*.py"]


@pytest.fixture
def backend_calls(monkeypatch):
    """Shapes of what the drop-ins have handed to the backend."""
    shapes = []

    def watch(module):
        ours = module.truncated_svd

        def watched(a, *args, **kwargs):
            shapes.append(tuple(a.shape[-2:]))
            return ours(a, *args, **kwargs)

        monkeypatch.setattr(module, "truncated_svd", watched)

    watch(cut)
    watch(pytorch)
    watch(scikit_learn)
    return shapes


@pytest.fixture
def compare(capsys, backend_calls):
    """`tool` and `patched` return approximations of `matrix` to `rank`: ours must be as good as the tool's. Prints both
    excesses and how much faster ours is, best of three, alternating; no time is asserted."""

    def compare(what, matrix, rank, tool, patched, tol=1e-3):
        seconds, left = {}, {}
        for _ in range(3):
            for name, run in (("tool", tool), ("ours", patched)):
                start = time.perf_counter()
                result = run()
                seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
                left[name] = testing.residual(matrix, result)
        tail = testing.optimal_residual(matrix, rank)
        with capsys.disabled():
            both = " -> ".join(
                f"{seconds[name]:.3f} s, excess {left[name] / tail - 1:.1e}" for name in ("tool", "ours")
            )
            print(f"\n{what}: {both}; {seconds['tool'] / seconds['ours']:.1f}x")
        assert len(backend_calls) == 3
        floor = testing.FLOOR * testing.eps(torch.float32) * testing.norm(matrix)
        assert left["ours"] <= (1 + tol) * left["tool"] + floor

    return compare
