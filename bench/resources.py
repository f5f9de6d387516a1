"""What the compiler made of the CUDA kernels, read from the library with cuobjdump; and a gate on it.

    python bench/resources.py [laser_kernels/liblaser_cuda.so] [--archs 80 90a 100 120]

Prints kernel x architecture: registers per thread, static shared bytes, stack bytes, tensor-core
instructions. Exit code 1, and what is wrong, where
- an architecture is missing, or has not every kernel of the others (PTX does not count),
- a kernel has a stack frame or local memory: spills, or an array indexed at run time,
- a kernel that claims tensor cores (TENSOR_CORE_KERNELS) has no such instruction, or none claims.
Needs no GPU. cuobjdump and nvdisasm are taken from PATH, or from the wheels of the extra
`cuda-tools`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "laser_kernels" / "liblaser_cuda.so"
ARCHS = ("80", "90a", "100", "120")

# Kernels whose products belong on tensor cores, by their signature: those called mma, and reconstruct on 16-bit types.
TENSOR_CORE_KERNELS = re.compile(r"_mma_")
# The opcode of a line of SASS. HFMA2.MMA and IMAD are no tensor-core instructions, whatever their name says.
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
TENSOR_CORE_OPCODE = re.compile(r"(H|HG|QG|IG|BG|I|D|Q|O|B)MMA|UTC\w*MMA")


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture; bytes, but for registers."""

    arch: str
    kernel: str
    registers: int
    shared: int
    stack: int
    local: int


def parse_usage(text: str) -> list[Usage]:
    """The kernels in what `cuobjdump --dump-resource-usage` prints."""
    found, arch, kernel = [], None, None
    for line in text.splitlines():
        if line.startswith("Fatbin"):
            arch = None
        elif match := re.match(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):$", line):
            kernel = match[1]
        elif kernel and arch and (values := dict(re.findall(r"([A-Z]+):(\d+)", line))).get("REG"):
            taken = (int(values[key]) for key in ("REG", "SHARED", "STACK", "LOCAL"))
            found.append(Usage(arch, kernel, *taken))
            kernel = None
    return found


