// to[j] = from[i], matrix by matrix, whatever the strides: a transposition where one side is row-major and the other
// column-major, a reversal where a stride is negative.
// Work:    one block per 32x32 tile, 8 warps, four elements per thread. Lanes run along the unit stride of `from` when
//          they read and along that of `to` when they write:
//              read (column-major from)   lane = row,    warp + 8 k = column
//              write (row-major to)       lane = column, warp + 8 k = row
// Memory:  each element is read and written once, in whole 128 (float) or 256 (double) byte rows of a tile; shared rows
//          are 33 long, so that neither direction has bank conflicts. Wider accesses would need aligned strides, and
//          the solvers around take O(n) times as long.
// Limits:  count * ceil(rows / 32) * ceil(cols / 32) < 2^31.
#pragma once
#include "cuda/batch.cuh"

namespace laser {

constexpr int kTile = 32;
constexpr int kTileWarps = 8;

template <typename T>
__global__ void __launch_bounds__(kTile* kTileWarps)
    transfer_kernel(Block<const T> from, Selection source,  // matrix source[s]
                    Block<T> to, Selection target,          // becomes matrix target[s]
                    unsigned tiles, unsigned tiles_per_row) {
  __shared__ T tile[kTile][kTile + 1];
  const int s = int(blockIdx.x / tiles);
  const unsigned t = blockIdx.x % tiles;
  const int64_t i0 = int64_t(t / tiles_per_row) * kTile, j0 = int64_t(t % tiles_per_row) * kTile;
  const int rows = int(to.rows - i0 < kTile ? to.rows - i0 : kTile);
  const int cols = int(to.cols - j0 < kTile ? to.cols - j0 : kTile);
  const int lane = threadIdx.x % kTile, warp = threadIdx.x / kTile;

  const T* read = &from.at(source[s], i0, j0);
  const bool down = from.row_stride == 1;
  for (int k = warp; k < kTile; k += kTileWarps) {
    const int i = down ? lane : k, j = down ? k : lane;
    if (i < rows && j < cols) {
      tile[i][j] = read[i * from.row_stride + j * from.col_stride];
    }
  }
  __syncthreads();
  T* write = &to.at(target[s], i0, j0);
  const bool down_again = to.row_stride == 1;
  for (int k = warp; k < kTile; k += kTileWarps) {
    const int i = down_again ? lane : k, j = down_again ? k : lane;
    if (i < rows && j < cols) {
      write[i * to.row_stride + j * to.col_stride] = tile[i][j];
    }
  }
}

// One thread per value.
template <typename T>
__global__ void __launch_bounds__(256) descending_values_kernel(const T* __restrict__ values,  // (sel.count, n)
                                                                int64_t n, double* __restrict__ theta, Selection sel) {
  const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e < sel.count * n) {
    const int64_t s = e / n, j = e % n;
    theta[sel[int(s)] * n + j] = double(values[s * n + n - 1 - j]);
  }
}

}  // namespace laser
