"""One offline command on a machine with a GPU: build, test, sanitize, time. `make gpu-check` runs it.

    GPU_CHECK=build,test,sanitize,bench python3 bench/gpu_check.py        (default: these four)
    GPU_CHECK=build,bench ... build,test ... build,sanitize ... build,suite   (calls of their own, each with all the time:
                                                                          better, where the machine stays warm)

Takes this python3 as it is (torch with CUDA, setuptools, cmake, ninja, pybind11, pytest); no network, no venv.
  build     the extension with CUDA, in place, for sm_90a (LASER_CUDA_ARCHS to change it); LASER_PREBUILT=1: libraries that
            came along are taken instead; and one call on the device
  test      tests/test_cuda.py, then the contract tests with LASER_TEST_DEVICE=cuda; by several processes where there is
            pytest-xdist, so that a lost CUDA context costs one test
  sanitize  compute-sanitizer memcheck and racecheck, on our kernels in `-m gpu -k kernel`, once memcheck has seen an error
            planted in one of them; a sanitizer that refuses the device is recorded as refused
  bench     bench/speed_cuda.py: the figures that were promised; begun again behind a case that ends the process
  suite     laser-kernels bench --suite gpu: every peer, as far as the time goes
Under 9 minutes (GPU_CHECK_SECONDS=530); each part has what the later ones do not need. Appends JSON lines to
$OUT/gpu-check.jsonl, else bench/results/<gpu>-<date>.jsonl, and what was printed to $OUT/gpu-check.log, else
build/gpu-check/gpu-check.log. LASER_COMMIT names the commit where there is no .git. A table comes last; exit code 1 where
build or test failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # rows are made by laser_kernels, which nobody may have installed
DEFAULT = ("build", "test", "sanitize", "bench")
# Seconds kept for each part while earlier ones run.
SHARES = {"build": 90, "test": 120, "sanitize": 110, "bench": 210, "suite": 0}
GRACE = 10.0  # between an interrupt, at which pytest says what has failed, and the end
CUDA_TESTS = "tests/test_cuda.py"
MEMORY_TESTS = "out_of_memory"  # they take all of the device's
CONTRACT = ("truncated_svd", "orthonormalize")  # they make their tensors on the default device
WORKERS = 6
TOOLS = ("memcheck", "racecheck")
SANITIZER_ERRORS = 86  # exit code asked of compute-sanitizer
ERRORS = "failed: errors found"
FOUND = re.compile(r"SUMMARY: .*[1-9]\d* (?:error|hazard)|========= (?:Invalid|Error: |.*hazard)")
NO_TESTS = 5  # pytest's exit code where it collected none
CASES_FAILED = 3  # speed_cuda.py's, where it came to its end
LEAST_BENCH = 45.0
PROBE_LIMIT = 180.0  # a cold machine reads 700 MB of libraries
REFUSED = re.compile(r"Device not supported|not supported on this device|Unable to (?:initialize|find)|error 999", re.I)
IN_PLACE = "from setup import PACKAGE, ROOT, compile_into; compile_into(ROOT / PACKAGE, ROOT / 'build' / 'in_place')"
PROBE = """
import json
import torch
import laser_kernels as lk
from laser_kernels.ops import COMPILED
gpu = torch.cuda.is_available()
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "cuda_kernels": bool(COMPILED and has("laser_kernels::low_rank", "CUDA")),
}), flush=True)
trace = float(lk.low_rank(torch.eye(64, device="cuda"), 8).trace())
raise SystemExit(0 if abs(trace - 8) < 1e-3 else f"the trace of a projector onto 8 dimensions is {trace}")
"""
# `prepare` reads 64 MiB where there is one.
PLANTED = """
import torch
import laser_kernels
class Overlong:
    def __init__(self, data):
        self.__cuda_array_interface__ = {
            "data": (data.data_ptr(), False), "shape": (1, 4096, 4096), "typestr": "<f4", "version": 3
        }
