"""Builds csrc/cuda with a C++ compiler against the emulator (csrc/emu), once per content, and loads it with ctypes."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
ORDERS = (0, 1, 2)  # scheduling of warps and blocks: ascending, descending, shuffled
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
# Kernels and launchers, the host code above them, the driver they serve, the emulator, and the C interface for tests.
SOURCES = ("csrc/cuda/*.cu", "csrc/cuda/*.cpp", "csrc/core/*.cpp", "csrc/emu/*.cpp", "tests/emulated/*.cpp")
# LASER_EMU_SANITIZE=address: the same under AddressSanitizer (make emu-test says what to preload).
SANITIZE = os.environ.get("LASER_EMU_SANITIZE", "")


def compiler():
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


def build():
    """Path of the library. Object files are kept by the hash of all sources, so a second run compiles nothing."""
    sources = sorted(p for pattern in SOURCES for p in ROOT.glob(pattern))
    headers = sorted(p for folder in ("csrc", "tests/emulated") for p in (ROOT / folder).rglob("*.[hc]*"))
    flags = FLAGS + ([f"-fsanitize={SANITIZE}", "-g", "-O1"] if SANITIZE else [])
    digest = hashlib.sha256("".join(flags).encode())
    for p in sorted({*sources, *headers}):
        digest.update(p.read_bytes())
    folder = ROOT / "build" / "emu" / digest.hexdigest()[:16]
    library = folder / "liblaser_emu.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    include = ["-Icsrc", "-Icsrc/emu/include", "-Itests/emulated"]

    def compile_one(p):
        out = folder / (p.parent.name + "_" + p.name + ".o")
        command = [compiler(), *flags, *include, "-x", "c++", "-c", str(p), "-o", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    partial = library.with_suffix(".partial")
    sanitize = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
    subprocess.run([compiler(), "-shared", *sanitize, *objects, "-o", str(partial)], check=True, cwd=ROOT)
    partial.rename(library)
    return library


class Emulator:
    """The library's functions: arrays go in as torch tensors or NumPy arrays, and `call` raises where one fails."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def call(self, name, *arguments):
        converted = [self._convert(a) for a in arguments]
        assert getattr(self.library, name)(*converted) == 0, f"{name} failed (its reason is on stderr)"

    @staticmethod
    def _convert(a):
        if isinstance(a, torch.Tensor):
            return ctypes.c_void_p(a.data_ptr())
        if a is None:
            return ctypes.c_void_p(None)
        return ctypes.c_double(a) if isinstance(a, float) else ctypes.c_int64(int(a))

    def schedule(self, order):
        self.library.emu_set_order(order)

    def drop_barriers(self, drop):
        self.library.emu_drop_barriers(int(drop))


if __name__ == "__main__":
    print(build(), file=sys.stderr)
