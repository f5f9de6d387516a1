"""The gate on the CUDA library's machine code (bench/resources.py), on a sample of what cuobjdump 13.5 prints."""

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "bench" / "resources.py"
spec = importlib.util.spec_from_file_location("bench_resources", FILE)
resources = sys.modules["bench_resources"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resources)

MMA = "_ZN5laser36_GLOBAL__N__cd9aa2ff_4_t_cu_f0a6680222reconstruct_mma_kernelIfLi16EEEvPK13__nv_bfloat16S4_PfPT_"
SCALE = "_ZN5laser12scale_kernelEPff"
SPILLING = "_ZN5laser15wasteful_kernelEPfi"

USAGE = f"""
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function {MMA}:
  REG:22 STACK:0 SHARED:2048 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {SCALE}:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_120
code version = [9,0]
host = linux
compile_size = 64bit
compressed
ptxasOptions =

Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function {MMA}:
  REG:20 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {SCALE}:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
WASTEFUL = f""" Function {SPILLING}:
  REG:80 STACK:256 SHARED:0 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

\tcode for sm_80
\t\tFunction : {MMA}
\t.headerflags\t@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0150*/                   HMMA.16816.F32.BF16 R8, R4.reuse, R8, RZ ;   /* 0x000000080408723c */
        /*0160*/              @!P0 HMMA.16816.F32.BF16 R4, R4, R16, RZ ;        /* 0x000000100404723c */
\t\tFunction : {SCALE}
        /*0020*/                   HFMA2.MMA R3, -RZ, RZ, 0, 2.384185791015625e-07 ;  /* 0x00000004ff037435 */
        /*0030*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;      /* 0x00000a00ff017624 */

Fatbin elf code:
================
arch = sm_90a
\t\tFunction : {MMA}
        /*01d0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x01e0000004187df0 */
\t\tFunction : {SCALE}
        /*0090*/                   EXIT ;                                       /* 0x000000000000794d */
"""
SIGNATURES = {
    MMA: "void laser::(anonymous namespace)::reconstruct_mma_kernel<float, 16>(__nv_bfloat16 const*, float*)",
    SCALE: "laser::scale_kernel(float*, float)",
    SPILLING: "laser::wasteful_kernel(float*, int)",
}


def judged(usage=USAGE, sass=SASS, archs=("80", "90a"), signatures=SIGNATURES):
    return resources.faults(
        resources.parse_usage(usage), resources.parse_tensor_cores(sass.splitlines()), signatures, archs
    )


def test_usage_is_read_per_architecture():
    used = resources.parse_usage(USAGE)
    assert [(u.arch, u.kernel) for u in used] == [("90a", MMA), ("90a", SCALE), ("80", MMA), ("80", SCALE)]
    assert (used[0].registers, used[0].shared, used[0].stack, used[0].local) == (22, 2048, 0, 0)


def test_tensor_cores_are_opcodes_not_names():
    found = resources.parse_tensor_cores(SASS.splitlines())
    assert found[("80", MMA)] == Counter(HMMA=2)
    assert found[("90a", MMA)] == Counter(HGMMA=1)
    assert not found[("80", SCALE)]  # HFMA2.MMA is a scalar instruction
    assert resources.TENSOR_CORE_OPCODE.fullmatch("UTCHMMA")


def test_a_sound_library_passes():
    assert judged() == []


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"usage": USAGE + WASTEFUL}, "sm_80: wasteful_kernel: 256 bytes of stack"),
        (
            {"usage": USAGE.replace("LOCAL:0", "LOCAL:8", 1)},
            "reconstruct_mma_kernel<float, 16>: 0 bytes of stack, 8 of local",
        ),
        ({"archs": ("80", "90a", "120")}, "sm_120: no machine code"),  # its PTX does not count
        ({"archs": ("80", "90")}, "sm_90: no machine code"),
        ({"usage": USAGE + WASTEFUL}, "sm_90a: no wasteful_kernel"),
        (
            {"sass": SASS.replace("HGMMA", "FFMA")},
            "sm_90a: reconstruct_mma_kernel<float, 16>: no tensor-core instruction",
        ),
        ({"signatures": SIGNATURES | {MMA: "laser::gram_kernel(float*)"}}, "no kernel claims tensor cores"),
        ({"usage": ""}, "no kernels in this library"),
    ],
)
def test_each_fault_is_named(change, expected):
    assert any(expected in line for line in judged(**change)), judged(**change)


def test_table_has_a_line_per_kernel():
    lines = resources.table(
        resources.parse_usage(USAGE), resources.parse_tensor_cores(SASS.splitlines()), SIGNATURES
    ).splitlines()
    assert lines[1].split() == ["sm_80", "sm_90a", "kernel"]
    assert lines[2].split(maxsplit=2) == ["20/1024/0/2", "22/2048/0/1", "reconstruct_mma_kernel<float, 16>"]
    assert len(lines) == 4


@pytest.mark.skipif(not (shutil.which("c++filt") or shutil.which("cu++filt")), reason="no demangler")
def test_short_names():
    signatures = resources.demangled([MMA, SCALE])
    assert resources.short(signatures[MMA]) == "reconstruct_mma_kernel<float, 16>"
    assert resources.short(signatures[SCALE]) == "scale_kernel"
    assert resources.TENSOR_CORE_KERNELS.search(signatures[MMA])
    assert not resources.TENSOR_CORE_KERNELS.search(signatures[SCALE])
