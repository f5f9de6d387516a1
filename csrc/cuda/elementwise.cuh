// Steps that work on one element (i, j) of a matrix b at a time:
//
//   auto take(b, i, j) const           what is read, and computed of it; may also read what `put` of this element
//   writes void put(b, i, j, value) const     what is written
//
//             128 columns                A thread takes 4 elements, 8 rows apart, before it puts them, so that 4 reads
//           +------+------+-- .. --+     are on their way: with one at a time a multiprocessor asks for a third of what
//   32      | warp w: rows w, w+8, |     its share of the memory could give. Lanes lie side by side along rows. Then
//   the rows    | w+16, w+24 of 32     |     next 32 columns.
//           +------+------+-- .. --+
#pragma once
#include "cuda/batch.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kElementWarps = 8;
constexpr int kElementEach = 4;
constexpr int kElementRows = kElementWarps * kElementEach;
constexpr int kElementCols = 128;

template <typename F>
__global__ void __launch_bounds__(kElementWarps * 32)
    elementwise_kernel(Selection sel, int64_t rows, int64_t cols, int64_t down, int64_t across, F f) {
  const int64_t b = sel[int(blockIdx.x / (down * across))], t = blockIdx.x % (down * across);
  const int64_t i0 = t / across * kElementRows + threadIdx.x / kWarpSize;
  const int64_t j0 = t % across * kElementCols + threadIdx.x % kWarpSize;
  LASER_NO_UNROLL for (int64_t j = j0; j < j0 + kElementCols && j < cols; j += kWarpSize) {
    decltype(f.take(b, i0, j)) value[kElementEach];
#pragma unroll
    for (int k = 0; k < kElementEach; ++k) {
      if (i0 + k * kElementWarps < rows) {
        value[k] = f.take(b, i0 + k * kElementWarps, j);
      }
    }
#pragma unroll
    for (int k = 0; k < kElementEach; ++k) {
      if (i0 + k * kElementWarps < rows) {
        f.put(b, i0 + k * kElementWarps, j, value[k]);
      }
    }
  }
}

template <typename F>
cudaError_t elementwise(Selection sel, int64_t rows, int64_t cols, const F& f, cudaStream_t stream) {
  if (sel.count == 0 || rows == 0 || cols == 0) {
    return cudaSuccess;
  }
  const int64_t down = (rows + kElementRows - 1) / kElementRows, across = (cols + kElementCols - 1) / kElementCols;
  return launch(elementwise_kernel<F>, dim3(unsigned(sel.count * down * across)), dim3(kElementWarps * 32), 0, stream,
                sel, rows, cols, down, across, f);
}

}  // namespace laser
