// out = left right^T 2^e, rounded, with ||A - out||^2.
//
//   left = L1 + L2 (+ L3), right = R1 + R2 (+ R3) in bfloat16 slices, cut once beforehand (slice_kernel) and padded
//   with zeros to whole K steps. 2 slices: L1 R1 + L1 R2 + L2 R1, 3 slices: also L2 R2 + L1 R3 + L3 R1.
//
//             128 columns, 4 warps                  K steps of 32 (16 with 3 slices) arrive in two shared buffers by
//           +----+----+----+----+                   asynchronous copies, one ahead of the products.
//   128     | 64 x 32 per warp  |                   The tile then goes through shared memory, so that a warp reads A
//   and rows,   +----+----+----+----+                   writes out by whole rows; an element's reader is its writer. 2
//   warps |    |    |    |    |
//           +----+----+----+----+
//
// Work:    3 (6) products of 2 m n r flops.
// Memory:  A read once and out written once; slices, 4 (6) bytes per element of the factors, mostly from the L2 cache.
//          4096x4096, r = 410, bf16: 41 GFLOP in products, 67 MB for A and out: bounded by products.
// Order:   sums of a tile, then of tiles, in an order that depends on the shape alone.
#pragma once
#include <type_traits>

#include "core/weight.hpp"
#include "cuda/batch.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kTile = 128;
constexpr int kReconstructThreads = 256;

template <int kSlices>
constexpr int kStepOf = kSlices == 2 ? 32 : 16;

// A row of a shared tile takes 8 values more than a step: rows then begin in different banks, and on 16 bytes.
template <int kSlices>
constexpr int kRowOf = kStepOf<kSlices> + 8;

template <int kSlices>
constexpr int kBufferOf = 2 * kSlices * kTile * kRowOf<kSlices>;  // values: left and right

constexpr int kOutRow = kTile + 4;  // floats per row of the finished tile

template <int kSlices>
constexpr size_t reconstruct_shared() {
  const size_t steps = 2 * kBufferOf<kSlices> * sizeof(BFloat16), tile = kTile * kOutRow * sizeof(float);
  return steps > tile ? steps : tile;
}

// to (slices, count, rows, padded): slice k of from (count, rows, r), zeros beyond r.
template <int kSlices>
struct SlicePadded {
  Block<const float> from;
  BFloat16* to;
  int64_t padded;

  __device__ float take(int64_t b, int64_t i, int64_t j) const { return j < from.cols ? from.at(b, i, j) : 0.0f; }
  __device__ void put(int64_t b, int64_t i, int64_t j, float rest) const {
    for (int k = 0; k < kSlices; ++k) {
      BFloat16 leading;
      narrow(rest, leading);
      to[((k * from.count + b) * from.rows + i) * padded + j] = leading;
      rest -= widen(leading);
    }
  }
};

// What a finished tile is for.
template <typename E>
struct Target {
  const E* weight;
  E* out;
  int64_t rows, cols;
  int64_t stride, row_stride, out_stride, out_row_stride;
  const int* exponent;
  double* partial;  // (tiles, 2) of each selected matrix
};

// Rows i0 ..., columns j0 ... of matrix b: a warp per row, kSide / 32 neighbouring columns per lane. tile in shared
// memory, `row` values apart. Leaves the tile's two sums in partial[where].
template <typename T, typename E, int kSide>
__device__ __forceinline__ void finish_tile(const T* tile, int row, const Target<E>& target, int64_t b, int64_t i0,
                                            int64_t j0, int64_t where) {
  __shared__ double scratch[32];
  constexpr int kEach = kSide / 32;
  struct alignas(kEach * sizeof(E)) Pack {
    E at[kEach];
  };
  struct alignas(kEach * sizeof(T)) Values {
    T at[kEach];
  };
  using Difference = std::conditional_t<std::is_same_v<E, double>, double, T>;  // exact enough for so short a weight
  const int exponent = target.exponent ? target.exponent[b] : 0;
  const T scale = T(ldexp(T(1), exponent));
  const double unit = ldexp(1.0, -exponent);
  constexpr bool kScalesEach = std::is_same_v<E, double>;  // squares of others cannot leave the range of double
  const E* from = target.weight + b * target.stride;
  E* to = target.out + b * target.out_stride;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Pack) == 0; };
  const int64_t j = j0 + threadIdx.x % 32 * kEach;
  double unrounded = 0, rounded = 0;
  for (int i = threadIdx.x / 32; i < kSide && i0 + i < target.rows; i += kReconstructThreads / 32) {
    const E* a = from + (i0 + i) * target.row_stride + j;
    E* y = to + (i0 + i) * target.out_row_stride + j;
    const bool whole = j + kEach <= target.cols && aligned(a) && aligned(y);
    Pack before, after;
    if (whole) {
      before = *reinterpret_cast<const Pack*>(a);
    }
    const Values sums = *reinterpret_cast<const Values*>(tile + i * row + threadIdx.x % 32 * kEach);
    for (int c = 0; c < kEach; ++c) {
      if (j + c < target.cols) {
        const T x = sums.at[c] * scale;
        const Difference weight = Difference(widen(whole ? before.at[c] : a[c]));
        narrow(x, after.at[c]);
        const double by = kScalesEach ? unit : 1.0;
        const double d = by * (double(weight) - double(sums.at[c]) * double(scale));  // x may be subnormal
        const double e = by * double(weight - Difference(widen(after.at[c])));
        unrounded += d * d;  // in float32 they might not fit
        rounded += e * e;
        if (!whole) {
          y[c] = after.at[c];
        }
      }
    }
    if (whole) {
      *reinterpret_cast<Pack*>(y) = after;
    }
  }
  unrounded = block_reduce(unrounded, Sum(), scratch);
  rounded = block_reduce(rounded, Sum(), scratch);
  if (threadIdx.x == 0) {
    const double rest = kScalesEach ? 1.0 : unit * unit;
    target.partial[2 * where] = unrounded * rest;
    target.partial[2 * where + 1] = rounded * rest;
  }
}

