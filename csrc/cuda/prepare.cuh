// Work:    prepare: one block per kPrepareRows rows of a matrix, then one warp per matrix to add up. load: elementwise.
// Memory:  prepare reads m n sizeof(E) bytes, which bounds it; load reads as much and writes m n sizeof(out).
//          16-byte loads where rows begin on 16 bytes.
// Order:   sums are float64, in an order that depends on the shape alone.
#pragma once
#include "core/weight.hpp"
#include "cuda/prepare.hpp"
#include "cuda/reduce.cuh"
#include "cuda/slices.hpp"

namespace laser {

constexpr int kPrepareRows = 16;
constexpr int kPrepareThreads = 256;

// As many elements as fit 16 bytes.
template <typename E>
struct alignas(16) Pack {
  E at[16 / sizeof(E)];
};

// NaN beats everything, so that it is not lost.
struct Larger {
  __device__ __forceinline__ double operator()(double a, double b) const { return a > b || a != a ? a : b; }
};

// partial (count, chunks, 2): sum of (a 2^-exponent)^2, and max |a|. prepared, where given: only matrices with an
// exponent, scaled by it.
template <typename E>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(const E* __restrict__ weight, int64_t rows, int64_t cols, int64_t stride, int64_t row_stride,
                   int64_t chunks, const Prepared* __restrict__ prepared, double* __restrict__ partial) {
  __shared__ double scratch[32];
  constexpr int kPack = 16 / sizeof(E);
  const int64_t b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int exponent = prepared ? prepared[b].exponent : 0;
  if (prepared && exponent == 0) {
    return;  // the whole block
  }
  const double scale = ldexp(1.0, -exponent);
  const int64_t first = chunk * kPrepareRows, last = first + kPrepareRows < rows ? first + kPrepareRows : rows;
  double sum = 0, top = 0;
  const auto add = [&](E element) {
    const double x = double(widen(element)), scaled = x * scale, size = x < 0 ? -x : x;
    sum += scaled * scaled;
    top = Larger()(size, top);
  };
  const bool aligned =
      (reinterpret_cast<uintptr_t>(weight) | uintptr_t(stride * sizeof(E)) | uintptr_t(row_stride * sizeof(E))) % 16 ==
      0;
  for (int64_t i = first; i < last; ++i) {
    const E* row = weight + b * stride + i * row_stride;
    int64_t j = threadIdx.x;
    if (aligned) {
      const int64_t packs = cols / kPack;
      for (int64_t k = threadIdx.x; k < packs; k += kPrepareThreads) {
        const Pack<E> pack = reinterpret_cast<const Pack<E>*>(row)[k];
        for (int e = 0; e < kPack; ++e) {
          add(pack.at[e]);
        }
      }
      j += packs * kPack;
    }
    for (; j < cols; j += kPrepareThreads) {
      add(row[j]);
    }
  }
  sum = block_reduce(sum, Sum(), scratch);
  top = block_reduce(top, Larger(), scratch);
  if (threadIdx.x == 0) {
    partial[2 * blockIdx.x] = sum;
    partial[2 * blockIdx.x + 1] = top;
  }
}

// One warp per matrix. again: the second pass, over matrices with an exponent.
template <bool kAgain>
__global__ void __launch_bounds__(32)
    prepare_finish_kernel(const double* __restrict__ partial, int64_t chunks, int safe, bool scale_sum, Prepared* out) {
  const int64_t b = blockIdx.x;
  if (kAgain && out[b].exponent == 0) {
    return;
  }
  double sum = 0, top = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kWarpSize) {
    sum += partial[2 * (b * chunks + c)];
    top = Larger()(partial[2 * (b * chunks + c) + 1], top);
  }
  sum = warp_reduce(sum, Sum());
  top = warp_reduce(top, Larger());
  if (threadIdx.x == 0) {
    const int exponent = kAgain ? out[b].exponent : scale_exponent(top, safe);
    out[b] = {scale_sum ? ldexp(sum, -2 * exponent) : sum, top, exponent};
  }
}

template <typename E>
struct Scaled {
  const E* weight;
  int64_t stride, row_stride;
  const Prepared* prepared;

  __device__ double operator()(int64_t b, int64_t i, int64_t j) const {
    const double x = double(widen(weight[b * stride + i * row_stride + j]));
    const int exponent = prepared[b].exponent;
    return exponent == 0 ? x : ldexp(x, -exponent);
  }
};

template <typename E, typename T>
struct Load {
  Scaled<E> scaled;
  Block<T> out;

  __device__ double take(int64_t b, int64_t i, int64_t j) const { return scaled(b, i, j); }
  __device__ void put(int64_t b, int64_t i, int64_t j, double value) const { narrow(value, out.at(b, i, j)); }
};

template <typename E>
struct LoadSlices {
  Scaled<E> scaled;
  Block<BFloat16> out;
  int slices;
  int64_t part;

  __device__ float take(int64_t b, int64_t i, int64_t j) const { return float(scaled(b, i, j)); }
  __device__ void put(int64_t b, int64_t i, int64_t j, float value) const {
    cut(value, slices, &out.at(b, i, j), part);
  }
};

}  // namespace laser
