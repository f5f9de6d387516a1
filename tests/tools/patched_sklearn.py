"""A pytest plugin (-p patched_sklearn): scikit-learn's own tests run on laser_kernels.compat.randomized_svd."""

from laser_kernels.compat import patch, scikit_learn

_patched = patch("sklearn")
_calls = 0


def pytest_configure(config):
    ours = scikit_learn.truncated_svd

    def counted(*args, **kwargs):
        global _calls
        _calls += 1
        return ours(*args, **kwargs)

    scikit_learn.truncated_svd = counted
    _patched.__enter__()


def pytest_terminal_summary(terminalreporter):
    _patched.__exit__(None, None, None)
    terminalreporter.write_line(f"decompositions by laser_kernels: {_calls}")
