"""Builds the native libraries with CMake. Metadata is in pyproject.toml.

Environment: LASER_CUDA=AUTO|ON|OFF  LASER_CUDA_ARCHS="90a-real"  LASER_TORCH_DIR=<.../torch>  MAX_JOBS=<n>
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "laser_kernels"
# A torch of another major or minor version may lack symbols; 2.11 is the stable-ABI version we compile for.
OLDEST_TORCH = (2, 11)
FIND_TORCH = """
import importlib.metadata as d, importlib.util as u
spec = u.find_spec("torch")
print(spec.submodule_search_locations[0] if spec else "")
print(d.version("torch") if spec else "")
"""


def find_torch():
    """(folder, version) of the torch the user runs: seen directly, or from inside pip's isolated build environment."""
    if os.environ.get("LASER_TORCH_DIR"):
        return os.environ["LASER_TORCH_DIR"], None
    for flags in (
        [],
        ["-I"],
    ):  # -I ignores PYTHONPATH, through which pip hides the user's site-packages
        found = subprocess.run([sys.executable, *flags, "-c", FIND_TORCH], capture_output=True, text=True)
        folder, _, version = found.stdout.strip().partition("\n")
        if found.returncode == 0 and folder:
            return folder, version
    sys.exit(f"{PACKAGE}: torch not found. Install torch>=2.11 first, then: pip install --no-build-isolation .")


def cuda_choice(folder):
    """AUTO builds CUDA code where nvcc is found, but only beside a torch that could run it."""
    asked = os.environ.get("LASER_CUDA", "AUTO")
    namespace = {}
    exec((Path(folder) / "version.py").read_text(), namespace)
    return "OFF" if asked == "AUTO" and namespace.get("cuda") is None else asked


def check_version(version):
    if version and tuple(int(x) for x in version.split(".")[:2]) < OLDEST_TORCH:
        sys.exit(f"{PACKAGE}: needs torch>=2.11; found {version}. Upgrade torch, then install again.")


def compile_into(out, build):
    """Configure and build with CMake in the folder `build`; the libraries go to `out`."""
    folder, version = find_torch()
    check_version(version)
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compiler)):
        # No failure: laser_kernels/reference.py answers every call, and importing the package says so once.
        print(
            f"{PACKAGE}: WARNING: no C++ compiler found; installing without the compiled extension",
            file=sys.stderr,
        )
        return
    import pybind11

    build.mkdir(parents=True, exist_ok=True)
    cmake = shutil.which("cmake") or "cmake"
    configure = [cmake, "-S", str(ROOT), "-B", str(build)]
    configure += ["-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DLASER_TORCH_DIR={folder}"]
    configure += [f"-DLASER_OUT={out}"]
    configure += [f"-DLASER_CUDA={cuda_choice(folder)}"]
    archs = os.environ.get("LASER_CUDA_ARCHS")  # unset: forget what an earlier build in this folder was given
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={archs}" if archs else "-UCMAKE_CUDA_ARCHITECTURES"]
    ninja = shutil.which("ninja")
    if ninja:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.check_call(configure)
    subprocess.check_call([cmake, "--build", str(build), "-j", os.environ.get("MAX_JOBS", str(os.cpu_count()))])


class CMakeBuild(build_ext):
    def run(self):
        root = ROOT if self.inplace else Path(self.build_lib).resolve()
        compile_into(root / PACKAGE, Path(self.build_temp).resolve())


if __name__ == "__main__":
    # optional: setuptools must not fail where the module is absent because there was no compiler
    setup(
        ext_modules=[Extension(f"{PACKAGE}._core", [], optional=True)],
        cmdclass={"build_ext": CMakeBuild},
    )
