"""What each CUDA kernel has to do and to move, and the least time that takes: a model, not a measurement.

    python bench/floors.py [--side 4096] [--rank 410] [--block 512]

For one bfloat16 weight (side, side): Markdown rows of flops, bytes that must cross the device's memory at least once, the
larger of the two times, and what bounds it. Rates: dispatch.RATES. Kernels that only touch a few numbers of each matrix
(certify, measured, unpack, norms, addresses, singular_values, square_roots, diagonal, find_defects, find_failures,
zero_failed where nothing failed, trace) are bound by their launch and have no row.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from laser_kernels.dispatch import RATES

HOPPER = RATES["cuda", "9.0"]
PER_SECOND = {"bf16": HOPPER.flops * HOPPER.half, "fp32": HOPPER.flops}
MULTIPROCESSORS = 132  # of an H200: kernels of one block per matrix have one of them
SWEEPS = 8  # of Jacobi, typical


class Step(NamedTuple):
    """One step, for one matrix. unit: what multiplies, "bf16" or "fp32"; share: of the device that it can use."""

    kernel: str
    flops: float
    nbytes: float
    unit: str = "fp32"
    share: float = 1.0

    @property
    def seconds(self) -> tuple[float, str]:
        work = self.flops / PER_SECOND[self.unit] / self.share
        moved = self.nbytes / HOPPER.bytes
        return max((work, f"{self.unit} flops" if self.share == 1 else "one multiprocessor"), (moved, "bytes"))


def steps(n: int, r: int, width: int) -> list[Step]:
    """4 bytes a number, 2 a slice; products of `k` slices run k times."""
    one, square, block, kept = 1 / MULTIPROCESSORS, float(n * n), float(n * width), float(n * r)
    small = min(width, 128)
    return [
        Step("prepare", 2 * square, 2 * square),
        Step("load (into float64)", 0, 2 * square + 8 * square),
        Step("load_slices (float32 weight, 3)", 0, 4 * square + 6 * square),
        Step("sketch (30 integer operations a number)", 60 * block, 4 * block),  # at half the rate of float32 ones
        Step("slice, one of a block", 0, 4 * block + 2 * block),
        Step("slice, three of a block", 0, 4 * block + 6 * block),
        Step("forward or backward, one slice", 2 * n * block, 2 * square + 2 * block + 4 * block, "bf16"),
        Step("forward, three slices", 6 * n * block, 2 * square + 6 * block + 12 * block, "bf16"),
        Step("add_columns, of three", 2 * block, 12 * block + 4 * block),
        Step("weight_gram, one slice", 2 * n * square, 2 * square + 4 * square, "bf16"),
        Step("mirror", 0, 4 * square),
        Step("chebyshev", 3 * block, 8 * block + 4 * block),
        Step("normalize_columns", 3 * block, 8 * block + 4 * block),
        Step("gram of a block, six slice products", 12 * width * block, 6 * block + 4 * width * width, "bf16"),
        Step("cholesky_inverse (1 + 6 l / 64 launches)", 2 * (width**3 / 3 + 128 * width**2), 12 * width * width),
        Step(
            "product with the inverse factor, six",
            12 * width * block,
            6 * block + 10 * width * width + 4 * block,
            "bf16",
        ),
        Step(f"small_eigh, l = {small}", SWEEPS * 18 * small**3, 8 * small**2, "fp32", one),
        Step("gather or scatter for cuSOLVER", 0, 8 * width * width),
        Step("ritz_residuals", 3 * block, 8 * block),
        Step("judge (one block, double)", 2 * 20 * r * (width - r), 24 * width, "fp32", one),
        Step("copy of a block", 0, 8 * block),
        Step("slice_padded, two of both factors", 0, 2 * (4 * kept + 4 * kept)),
        Step("reconstruct, two slices a factor", 6 * n * kept, 4 * square + 8 * kept, "bf16"),
        Step("column_signs, scale_columns (factors)", 3 * kept, 20 * kept),
        Step("SPECTRAL: slice, two", 0, 8 * square),
        Step("SPECTRAL: product, one slice", 2 * n * square, 4 * square + 4 * square, "bf16"),
        Step("SPECTRAL: product, two slices", 6 * n * square, 8 * square + 4 * square, "bf16"),
        Step("SPECTRAL: product, three slices", 12 * n * square, 12 * square + 4 * square, "bf16"),
        Step("SPECTRAL: recurrence, 32 probes", 6 * 32 * n, 16 * 32 * n),
        Step("SPECTRAL: affine", 2 * square, 8 * square),
        Step("SPECTRAL: add", 3 * square, 12 * square),
        Step("SPECTRAL: add_symmetric", 4 * square, 4 * square + 8 * square),
        Step("SPECTRAL: dot", 2 * square, 8 * square),
        Step("SPECTRAL: equilibrate", 2 * square, 8 * square),
        Step("SPECTRAL: zero (half of a triangle)", 0, square),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=410)
    parser.add_argument("--block", type=int, default=512)
    args = parser.parse_args()
    print(
        f"| kernel, {args.side}x{args.side} bf16, r = {args.rank}, l = {args.block} | flops | bytes | floor | bound by |"
    )
    print("|---|---|---|---|---|")
    for step in steps(args.side, args.rank, args.block):
        seconds, why = step.seconds
        flops = f"{step.flops / 1e9:.3g} G" if step.flops else ""
        print(f"| {step.kernel} | {flops} | {step.nbytes / 1e6:.3g} MB | {seconds * 1e6:.3g} us | {why} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