def parse_tensor_cores(lines: Iterable[str]) -> dict[tuple[str, str], Counter[str]]:
    """(arch, kernel) -> tensor-core opcodes in what `cuobjdump -sass` prints; a kernel without has an empty Counter."""
    found: dict[tuple[str, str], Counter[str]] = {}
    arch, current = "", Counter()
    for line in lines:
        if match := re.match(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            current = found.setdefault((arch, match[1]), Counter())
        elif (match := OPCODE.search(line)) and TENSOR_CORE_OPCODE.fullmatch(match[1]):
            current[match[1]] += 1
    return found


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Readable signatures; the names themselves where there is no c++filt."""
    ordered = sorted(set(names))
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not ordered or tool is None:
        return {name: name for name in ordered}
    done = subprocess.run([tool], input="\n".join(ordered), capture_output=True, text=True, check=True)
    return dict(zip(ordered, done.stdout.splitlines(), strict=True))


def short(signature: str) -> str:
    """laser::(anonymous namespace)::f<float, 16>(...) -> f<float, 16>."""
    text = signature.removeprefix("void ").replace("(anonymous namespace)::", "").replace("laser::", "")
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def faults(
    used: list[Usage],
    tensor_cores: dict[tuple[str, str], Counter[str]],
    signatures: dict[str, str],
    archs: Iterable[str] = ARCHS,
) -> list[str]:
    """What is wrong, one line each; empty where the gate holds."""
    wrong = []
    kernels = {usage.kernel for usage in used}
    claimed = {kernel for kernel in kernels if TENSOR_CORE_KERNELS.search(signatures[kernel])}
    if not kernels:
        return ["no kernels in this library"]
    if not claimed:
        wrong.append(f"no kernel claims tensor cores ({TENSOR_CORE_KERNELS.pattern})")
    for arch in archs:
        here = {usage.kernel for usage in used if usage.arch == arch}
        if not here:
            wrong.append(f"sm_{arch}: no machine code")
            continue
        wrong += [f"sm_{arch}: no {short(signatures[kernel])}" for kernel in sorted(kernels - here)]
        wrong += [
            f"sm_{arch}: {short(signatures[kernel])}: no tensor-core instruction"
            for kernel in sorted(claimed & here)
            if not tensor_cores.get((arch, kernel))
        ]
    for usage in used:
        if usage.stack or usage.local:
            what = f"{usage.stack} bytes of stack, {usage.local} of local memory"
            wrong.append(f"sm_{usage.arch}: {short(signatures[usage.kernel])}: {what}")
    return wrong


def table(
    used: list[Usage],
    tensor_cores: dict[tuple[str, str], Counter[str]],
    signatures: dict[str, str],
) -> str:
    """One line per kernel, one column per architecture: registers/shared/stack, and its tensor-core opcodes."""
    archs = sorted({usage.arch for usage in used}, key=lambda arch: (int(arch.rstrip("af")), arch))
    cells: dict[str, dict[str, str]] = {}  # by mangled name: two files may each have a kernel of the same short name
    for usage in used:
        count = sum(tensor_cores.get((usage.arch, usage.kernel), Counter()).values())
        text = f"{usage.registers}/{usage.shared}/{usage.stack + usage.local}" + (f"/{count}" if count else "")
        cells.setdefault(usage.kernel, {})[usage.arch] = text
    lines = ["registers/shared/stack[/tensor-core instructions]"]
    lines.append("  ".join([*(f"{'sm_' + arch:<16}" for arch in archs), "kernel"]))
    for kernel in sorted(cells, key=lambda kernel: short(signatures[kernel])):
        row = [f"{cells[kernel].get(arch, '-'):<16}" for arch in archs]
        lines.append("  ".join([*row, short(signatures[kernel])]))
    return "\n".join(lines)


def tools() -> dict[str, str]:
    """An environment whose PATH has cuobjdump and nvdisasm: as it is, or with the wheels' folder in front."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cu13" / "bin" for place in (spec.submodule_search_locations or [] if spec else [])]
    for path in (
        os.environ.get("PATH", ""),
        *(f"{folder}{os.pathsep}{os.environ.get('PATH', '')}" for folder in folders),
    ):
        if shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path):
            return os.environ | {"PATH": path}
    raise SystemExit("cuobjdump and nvdisasm not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def read(library: Path) -> tuple[list[Usage], dict[tuple[str, str], Counter[str]]]:
    """Resource usage and tensor-core instructions of every kernel in `library`."""
    environment = tools()
    tool = shutil.which("cuobjdump", path=environment["PATH"]) or "cuobjdump"
    usage = subprocess.run(
        [tool, "--dump-resource-usage", str(library)], env=environment, capture_output=True, text=True, check=True
    )
    with subprocess.Popen([tool, "-sass", str(library)], env=environment, stdout=subprocess.PIPE, text=True) as sass:
        assert sass.stdout is not None
        tensor_cores = parse_tensor_cores(sass.stdout)
    if sass.returncode != 0:
        raise SystemExit(f"cuobjdump -sass {library}: exit code {sass.returncode}")
    return parse_usage(usage.stdout), tensor_cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", type=Path, nargs="?", default=LIBRARY)
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), help="architectures that must be there")
    options = parser.parse_args()
    if not options.library.is_file():
        raise SystemExit(f"{options.library}: no such library; build it with: make cuda")
    used, tensor_cores = read(options.library)
    signatures = demangled(usage.kernel for usage in used)
    print(table(used, tensor_cores, signatures))
    wrong = faults(used, tensor_cores, signatures, options.archs)
    kernels = len({usage.kernel for usage in used})
    print("\n".join(wrong) if wrong else f"{kernels} kernels, {len(options.archs)} architectures: no stack, no spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
