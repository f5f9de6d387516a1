"""cuBLAS and cuSOLVER as csrc/cuda declares and finds them: prototypes against NVIDIA's headers, the loader against
small libraries of the same names."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulator
import pytest

ROOT = Path(__file__).parent.parent
HEADER = ROOT / "csrc/cuda/vendor.hpp"
CHECK = ROOT / "tests/vendor_headers.cpp"


def folders_of(module):
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return []
    return [Path(p) / "include" for p in (spec.submodule_search_locations or [])] if spec else []


def include_folders():
    """Those that together hold the three headers; None where one is missing."""
    nvcc = shutil.which("nvcc")
    candidates = [Path(p) for p in os.environ.get("LASER_CUDA_MATH_INCLUDE", "").split(os.pathsep) if p]
    candidates += [Path(p) / "include" for p in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if p]
    candidates += [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    for module in ("nvidia.cu13", "nvidia.cublas", "nvidia.cusolver", "nvidia.cuda_runtime"):
        candidates += folders_of(module)
    wanted = ("cuda_runtime.h", "cublas_v2.h", "cusolverDn.h")
    found = [next((c for c in candidates if (c / name).exists()), None) for name in wanted]
    return None if None in found else list(dict.fromkeys(found))


def compiles(*first):
    folders = include_folders()
    if emulator.compiler() is None or folders is None:
        pytest.skip("needs a C++ compiler and the headers of cuBLAS and cuSOLVER (LASER_CUDA_MATH_INCLUDE)")
    command = [emulator.compiler(), "-std=c++17", "-fsyntax-only"]
    command += [f"-I{p}" for p in (*first, ROOT / "csrc")]
    for folder in folders:
        command += ["-isystem", str(folder)]
    return subprocess.run([*command, str(CHECK)], capture_output=True, text=True)


def test_prototypes_and_values_are_nvidias():
    done = compiles()
    assert done.returncode == 0, done.stderr


def test_every_function_and_value_is_compared():
    header, check = HEADER.read_text(), CHECK.read_text()
    functions = re.findall(r"\(\*(\w+)\)\(", header)
    values = re.findall(r"\b(C[A-Z]+_[A-Z0-9_]+) = ", header)
    assert len(functions) == 26 and len(values) >= 20
    assert sorted(re.findall(r"LASER_FUNCTION\(C\w+, (\w+), ", check)) == sorted(functions)
    assert sorted(re.findall(r"LASER_VALUE\((?!name)(\w+)\)", check)) == sorted(values)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("CUBLAS_COMPUTE_32F = 68", "CUBLAS_COMPUTE_32F = 69"),
        ("int econ, int64_t m", "int64_t econ, int64_t m"),
        ("size_t host_bytes, int* info, int64_t count)", "size_t host_bytes, int* info)"),
        ("signed char jobu", "int jobu"),
        ("int (*GetMathMode)(void* handle, int* mode)", "int (*GetMathMode)(void* handle, int64_t* mode)"),
        ("float* work, int elements", "int elements, float* work"),
    ],
)
def test_the_comparison_notices(tmp_path, right, wrong):
    changed = HEADER.read_text()
    assert right in changed
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/vendor.hpp").write_text(changed.replace(right, wrong, 1))
    done = compiles(tmp_path)
    assert done.returncode != 0 and "static assertion failed" in done.stderr


# --- the loader

CUBLAS = ["GemmEx_64", "GemmStridedBatchedEx_64", "GemmBatchedEx_64", "GetMathMode", "SetMathMode"]
SIZED = ["Xsyevd", "Xgesvdp", "Sgesvdj", "Dgesvdj", "Xgesvd"]
CUSOLVER = ["Create", "Destroy", "SetStream", "CreateParams", "DestroyParams", "CreateGesvdjInfo", "DestroyGesvdjInfo"]
CUSOLVER += [*SIZED, *(f"{f}_bufferSize" for f in SIZED)]
BATCHED = ["XsyevBatched", "XsyevBatched_bufferSize"]


def library(folder, name, body):
    folder.mkdir(parents=True, exist_ok=True)
    command = [emulator.compiler(), "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(folder / name)]
    subprocess.run(command, input=body, text=True, check=True)
    return folder / name


def make_cublas(folder, name, says, functions=CUBLAS):
    body = "".join(f"int cublas{f}(void) {{ return 0; }}\n" for f in functions)
    return library(folder, name, body + f'const char* cublasGetStatusString(int s) {{ return "{says}"; }}\n')


def make_cusolver(folder, name, version, functions=(*CUSOLVER, *BATCHED)):
    body = "".join(f"int cusolverDn{f}(void) {{ return 0; }}\n" for f in functions)
    return library(folder, name, body + f"int cusolverGetVersion(int* v) {{ *v = {version}; return 0; }}\n")


def finds(_emulator, *, path=None, loaded=()):
    """What a new process finds with `path` on its search path and `loaded` already open: cuBLAS's word, cuSOLVER's
    version and whether it has the batched solver."""
    script = (
        "import ctypes, sys\n"
        "kept = [ctypes.CDLL(p) for p in sys.argv[2:]]\n"
        "lib = ctypes.CDLL(sys.argv[1])\n"
        "lib.emu_vendor_cublas_string.restype = ctypes.c_char_p\n"
        "lib.emu_vendor_cusolver_version.restype = lib.emu_vendor_has_batched.restype = ctypes.c_int64\n"
        "print(lib.emu_vendor_cublas_string().decode(), lib.emu_vendor_cusolver_version(), "
        "lib.emu_vendor_has_batched())\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(path or "")}
    command = [sys.executable, "-c", script, _emulator.library._name, *map(str, loaded)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    word, version, batched = done.stdout.split()
    return word, int(version), bool(int(batched))


@pytest.fixture(scope="module")
def bare(_emulator):
    """The emulator's library where the system's loader knows no CUDA of its own."""
    if finds(_emulator) != ("none", -1, False):
        pytest.skip("the system has CUDA's libraries on its search path")
    return _emulator


def test_libraries_on_the_search_path_newest_first(bare, tmp_path):
    make_cublas(tmp_path, "libcublas.so.12", "twelve")
    make_cusolver(tmp_path, "libcusolver.so.11", 11701)
    assert finds(bare, path=tmp_path) == ("twelve", 11701, True)
    make_cublas(tmp_path, "libcublas.so.13", "thirteen")
    make_cusolver(tmp_path, "libcusolver.so.12", 12004)
    assert finds(bare, path=tmp_path) == ("thirteen", 12004, True)


def test_what_the_process_has_loaded_comes_before_what_is_newer(bare, tmp_path):
    """The handle is of that library."""
    make_cublas(tmp_path / "system", "libcublas.so.13", "thirteen")
    make_cusolver(tmp_path / "system", "libcusolver.so.12", 12004)
    older = make_cublas(tmp_path / "torch", "libcublas.so.12", "twelve")
    solver = make_cusolver(tmp_path / "torch", "libcusolver.so.11", 11701)
    assert finds(bare, path=tmp_path / "system", loaded=[older, solver]) == ("twelve", 11701, True)


def test_torchs_own_cublas_comes_before_one_that_another_package_has_loaded(bare, tmp_path):
    older = make_cublas(tmp_path / "torch", "libcublas.so.12", "twelve")
    torch_cuda = tmp_path / "torch" / "libtorch_cuda.so"
    command = [
        emulator.compiler(),
        "-shared",
        "-fPIC",
        "-x",
        "c",
        "/dev/null",
        "-x",
        "none",
        "-Wl,--no-as-needed",
        str(older),
    ]
    subprocess.run(
        [*command, "-Wl,-soname,libtorch_cuda.so", f"-Wl,-rpath,{older.parent}", "-o", torch_cuda], check=True
    )
    newer = make_cublas(tmp_path / "other", "libcublas.so.13", "thirteen")
    assert finds(bare, loaded=[newer, torch_cuda])[0] == "twelve"
    assert finds(bare, loaded=[newer, older])[0] == "thirteen"


@pytest.mark.parametrize("folder, name", [("cu13/lib", "libcusolver.so.12"), ("cusolver/lib", "libcusolver.so.11")])
def test_cusolver_beside_cublas_comes_before_the_search_path(bare, tmp_path, folder, name):
    """Neither pip layout is on the search path; torch opens libcusolver late, by a path of its own."""
    blas = make_cublas(tmp_path / "nvidia" / ("cu13/lib" if "12" in name else "cublas/lib"), "libcublas.so.12", "wheel")
    make_cusolver(tmp_path / "nvidia" / folder, name, 5)
    make_cusolver(tmp_path / "system", "libcusolver.so.12", 12004)
    assert finds(bare, path=tmp_path / "system", loaded=[blas]) == ("wheel", 5, True)


def test_an_old_cusolver_lacks_the_batched_solver_only(bare, tmp_path):
    make_cusolver(tmp_path, "libcusolver.so.11", 11600, CUSOLVER)
    assert finds(bare, path=tmp_path)[1:] == (11600, False)
    make_cusolver(tmp_path, "libcusolver.so.11", 11600, [*CUSOLVER, "XsyevBatched"])
    assert finds(bare, path=tmp_path)[1:] == (11600, False)


@pytest.mark.parametrize("missing", CUSOLVER)
def test_a_cusolver_that_lacks_another_function_is_none(bare, tmp_path, missing):
    make_cusolver(tmp_path, "libcusolver.so.12", 12004, [f for f in (*CUSOLVER, *BATCHED) if f != missing])
    assert finds(bare, path=tmp_path)[1:] == (-1, False)


@pytest.mark.parametrize("missing", CUBLAS)
def test_a_cublas_that_lacks_a_function_is_none(bare, tmp_path, missing):
    make_cublas(tmp_path, "libcublas.so.13", "thirteen", [f for f in CUBLAS if f != missing])
    assert finds(bare, path=tmp_path)[0] == "none"