// One operand as a block of threads fetches it: rows 0 .. rows - 1 from `data` on, slices `part` values apart.
struct SlicedRows {
  const BFloat16* data;
  int64_t part;
  int rows, padded;
};

// Copies the K step k0 of one operand into `buffer`: (kSlices, kTile, kRow).
template <int kSlices>
__device__ __forceinline__ void fetch_step(const SlicedRows& from, int k0, BFloat16* buffer) {
  constexpr int kRow = kRowOf<kSlices>, kPacks = kStepOf<kSlices> / 8;
  const int pack = threadIdx.x % kPacks * 8;
  LASER_NO_UNROLL for (int slice = 0; slice < kSlices; ++slice) {
    for (int i = threadIdx.x / kPacks; i < kTile; i += kReconstructThreads / kPacks) {
      const bool inside = i < from.rows;
      copy_async(buffer + (slice * kTile + i) * kRow + pack,
                 from.data + slice * from.part + int64_t(inside ? i : 0) * from.padded + k0 + pack, inside);
    }
  }
}

// Blocks that share a multiprocessor: two of 80 KiB where there are 164 KiB and more. sm_120 has 100.
template <int kSlices>
constexpr int kResident =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
    1;
#else
    kSlices == 2 ? 2 : 1;
#endif

template <int kSlices, typename E>
__global__ void __launch_bounds__(kReconstructThreads, kResident<kSlices>)
    reconstruct_mma_kernel(const BFloat16* __restrict__ left,   // (slices, count, rows, padded)
                           const BFloat16* __restrict__ right,  // (slices, count, cols, padded)
                           int64_t count, int padded, int tiles_down, int tiles, Target<E> target, Selection sel) {
  LASER_DYNAMIC_SHARED(BFloat16, buffers);
  constexpr int kStep = kStepOf<kSlices>, kRow = kRowOf<kSlices>, kBuffer = kBufferOf<kSlices>;
  const int s = blockIdx.x / tiles, t = blockIdx.x % tiles;
  const int64_t b = sel[s], i0 = t % tiles_down * kTile, j0 = t / tiles_down * kTile;
  const int g = threadIdx.x % 32 / 4, two = threadIdx.x % 4 * 2;  // as in mma_m16n8k16
  const int warp_row = threadIdx.x / 128 * 64, warp_col = threadIdx.x / 32 % 4 * 32;

  float sum[4][4][4] = {};
  {
    const SlicedRows lefts{left + (b * target.rows + i0) * padded, count * target.rows * padded, int(target.rows - i0),
                           padded};
    const SlicedRows rights{right + (b * target.cols + j0) * padded, count * target.cols * padded,
                            int(target.cols - j0), padded};
    const auto fetch = [&](int k0, BFloat16* buffer) {
      fetch_step<kSlices>(lefts, k0, buffer);
      fetch_step<kSlices>(rights, k0, buffer + kBuffer / 2);
      copies_commit();
    };
    fetch(0, buffers);
    for (int k0 = 0; k0 < padded; k0 += kStep) {
      BFloat16* now = buffers + k0 / kStep % 2 * kBuffer;
      if (k0 + kStep < padded) {
        fetch(k0 + kStep, now == buffers ? buffers + kBuffer : buffers);
        copies_arrive<1>();
      } else {
        copies_arrive<0>();
      }
      __syncthreads();  // this step has arrived for everybody
#pragma unroll
      for (int k = 0; k < kStep; k += 16) {
        uint32_t bs[kSlices][4][2];
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const BFloat16* at = now + kBuffer / 2 + (slice * kTile + warp_col + 8 * n + g) * kRow + k + two;
            bs[slice][n][0] = *reinterpret_cast<const uint32_t*>(at);
            bs[slice][n][1] = *reinterpret_cast<const uint32_t*>(at + 8);
          }
        }
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int slice = 0; slice < kSlices; ++slice) {
            const BFloat16* at = now + (slice * kTile + warp_row + 16 * m + g) * kRow + k + two;
            const uint32_t as[4] = {
                *reinterpret_cast<const uint32_t*>(at), *reinterpret_cast<const uint32_t*>(at + 8 * kRow),
                *reinterpret_cast<const uint32_t*>(at + 8), *reinterpret_cast<const uint32_t*>(at + 8 * kRow + 8)};
#pragma unroll
            for (int other = 0; other < kSlices - slice; ++other) {  // slices beyond together are below rounding
#pragma unroll
              for (int n = 0; n < 4; ++n) {
                mma_m16n8k16(sum[m][n], as, bs[other][n]);
              }
            }
          }
        }
      }
      __syncthreads();  // the buffer may be overwritten
    }
  }

  float* tile = reinterpret_cast<float*>(buffers);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float* at = tile + (warp_row + 16 * m + g) * kOutRow + warp_col + 8 * n + two;
      at[0] = sum[m][n][0];
      at[1] = sum[m][n][1];
      at[8 * kOutRow] = sum[m][n][2];
      at[8 * kOutRow + 1] = sum[m][n][3];
    }
  }
  __syncthreads();
  finish_tile<float, E, kTile>(tile, kOutRow, target, b, i0, j0, s * tiles + t);
}

