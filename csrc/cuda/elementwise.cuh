// f(b, i, j) for every element of the selected matrices of a batch.
// Work:    one warp per row, its lanes side by side along the columns; 8 rows at a time, kRows rows per block.
// Memory:  what f touches; rows contiguous in memory are read and written coalesced.
#pragma once
#include "cuda/batch.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kElementRows = 32;
constexpr int kElementWarps = 8;

template <typename F>
__global__ void __launch_bounds__(kElementWarps * 32)
    elementwise_kernel(Selection sel, int64_t rows, int64_t cols, int64_t chunks, F f) {
  const int64_t b = sel[int(blockIdx.x / chunks)];
  const int64_t first = int64_t(blockIdx.x % chunks) * kElementRows;
  const int64_t last = first + kElementRows < rows ? first + kElementRows : rows;
  for (int64_t i = first + threadIdx.x / kWarpSize; i < last; i += kElementWarps) {
    for (int64_t j = threadIdx.x % kWarpSize; j < cols; j += kWarpSize) {
      f(b, i, j);
    }
  }
}

template <typename F>
cudaError_t elementwise(Selection sel, int64_t rows, int64_t cols, const F& f, cudaStream_t stream) {
  if (sel.count == 0 || rows == 0 || cols == 0) {
    return cudaSuccess;
  }
  const int64_t chunks = (rows + kElementRows - 1) / kElementRows;
  return launch(elementwise_kernel<F>, dim3(unsigned(sel.count * chunks)), dim3(kElementWarps * 32), 0, stream, sel,
                rows, cols, chunks, f);
}

}  // namespace laser