data = torch.ones(1 << 18, device="cuda")
torch.ops.laser_kernels.prepare(torch.as_tensor(Overlong(data), device="cuda"))
torch.cuda.synchronize()
"""


@dataclass
class Done:
    """One part, or a step of it."""

    part: str
    status: str  # ok | failed | refused | skipped: why
    seconds: float
    command: str = ""
    details: str = ""

    @property
    def gates(self) -> bool:
        """Whether this makes the exit code 1."""
        return self.part.split()[0] in ("build", "probe", "test") and self.status != "ok"


class Check:
    """The run: where results go, how much time is left, what was done."""

    def __init__(self, parts: list[str]):
        self.parts, self.done = parts, list[Done]()
        self.stop = time.monotonic() + float(os.environ.get("GPU_CHECK_SECONDS", 530))
        out = os.environ.get("OUT")
        logs = Path(out) if out else ROOT / "build" / "gpu-check"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / "gpu-check.log"  # one file: the machine that lends the GPU may give back only a few
        self.gpu, self.driver = nvidia_smi()
        name = re.sub(r"[^a-z0-9]+", "-", (self.gpu or "no-gpu").lower()).strip("-")
        self.results = logs / "gpu-check.jsonl" if out else ROOT / "bench" / "results" / f"{name}-{date.today()}.jsonl"
        # The package is importable from the root whether or not pip may install into this Python.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        toolkits = [str(path) for path in sorted(Path("/usr/local").glob("cuda*/bin"))]
        tools = os.pathsep.join([f"{sys.prefix}/bin", *toolkits, os.environ.get("PATH", os.defpath)])
        self.environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PATH": tools}

    def limit(self, part: str) -> float:
        """Seconds this part may take: what is left, less what the later parts are kept."""
        later = self.parts[self.parts.index(part) + 1 :]
        return max(0.0, self.stop - time.monotonic() - sum(SHARES[name] for name in later))

    def run(self, what: str, command: list[str], limit: float, **environment: str) -> tuple[int | None, str, float]:
        """(exit code, None after `limit` seconds; output; seconds); the output goes to the log and is shown if it fails."""
        start = time.monotonic()
        shown = " ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)])
        heading = f"== {what} (at most {limit:.0f} s): {shown}"
        print(heading, flush=True)
        with self.log.open("a") as stream:
            print(heading, file=stream, flush=True)
            begin = stream.tell()
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment | environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = child.wait(max(1.0, limit))
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(child.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        with self.log.open(errors="replace") as stream:
            stream.seek(begin)
            text = stream.read()
        print("\n".join(text.splitlines()[-(6 if code == 0 else 40) :]), flush=True)
        return code, text, time.monotonic() - start

    def record(self, part: str, status: str, seconds: float, command: str = "", details: str = "") -> None:
        done = Done(part, status, seconds, command, details)
        self.done.append(done)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as stream:
            stream.write(json.dumps(self.row(done)) + "\n")

    def row(self, done: Done) -> dict[str, Any]:
        """A row with the keys of every command, and `details`."""
        values = {"op": f"gpu-check {done.part}", "device": "cuda", "gpu": self.gpu, "status": done.status}
        values |= {"command": done.command, "seconds": round(done.seconds, 1) if done.status == "ok" else None}
        try:
            from laser_kernels.bench import rows
        except Exception as error:  # no torch, or a library that cannot be loaded: still a row
            return values | {"details": f"{done.details} {error}".strip()}
        made = rows.row(**values)
        made["versions"] |= {"driver": self.driver}
        return made | {"details": done.details}


def rows_lack_a_commit() -> bool:
    try:
        from laser_kernels.bench import rows
    except Exception:  # a machine without torch
        return False
    return rows.commit() is None


def nvidia_smi() -> tuple[str | None, str | None]:
    """(name, driver) of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    if done.returncode != 0 or "," not in done.stdout:
        return None, None
    name, driver = done.stdout.splitlines()[0].rsplit(",", 1)
    return name.strip(), driver.strip()


def state(code: int | None) -> str:
    """An exit code as a status."""
    return "ok" if code == 0 else "failed: out of time" if code is None else f"failed: exit code {code}"


