"""The error stands beside every time: pytest-benchmark's table shows it behind the name."""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(config, benchmarks, group_by):
    for made in benchmarks:
        for what, value in (made.get("extra_info") or {}).items():
            made["name"] += f" {what} {value:.1e}"
    return (yield)