// float64 factors: 32x32 tiles, 2x2 sums per thread.
constexpr int kWideTile = 32;

template <typename E>
__global__ void __launch_bounds__(kReconstructThreads)
    reconstruct_wide_kernel(Block<const double> left, Block<const double> right, int64_t tiles_down, int64_t tiles,
                            Target<E> target, Selection sel) {
  __shared__ double lefts[kWideTile][kWideTile + 1];
  __shared__ double rights[kWideTile][kWideTile + 1];
  const int64_t s = blockIdx.x / tiles, b = sel[int(s)], t = blockIdx.x % tiles;
  const int64_t i0 = t % tiles_down * kWideTile, j0 = t / tiles_down * kWideTile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  double sum[2][2] = {};
  for (int64_t k0 = 0; k0 < left.cols; k0 += kWideTile) {
    for (int e = threadIdx.x; e < kWideTile * kWideTile; e += kReconstructThreads) {
      const int64_t i = e / kWideTile, k = e % kWideTile;
      const bool in_k = k0 + k < left.cols;
      lefts[i][k] = in_k && i0 + i < left.rows ? left.at(b, i0 + i, k0 + k) : 0.0;
      rights[i][k] = in_k && j0 + i < right.rows ? right.at(b, j0 + i, k0 + k) : 0.0;
    }
    __syncthreads();
    for (int k = 0; k < kWideTile; ++k) {
      for (int c = 0; c < 4; ++c) {
        sum[c / 2][c % 2] += lefts[y + 16 * (c / 2)][k] * rights[x + 16 * (c % 2)][k];
      }
    }
    __syncthreads();
  }
  for (int c = 0; c < 4; ++c) {
    lefts[y + 16 * (c / 2)][x + 16 * (c % 2)] = sum[c / 2][c % 2];
  }
  __syncthreads();
  finish_tile<double, E, kWideTile>(&lefts[0][0], kWideTile + 1, target, b, i0, j0, s * tiles + t);
}

// residual2[2 b ...] = sums over the tiles of selected matrix s. One block per matrix.
__global__ void __launch_bounds__(kReconstructThreads)
    add_tiles_kernel(const double* __restrict__ partial, int64_t tiles, double* __restrict__ residual2, Selection sel) {
  __shared__ double scratch[32];
  double sum[2] = {};
  for (int64_t t = threadIdx.x; t < tiles; t += kReconstructThreads) {
    sum[0] += partial[2 * (blockIdx.x * tiles + t)];
    sum[1] += partial[2 * (blockIdx.x * tiles + t) + 1];
  }
  for (int k = 0; k < 2; ++k) {
    sum[k] = block_reduce(sum[k], Sum(), scratch);
  }
  if (threadIdx.x == 0) {
    residual2[2 * sel[blockIdx.x]] = sum[0];
    residual2[2 * sel[blockIdx.x] + 1] = sum[1];
  }
}

}  // namespace laser