def last_line(text: str) -> str:
    """The last line with something in it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:200]


def build(check: Check) -> None:
    """The extension, and a probe that it runs on the device. Raises NoBuild where nothing else can run."""
    start, limit, status, command = time.monotonic(), check.limit("build"), "ok", ["(prebuilt)"]
    if os.environ.get("LASER_PREBUILT") != "1":
        settings = {"LASER_CUDA": "ON"}
        settings["LASER_CUDA_ARCHS"] = os.environ.get("LASER_CUDA_ARCHS", "90a-real")
        settings["MAX_JOBS"] = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        settings["CUDAFLAGS"] = "-lineinfo"  # so that a sanitizer names lines
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-v"]
        command += ["--no-build-isolation", "--no-deps", "--no-index", "-e", "."]
        code, text, _ = check.run("build", command, limit, **settings)
        if code not in (0, None):  # pip may have refused, or may not write where it installs; setuptools may be too old
            command = [sys.executable, "-c", IN_PLACE]
            code, text, _ = check.run("build in place", command, check.limit("build"), **settings)
        status = state(code)
    seconds = time.monotonic() - start
    if status != "ok":
        check.record("build", status, seconds, shlex.join(command), last_line(text))
        raise NoBuild
    command_line = shlex.join(command)
    command = [sys.executable, "-c", PROBE]
    code, text, seconds_of_probe = check.run("probe", command, PROBE_LIMIT)
    facts = next((json.loads(line) for line in text.splitlines() if line.startswith("{")), None)
    if facts is None:
        status = "failed: cannot be imported"
    elif check.gpu is None or not facts["gpu"]:
        status = "failed: no GPU that torch can use"
    elif not facts["cuda_kernels"]:
        status = "failed: the build has no CUDA kernels"
    check.record("build", status, seconds, command_line, last_line(text))
    if status != "ok":
        raise NoBuild
    check.record("probe", state(code), seconds_of_probe, "low_rank(eye(64), 8)", last_line(text))


class NoBuild(Exception):
    """There is nothing that could be tested or timed."""


def test(check: Check) -> None:
    """Tests marked gpu, then the contract tests on CUDA; no test run is a failure too."""
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    pytest += ["-W", "default"]  # what this machine's libraries deprecate is no failure of ours
    several = ["-n", str(WORKERS), "--max-worker-restart", "30"] if importlib.util.find_spec("xdist") else []
    contract = [f"tests/test_{name}.py" for name in CONTRACT if (ROOT / "tests" / f"test_{name}.py").exists()]
    steps = {
        "test gpu": ([CUDA_TESTS, "-m", "gpu", "-k", f"not {MEMORY_TESTS}", *several], {}),
        "test memory": ([CUDA_TESTS, "-m", "gpu", "-k", MEMORY_TESTS], {}),
        "test contract": ([*contract, *several], {"LASER_TEST_DEVICE": "cuda"}),
    }
    for number, (what, (selection, environment)) in enumerate(steps.items()):
        limit = check.limit("test") / (1 if number == len(steps) - 1 else 2) - GRACE
        command = [*pytest, *selection]
        settings = environment | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS))}
        code, text, seconds = check.run(what, command, limit, **settings)
        status = "failed: no tests" if code == NO_TESTS else state(code)
        shown = " ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)])
        check.record(what, status, seconds, shown, last_line(text))


def verdict(code: int | None, text: str) -> str:
    """What a sanitizer's exit code and words mean."""
    if code == 0:
        return "ok"
    if REFUSED.search(text):
        return "refused"
    if FOUND.search(text):  # whatever the code: an application that fails keeps its own
        return ERRORS
    return "failed: no tests" if code == NO_TESTS else state(code)


