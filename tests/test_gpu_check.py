"""bench/gpu_check.py without a GPU: what it records, what it refuses to call a success, and its limits."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
spec = importlib.util.spec_from_file_location("bench_gpu_check", BENCH / "gpu_check.py")
gpu_check = sys.modules["bench_gpu_check"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)
PARTS = ["build", "test", "sanitize", "bench", "suite"]
DEFAULT = PARTS[:-1]


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A run of all parts on a GPU that is only said to be there."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda: ("Some GPU", "1.2"))
    return gpu_check.Check(list(gpu_check.PARTS))


def records(check):
    return [json.loads(line) for line in check.results.read_text().splitlines()]


@pytest.mark.parametrize(
    "text, parts",
    [
        (None, DEFAULT),
        ("", DEFAULT),
        ("bench", ["bench"]),
        ("suite|build", ["build", "suite"]),
        ("test,build", ["build", "test"]),
    ],
)
def test_parts_are_chosen_and_ordered(text, parts):
    assert gpu_check.chosen(text) == parts


def test_an_unknown_part_is_refused():
    with pytest.raises(SystemExit, match="must name some of build, test, sanitize, bench, suite; got speed"):
        gpu_check.chosen("build,speed")


def test_each_part_leaves_time_for_the_later_ones(check):
    assert check.limit("build") == pytest.approx(530 - sum(gpu_check.SHARES[part] for part in PARTS[1:]), abs=5)
    assert check.limit("suite") == pytest.approx(530, abs=5)


def test_a_command_is_stopped_at_its_limit_with_its_children(check, tmp_path):
    alive = tmp_path / "alive"
    start = time.monotonic()
    code, text, _ = check.run("slow", ["sh", "-c", f"(sleep 2; touch {alive}) & echo begun; wait"], 1)
    assert code is None and "begun" in text and time.monotonic() - start < 2
    time.sleep(1.5)
    assert not alive.exists()


def run_main(monkeypatch, outcomes):
    """main() with parts that only record `outcomes`."""
    for name in gpu_check.PARTS:

        def part(check, name=name):
            check.record(name, outcomes.get(name, "ok"), 1.0)
            if name == "build" and name in outcomes:
                raise gpu_check.NoBuild

        monkeypatch.setitem(gpu_check.PARTS, name, part)
    monkeypatch.delenv("GPU_CHECK", raising=False)
    return gpu_check.main()


@pytest.mark.parametrize(
    "outcomes, code",
    [
        ({}, 0),
        ({"sanitize": "refused", "bench": "failed: exit code 1"}, 0),
        ({"test": "failed: exit code 1"}, 1),
        ({"build": "failed: no GPU that torch can use"}, 1),
    ],
)
def test_exit_code_is_that_of_build_and_test(check, monkeypatch, capsys, outcomes, code):
    assert run_main(monkeypatch, outcomes) == code
    table = capsys.readouterr().out.splitlines()[-len(DEFAULT) :]
    assert [line.split()[0] for line in table] == DEFAULT
    if "build" in outcomes:  # nothing else may run on a build that failed
        assert all("skipped: no build" in line for line in table[1:])


def test_without_a_gpu_nothing_succeeds(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda: (None, None))
    assert run_main(monkeypatch, {}) == 1
    assert [row["status"] for row in records(check)][1:] == ["failed: no GPU"] * 3


def test_all_that_is_printed_lies_in_one_file_beside_the_rows(check):
    for what in ("first", "second"):
        assert check.run(what, ["echo", f"says {what}"], 10)[1] == f"says {what}\n"
    check.record("first", "ok", 1.0)
    assert sorted(path.name for path in check.log.parent.iterdir()) == ["gpu-check.jsonl", "gpu-check.log"]
    assert "says first" in check.log.read_text() and "says second" in check.log.read_text()


def test_pytest_says_what_has_failed_when_it_is_stopped(check, tmp_path):
    file = tmp_path / "test_slow.py"
    file.write_text("import time\ndef test_a(): assert 0\ndef test_b(): time.sleep(60)\n")
    _, text, seconds = check.run("slow", [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)], 4)
    assert "FAILED" in text and "test_a" in text and seconds < 4 + gpu_check.GRACE


def test_rows_have_the_keys_of_every_command(check):
    check.record("build", "ok", 12.34, "make", "all well")
    check.record("test gpu", "failed: exit code 1", 3.0)
    from laser_kernels.bench.rows import KEYS

    good, bad = records(check)
    assert set(good) == {*KEYS, "details"}
    assert (good["gpu"], good["versions"]["driver"], good["seconds"]) == ("Some GPU", "1.2", 12.3)
    assert bad["seconds"] is None


FACTS = json.dumps({"gpu": "Some GPU", "cuda_kernels": True})


def test_pip_that_fails_is_replaced_by_cmake_alone(check, monkeypatch):
    ran = []

    def run(what, command, limit, **environment):
        ran.append((what, environment.get("LASER_CUDA_ARCHS")))
        return {"build": (1, refusal, 1.0), "build in place": (code, "", 1.0), "probe": (0, FACTS, 1.0)}[what]

    monkeypatch.setattr(check, "run", run)
    monkeypatch.delenv("LASER_PREBUILT", raising=False)
    monkeypatch.delenv("LASER_CUDA_ARCHS", raising=False)
    refusal, code = "error: externally-managed-environment", 0
    gpu_check.build(check)
    assert [what for what, _ in ran] == ["build", "build in place", "probe"] and ran[0][1] == "90a-real"
    ran.clear()
    code = 1
    with pytest.raises(gpu_check.NoBuild):
        gpu_check.build(check)
    assert [what for what, _ in ran] == ["build", "build in place"]
    assert [row["status"] for row in records(check)] == ["ok", "ok", "failed: exit code 1"]


def test_cmake_alone_needs_nothing_of_setuptools_but_that_it_is_there():
    imports, _, call = gpu_check.IN_PLACE.partition("; ")
    code = f"import setuptools; setuptools.setup = None; {imports}; print(compile_into.__name__, ROOT, PACKAGE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["compile_into", str(gpu_check.ROOT), "laser_kernels"], done.stderr
    assert call.startswith("compile_into(ROOT / PACKAGE, ")


@pytest.mark.parametrize(
    "output, status",
    [
        (json.dumps({"gpu": None, "cuda_kernels": True}), "failed: no GPU that torch can use"),
        (json.dumps({"gpu": "Some GPU", "cuda_kernels": False}), "failed: the build has no CUDA kernels"),
        ("ImportError: libsomething.so", "failed: cannot be imported"),
    ],
)
def test_nothing_is_tried_without_kernels_and_a_device(check, monkeypatch, output, status):
    monkeypatch.setenv("LASER_PREBUILT", "1")
    monkeypatch.setattr(check, "run", lambda *a, **k: (1, f"a warning\n{output}\n", 1.0))
    with pytest.raises(gpu_check.NoBuild):
        gpu_check.build(check)
    assert [row["status"] for row in records(check)] == [status]


def test_a_call_that_fails_does_not_keep_the_tests_from_saying_why(check, monkeypatch):
    monkeypatch.setenv("LASER_PREBUILT", "1")
    monkeypatch.setattr(check, "run", lambda *a, **k: (1, f"{FACTS}\nCUDA error: an illegal access\n", 1.0))
    gpu_check.build(check)
    build, probe = records(check)
    assert (build["status"], probe["status"]) == ("ok", "failed: exit code 1") and "illegal" in probe["details"]
    assert [done.gates for done in check.done] == [False, True]


def test_a_case_that_ends_the_process_does_not_end_the_others(check, monkeypatch):
    ran = []

    def run(what, command, limit, **environment):
        ran.append(command[-2:])
        return [(1, "one: goal x\n(3 s)\ntwo: goal y\n", 1.0), (3, "three: goal z\n", 1.0)][len(ran) - 1]

    monkeypatch.setattr(check, "run", run)
    gpu_check.bench(check)
    assert ran[1] == ["--after", "two"] and len(ran) == 2
    assert records(check)[0]["status"] == "failed: two ended the process (exit code 1)"


@pytest.mark.parametrize(
    "says, code, status",
    [
        ("ERROR SUMMARY: 0 errors", 0, "ok"),
        ("ERROR SUMMARY: 3 errors", 86, "failed: errors found"),
        ("Invalid __global__ read of size 4 bytes", 86, "failed: errors found"),
        ("RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 86, "failed: errors found"),
        ("Error: Device not supported. Please refer to the documentation.", 1, "refused"),
        ("5 deselected", 5, "failed: no tests"),
        ("1 failed, 3 passed", 1, "failed: exit code 1"),
        ("ERROR SUMMARY: 1 error", None, "failed: errors found"),
        ("ERROR SUMMARY: 12 errors", 1, "failed: errors found"),
        ("nothing yet", None, "failed: out of time"),
    ],
)
def test_sanitizer_verdicts(says, code, status):
    assert gpu_check.verdict(code, f"========= {says}") == status


@pytest.mark.parametrize(
    "says, code, statuses",
    [
        ("ERROR SUMMARY: 3 errors", 86, ["ok", "failed: errors found", "failed: errors found"]),
        ("ERROR SUMMARY: 0 errors", 0, ["failed: an error in a kernel of ours goes unseen", "ok", "ok"]),
        ("Error: Device not supported.", 1, ["refused", "skipped: refused before", "skipped: refused before"]),
    ],
)
def test_a_sanitizer_must_see_a_planted_error(check, monkeypatch, tmp_path, says, code, statuses):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= {says}'\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpu_check.sanitize(check)
    assert [row["status"] for row in records(check)] == statuses
    assert [row["op"][19:] for row in records(check)] == ["planted", "memcheck", "racecheck"]


def test_no_tests_is_a_failure(check, monkeypatch):
    monkeypatch.setattr(check, "run", lambda *a, **k: (gpu_check.NO_TESTS, "no tests ran", 1.0))
    gpu_check.test(check)
    assert [row["status"] for row in records(check)] == ["failed: no tests"] * 3


def test_the_command_runs_here(tmp_path):
    """The whole script as a command; where there is no GPU it says so and fails."""
    environment = {"PATH": "/nonexistent", "OUT": str(tmp_path), "GPU_CHECK": "test"}
    done = subprocess.run(
        [sys.executable, BENCH / "gpu_check.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "failed: no GPU" in done.stdout
