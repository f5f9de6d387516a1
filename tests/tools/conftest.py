"""What the tests of unmodified tools share. They run in the environment that `make test-tools` makes, and only there:
scikit-learn's own tests alone take half a minute."""

import importlib.util
import time

import pytest

from laser_kernels.compat import cut, pytorch

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
    return shapes


@pytest.fixture
def report_ratio(capsys):
    """Prints how much faster `patched` is than `tool`: best of three, alternating; asserted nowhere."""

    def report(what, tool, patched):
        seconds = {}
        for _ in range(3):
            for name, run in (("tool", tool), ("ours", patched)):
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
        with capsys.disabled():
            ratio = seconds["tool"] / seconds["ours"]
            print(f"\n{what}: {seconds['tool']:.3f} s -> {seconds['ours']:.3f} s, {ratio:.1f}x")

    return report