def sanitize(check: Check) -> None:
    """compute-sanitizer over the kernel tests; only our kernels are instrumented."""
    tool = shutil.which("compute-sanitizer")
    tool = tool or next(map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None)
    tests = ["-m", "pytest", CUDA_TESTS, "-m", "gpu", "-k", "kernel", "-v", "-p", "no:cacheprovider", "-W", "default"]
    steps = {"planted": ("memcheck", ["-c", PLANTED])} | {name: (name, tests) for name in TOOLS}
    refused = False
    for number, (step, (name, program)) in enumerate(steps.items()):
        what, limit = f"sanitize {step}", check.limit("sanitize") / (len(steps) - number) - GRACE
        if tool is None or limit < 5 or refused:
            reason = "not installed" if tool is None else "refused before" if refused else "no time left"
            check.record(what, f"skipped: {reason}", 0.0)
            continue
        command = [tool, "--tool", name, "--error-exitcode", str(SANITIZER_ERRORS), "--kernel-name", "kns=5laser"]
        command += ["--report-api-errors", "no"] if name == "memcheck" else []  # torch asks and copes
        command += [sys.executable, *program]
        # Each tensor its own allocation, so that memcheck sees accesses past its end.
        code, text, seconds = check.run(what, command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        summary = next((line for line in reversed(text.splitlines()) if "SUMMARY" in line), last_line(text))
        status = verdict(code, text)
        refused = status == "refused"
        if step == "planted" and not refused:
            status = "ok" if status == ERRORS else "failed: an error in a kernel of ours goes unseen"
        check.record(what, status, seconds, shlex.join(command), summary.strip("= ")[:200])


def bench(check: Check) -> None:
    """The timing; its rows go to the same file. A case that hangs or loses the device ends the process; the cases behind
    it have another one."""
    start, ended, after = time.monotonic(), list[str](), list[str]()
    command = [sys.executable, "bench/speed_cuda.py", "--out", str(check.results)]
    status = "skipped: no time left"
    while (limit := check.limit("bench")) >= LEAST_BENCH:
        code, text, _ = check.run("bench", [*command, "--budget", f"{limit - 2 * GRACE:.0f}", *after], limit - GRACE)
        print(text, flush=True)
        status = state(code)
        begun = re.findall(r"^(\S+): goal", text, re.MULTILINE)
        if code in (0, CASES_FAILED) or not begun:  # it came to its end, or not to its first case
            break
        ended.append(f"{begun[-1]} ended the process ({status.removeprefix('failed: ')})")
        after = ["--after", begun[-1]]
    if ended:
        status = "failed: " + ", ".join(ended)
    check.record("bench", status, time.monotonic() - start, shlex.join(command))


def suite(check: Check) -> None:
    """The benchmark's own suite; its rows go to the same file."""
    limit = check.limit("suite")
    if limit < 100:
        check.record("suite", "skipped: no time left", 0.0)
        return
    command = [sys.executable, "-m", "laser_kernels", "bench", "--suite", "gpu", "--device", "cuda"]
    command += ["--budget", f"{limit - 80:.0f}", "--out", str(check.results)]  # the problem then begun has the rest
    code, text, seconds = check.run("suite", command, limit)
    print(text, flush=True)
    check.record("suite", state(code), seconds, shlex.join(command), last_line(text))


PARTS = {"build": build, "test": test, "sanitize": sanitize, "bench": bench, "suite": suite}


def chosen(text: str | None) -> list[str]:
    """The parts GPU_CHECK asks for, in their order; DEFAULT where it is empty."""
    asked = re.split(r"[\s,|+]+", text.strip()) if text and text.strip() else list(DEFAULT)
    unknown = [name for name in asked if name not in PARTS]
    if unknown:
        raise SystemExit(f"GPU_CHECK must name some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    return [name for name in PARTS if name in asked]


def main() -> int:
    check = Check(chosen(os.environ.get("GPU_CHECK")))
    if rows_lack_a_commit():
        print("These rows will name no commit: set LASER_COMMIT to what `git rev-parse HEAD` says.", flush=True)
    print(f"GPU {check.gpu or 'none'}, driver {check.driver or 'none'}, results in {check.results}", flush=True)
    built = True
    for name in check.parts:
        if not built:
            check.record(name, "skipped: no build", 0.0)
        elif name != "build" and check.gpu is None:
            check.record(name, "failed: no GPU", 0.0)
        else:
            try:
                PARTS[name](check)
            except NoBuild:
                built = False
    print(f"\n{'part':<20} {'seconds':>8}  status")
    for done in check.done:
        print(f"{done.part:<20} {done.seconds:8.1f}  {done.status}  {done.details[:110]}")
    return 1 if any(done.gates for done in check.done) else 0


if __name__ == "__main__":
    raise SystemExit(main())
